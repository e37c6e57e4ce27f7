"""Server-sent events, by the rules that all known clients survive.

Headers at once; then one ``data:`` line per chunk; ``data: [DONE]`` last. A failure after the
headers is a ``data:`` event with an error object. Comments keep the connection alive only after a
silence, and by a timer of their own, so that a prompt that takes minutes to read is not taken for
a dead server.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from kvasir.core.errors import KvasirError
from kvasir.service.errors import Disconnected, from_kvasir, internal_error
from kvasir.service.replies import Reply
from kvasir.service.served import Limits

log = logging.getLogger(__name__)

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"
PULSE = b": still working\n\n"


def event(data: bytes) -> bytes:
    """One event with ``data``, which is one line."""
    return b"data: " + data + b"\n\n"


async def events(chunks: AsyncIterator[Reply]) -> AsyncIterator[bytes]:
    """``chunks`` on the wire, then ``[DONE]``; a failure on the way becomes an error event."""
    try:
        async for chunk in chunks:
            yield event(chunk.wire())
    except KvasirError as error:
        yield event(json.dumps(from_kvasir(error).body()).encode())
    except Exception:
        log.exception("a stream failed")
        yield event(json.dumps(internal_error().body()).encode())
    yield DONE


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``. Cancels it and raises ``Disconnected`` once the client has closed the
    connection."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Disconnected("the client closed the connection")
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """A response that sends ``events`` as they come and calls ``close`` at the end, however the
    stream ends: when it is through, when the client has gone, when the server is cancelled."""

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncIterator[bytes], *, limits: Limits, close: Callable[[], None]
    ) -> None:
        self.status_code = 200
        self.background = None
        self._events = events
        self._limits = limits
        self._close = close
        self.init_headers({"x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await while_connected(receive, self._send_all(send))
        except Disconnected:
            pass
        finally:
            self._close()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        one_at_a_time = asyncio.Lock()
        quiet_from_s = time.monotonic()

        async def put(data: bytes) -> None:
            nonlocal quiet_from_s
            async with one_at_a_time:
                await send({"type": "http.response.body", "body": data, "more_body": True})
            quiet_from_s = time.monotonic()

        async def pulse() -> None:
            wait_s, from_s = self._limits.silence_s, quiet_from_s
            while True:
                await asyncio.sleep(max(0.0, from_s + wait_s - time.monotonic()))
                if quiet_from_s == from_s:
                    await put(PULSE)
                    wait_s = self._limits.pulse_s
                else:
                    wait_s = self._limits.silence_s
                from_s = quiet_from_s

        pulsing = asyncio.create_task(pulse())
        try:
            async for data in self._events:
                await put(data)
        finally:
            pulsing.cancel()
            await asyncio.gather(pulsing, return_exceptions=True)
        await send({"type": "http.response.body", "body": b"", "more_body": False})
