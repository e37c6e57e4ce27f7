"""Time as a value that can be injected: the system's clock, and one that tests move by hand."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """A monotonic clock."""

    def now_s(self) -> float:
        """Seconds since an arbitrary, fixed moment; never goes back."""
        ...


class SystemClock:
    """The machine's monotonic clock."""

    def now_s(self) -> float:
        return time.monotonic()


class VirtualClock:
    """A clock that stands still until ``advance`` moves it; policy tests and simulations use it."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s

    def now_s(self) -> float:
        return self._now_s

    def advance(self, seconds: float) -> None:
        """Move forward by ``seconds``, which must not be negative."""
        if seconds < 0:
            raise ValueError(f"a clock cannot go back (asked to move by {seconds} s)")
        self._now_s += seconds
