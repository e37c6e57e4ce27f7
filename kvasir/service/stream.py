"""The bridge from the engine's thread to the event loop.

One ``Feed`` serves one HTTP request. The engine's thread hands events over with
``call_soon_threadsafe`` and never waits; the loop takes them out in order. Closing a feed aborts
what has not ended, whatever the reason for closing was, so no path leaves the engine computing for
nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque

from kvasir.core.errors import KvasirError
from kvasir.core.events import Event, Finished, Refused
from kvasir.core.ports import Engine
from kvasir.core.requests import Request
from kvasir.service.errors import ApiError
from kvasir.service.workers import Workers


class Feed:
    """The events of all engine requests behind one HTTP request. Used on the event loop, except
    for ``_deliver``, which the engine calls."""

    def __init__(self, engine: Engine, *, max_unread: int) -> None:
        self._engine = engine
        self._max_unread = max_unread
        self._loop = asyncio.get_running_loop()
        self._events: deque[Event] = deque()
        self._ready = asyncio.Event()
        self._unfinished: dict[str, int] = {}  # request id -> choices that have not ended
        self._error: ApiError | None = None
        self.closed = False

    async def submit(self, request: Request, workers: Workers) -> None:
        """Hand ``request`` to the engine, on a worker thread, since the engine hashes the prompt on
        the thread that submits. Raises ``EngineStopped``."""
        self._unfinished[request.id] = request.n

        def hand_over() -> None:
            self._engine.submit(request, self._deliver)
            if self.closed or self._error is not None:
                # closed meanwhile, when the engine did not know the request yet
                self._engine.abort(request.id)

        try:
            await workers.run(len(request.tokens) * 8, hand_over)
        except KvasirError:
            self._unfinished.pop(request.id, None)
            raise

    def _deliver(self, event: Event) -> None:
        # RuntimeError: the loop has closed, so nobody listens any more; the engine must not suffer
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._take, event)

    def _take(self, event: Event) -> None:
        if isinstance(event, Refused):
            self._unfinished.pop(event.request_id, None)
        elif isinstance(event, Finished):
            left = self._unfinished.get(event.request_id, 1) - 1
            if left > 0:
                self._unfinished[event.request_id] = left
            else:
                self._unfinished.pop(event.request_id, None)
        if self.closed:
            return
        self._events.append(event)
        self._ready.set()
        if len(self._events) > self._max_unread:
            self.fail(
                ApiError(
                    408,
                    f"More than {self._max_unread} tokens wait to be read; the reader is too slow.",
                    code="slow_reader",
                )
            )

    async def next(self) -> Event:
        """The next event. Raises the error of ``fail``."""
        await self._wait()
        return self._events.popleft()

    async def verdict(self, timeout_s: float) -> Refused | None:
        """The refusal, if the first event is one and comes within ``timeout_s``. Takes nothing
        out."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._wait()
        first = self._events[0] if self._events else None
        return first if isinstance(first, Refused) else None

    async def _wait(self) -> None:
        while True:
            if self._error is not None:
                raise self._error
            if self._events:
                return
            self._ready.clear()
            await self._ready.wait()

    def abort(self, request_id: str) -> None:
        """Let the engine end ``request_id`` early; its ``Finished`` events still come."""
        self._engine.abort(request_id)

    def fail(self, error: ApiError) -> None:
        """Abort everything; the reader gets ``error`` next, before what it has not read."""
        if not self.closed and self._error is None:
            self._error = error
            self._abort_all()
            self._ready.set()

    def close(self) -> None:
        """Take nothing more and abort what has not ended. May be called twice."""
        if not self.closed:
            self.closed = True
            self._events.clear()
            self._abort_all()

    def _abort_all(self) -> None:
        for request_id in self._unfinished:
            self._engine.abort(request_id)
