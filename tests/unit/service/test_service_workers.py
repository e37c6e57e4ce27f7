"""Long texts keep only long texts waiting."""

from __future__ import annotations

import asyncio
import threading

from kvasir.service.workers import LONG_CHARS, Workers


def test_a_long_text_does_not_keep_a_short_one_waiting() -> None:
    workers, release = Workers(), threading.Event()

    async def run() -> None:
        long = [
            asyncio.ensure_future(workers.run(LONG_CHARS + 1, lambda: release.wait(20)))
            for _ in range(4)
        ]
        async with asyncio.timeout(10):
            assert await workers.run(10, lambda: "short") == "short"
        assert not any(future.done() for future in long)
        release.set()
        assert await asyncio.gather(*long) == [True] * 4

    try:
        asyncio.run(run())
    finally:
        release.set()
        workers.close()


def test_who_waits_for_the_database_keeps_no_text_waiting() -> None:
    """As many as like to, which all wait for one that has the turn."""
    workers, release = Workers(), threading.Event()

    async def run() -> None:
        waiting = [
            asyncio.ensure_future(workers.in_catalog(lambda: release.wait(20))) for _ in range(20)
        ]
        async with asyncio.timeout(10):
            assert await workers.run(10, lambda: "text") == "text"
            assert await workers.apart(lambda: "apart") == "apart"
        release.set()
        assert all(await asyncio.gather(*waiting))

    try:
        asyncio.run(run())
    finally:
        release.set()
        workers.close()


def test_closing_ends_the_threads() -> None:
    async def run() -> None:
        workers = Workers()
        await asyncio.gather(workers.run(1, int), workers.run(LONG_CHARS + 1, int))
        workers.close()

    before = threading.active_count()
    asyncio.run(run())
    assert threading.active_count() == before
