"""From a thread that asks to the event loop that tells: what happens, as it happens."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator

from kvasir.contexts.answering import Told
from kvasir.contexts.batch import Cancelled
from kvasir.service.desk import Desk


async def told_to(
    desk: Desk, told: Callable[[], Iterator[Told]], gone: threading.Event
) -> AsyncIterator[Told]:
    """What ``told`` gives, which runs on a thread; ``gone`` is set when nobody takes any more.
    Raises what it raises."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[Told | BaseException | None] = asyncio.Queue()

    def put(item: Told | BaseException | None) -> None:
        # RuntimeError: the loop has closed, so nobody listens any more
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(queue.put_nowait, item)

    def run() -> None:
        try:
            for each in told():
                put(each)
        except Cancelled:
            pass
        except Exception as error:
            put(error)
        put(None)

    task = asyncio.ensure_future(desk.workers.asking(run))
    try:
        while (item := await queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        gone.set()
        await asyncio.shield(task)
