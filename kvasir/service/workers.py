"""Threads for work on long texts: parsing, templates, tokenising. Never on the event loop.

Short texts have threads of their own, so that a text of many megabytes keeps only others of its
kind waiting; so has what may take minutes, and what may wait for the database or for a turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

LONG_CHARS = 256 * 1024
_ASKING = 64  # contexts that are asked concurrently; their threads mostly wait


class Workers:
    """Small thread pools. ``close`` ends their threads."""

    def __init__(self) -> None:
        self._short = ThreadPoolExecutor(2, thread_name_prefix="kvasir-text")
        self._long = ThreadPoolExecutor(1, thread_name_prefix="kvasir-long-text")
        self._catalog = ThreadPoolExecutor(8, thread_name_prefix="kvasir-catalog")
        self._asking = ThreadPoolExecutor(_ASKING, thread_name_prefix="kvasir-asking")
        self._apart = ThreadPoolExecutor(4, thread_name_prefix="kvasir-apart")

    async def run(self, size: int, work: Callable[[], T]) -> T:
        """The result of ``work``, whose input is ``size`` characters or bytes long."""
        pool = self._long if size > LONG_CHARS else self._short
        return await asyncio.get_running_loop().run_in_executor(pool, work)

    async def in_catalog(self, work: Callable[[], T]) -> T:
        """The result of ``work``, which computes little and may wait: for the database, for
        somebody's turn, for a step of the engine."""
        return await asyncio.get_running_loop().run_in_executor(self._catalog, work)

    async def apart(self, work: Callable[[], T]) -> T:
        """The result of ``work``, which may take minutes: reading a file, planning a context."""
        return await asyncio.get_running_loop().run_in_executor(self._apart, work)

    async def asking(self, work: Callable[[], T]) -> T:
        """The result of ``work``, which mostly waits for the engine's answers."""
        return await asyncio.get_running_loop().run_in_executor(self._asking, work)

    def close(self) -> None:
        """Wait for what runs, drop what waits, end the threads."""
        self._short.shutdown(cancel_futures=True)
        self._long.shutdown(cancel_futures=True)
        self._catalog.shutdown(cancel_futures=True)
        self._apart.shutdown(cancel_futures=True)
        self._asking.shutdown(cancel_futures=True)
