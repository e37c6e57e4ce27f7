"""Uvicorn on sockets that are already bound, ended by a signal or by the caller.

Invariant: the process's way out is ours: uvicorn neither installs signal handlers nor re-raises
signals, and an ended server ends its engine first, so that streams close with an event.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence

import uvicorn
from fastapi import FastAPI

from kvasir.core.errors import ConfigError, KvasirError

_LOG = logging.getLogger("kvasir.cli")
_CLOSING_S = 3.0  # for the last bytes of streams whose answers have ended


class Listener(uvicorn.Server):
    """Serves ``app`` on ``sockets`` until ``end`` is called.

    ``stop_engine(grace_s)`` is called on a thread of its own when the end begins; it lets running
    answers finish for ``grace_s`` and then ends the rest.
    """

    def __init__(
        self,
        app: FastAPI,
        sockets: Sequence[socket.socket],
        *,
        grace_s: float,
        stop_engine: Callable[[float], None],
        on_ready: Callable[[], None],
    ) -> None:
        # One protocol and one loop everywhere, whatever else is installed beside us.
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",
                ws="none",
                loop="asyncio",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=round(grace_s + _CLOSING_S),
            )
        )
        self._sockets = list(sockets)
        self._grace_s = grace_s
        self._stop_engine = stop_engine
        self._on_ready = on_ready
        self._stopper: threading.Thread | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Uvicorn's own handling would kill the process with the signal after a clean end."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        except OSError as error:  # somebody has begun to listen there while the model was loaded
            raise ConfigError(
                f"cannot listen: {error.strerror or error}\nanother program took the address\n"
                "name another port with --port (0 takes any free one)"
            ) from error
        if self.started:
            self._on_ready()

    def end(self, grace_s: float | None = None) -> None:
        """Begin to end: accept nothing more, let answers finish. May be called from any thread."""
        if self._stopper is None:
            grace = self._grace_s if grace_s is None else grace_s
            self._stopper = threading.Thread(
                target=self._stop_engine, args=(grace,), name="kvasir-stop", daemon=True
            )
            self._stopper.start()
        self.should_exit = True

    def listen(self) -> None:
        """Serve on the calling thread until ended, then wait for the engine."""
        asyncio.run(self.serve(sockets=self._sockets))
        self.end(0.0)  # where the server ended by itself
        if self._stopper is not None:
            self._stopper.join()


def end_on_signals(listener: Listener) -> None:
    """The first SIGTERM or SIGINT ends ``listener`` with grace, a second one the process.

    Call on the main thread. The second signal leaves without waiting for a step of the engine
    that may take long; the kernel gives back the lock and the sockets.
    """

    def on_signal(number: int, _frame: object) -> None:
        if listener.should_exit:
            os._exit(0)
        _LOG.info("%s: letting running answers finish", signal.Signals(number).name)
        listener.end()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)


@contextlib.contextmanager
def listening_in_background(listener: Listener) -> Iterator[None]:
    """Run ``listener`` on a thread for the duration of the block."""
    failure: list[BaseException] = []

    def listen() -> None:
        try:
            listener.listen()
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=listen, name="kvasir-http")
    thread.start()
    try:
        while thread.is_alive() and not listener.started:
            thread.join(0.01)
        if failure:
            raise KvasirError(f"the server could not start: {failure[0]}") from failure[0]
        yield
    finally:
        listener.end()
        thread.join()


def bind_tcp(host: str, port: int) -> socket.socket:
    """A socket bound to ``host`` and ``port`` (0 = any free port).

    Raises ``ConfigError`` that says what is in the way and what to do.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise ConfigError(
            f"cannot listen on {host!r}: {error.strerror}\nno address has that name here\n"
            "use --host 127.0.0.1"
        ) from error
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Else a restart would have to wait for the last connections' TIME_WAIT.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise ConfigError(
            f"cannot listen on {host} port {port}: {os.strerror(error.errno or 0)}\n"
            "another program uses that port, or it is not yours to use\n"
            "name another with --port (0 takes any free one)"
        ) from error
    return sock
