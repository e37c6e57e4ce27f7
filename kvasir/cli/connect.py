"""One code path for every command that asks: the home's running server, or one in this process.

Invariant: an engine runs only under the home's lock, and both ways end in the same HTTP client on
the same kind of socket.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

from kvasir.cli import show
from kvasir.cli.client import Client, NoServer
from kvasir.cli.home import Home, OwnedHome, open_home
from kvasir.core.config import Config
from kvasir.core.errors import ConfigError, HomeBusy

_WAIT_FOR_OWNER_S = 60.0  # an owner that loads its model has the lock and no socket yet


@dataclass(frozen=True, slots=True)
class Connection:
    """A client and the name of the model that answers it."""

    client: Client
    model: str


@contextlib.contextmanager
def connect(config: Config) -> Iterator[Connection]:
    """The running server of the home, else one that lives as long as the block.

    Raises ``ConfigError`` if the running server has another model than ``config`` names, and
    ``HomeBusy`` if another process owns the home and answers nothing for a minute.
    """
    home = open_home(config.home)
    with contextlib.ExitStack() as stack:
        owned = own_unless_served(home, stack)
        if owned is not None:
            stack.enter_context(_own_server(config, owned))
        client = stack.enter_context(Client(home.socket_path))
        names = client.model_names()
        if owned is None:
            _check_model(config, home, names)
        yield Connection(client, names[0])


def own_unless_served(home: Home, stack: contextlib.ExitStack) -> OwnedHome | None:
    """None once a server answers on ``home``, else the home itself, owned until ``stack`` ends."""
    deadline_s = time.monotonic() + _WAIT_FOR_OWNER_S
    told = False
    while True:
        if _answers(home):
            return None
        try:
            return stack.enter_context(home.own())
        except HomeBusy:
            if time.monotonic() > deadline_s:
                raise
            if not told:
                show.note(f"waiting for process {home.owner_pid()}, which owns {home.path}")
                told = True
            time.sleep(0.2)


def _answers(home: Home) -> bool:
    try:
        with Client(home.socket_path) as client:
            client.model_names()
    except NoServer:
        return False
    return True


def _check_model(config: Config, home: Home, names: list[str]) -> None:
    from kvasir.model.source import model_name

    if config.model and config.model not in names and model_name(config.model) not in names:
        raise ConfigError(
            f"the running server of {home.path} has the model {names[0]}, not {config.model}\n"
            f"one home runs one model at a time (process {home.owner_pid()})\n"
            "stop that server, leave --model away, or name another folder with --home"
        )


@contextlib.contextmanager
def _own_server(config: Config, owned: OwnedHome) -> Iterator[None]:
    """A server in this process, on the home's socket alone, for the block."""
    from kvasir.cli.compose import compose
    from kvasir.cli.listener import Listener, listening_in_background

    with owned.bind_socket() as sock:
        server = compose(config, owned, report=show.note)
        listener = Listener(
            server.app,
            [sock],
            grace_s=config.grace_s,
            stop_engine=server.built.engine.stop,
            on_ready=lambda: None,
        )
        with listening_in_background(listener):
            yield
