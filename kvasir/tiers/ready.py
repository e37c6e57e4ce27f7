"""Memory of the pool made ready before it is written: the system's pages behind the next slots.

The first write to memory that was never used makes the system find and clear pages, which takes 5 %
of the time in which a prompt is read. The engine has that done while it is idle, a little at a
time; contents are never changed. A wish only: where the system cannot do it, nothing happens.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from kvasir.kernels.memory import LARGE_PAGE_BYTES, populate

_AHEAD_BYTES = 512 * 2**20


class ReadyAhead:
    """Keeps up to 512 MiB of ``planes`` beyond the highest slot ever used ready to be written."""

    def __init__(self, planes: Sequence[Tensor]) -> None:
        """``planes`` [n_slots, ...] each, contiguous and of one size."""
        self._planes = planes
        self._n_slots = len(planes[0])
        slot_bytes = planes[0].nbytes // max(1, self._n_slots)
        self._stride = max(1, LARGE_PAGE_BYTES // slot_bytes)  # slots
        self._ahead = _AHEAD_BYTES // (slot_bytes * len(planes))
        self._used = 0  # slots
        self._next = 0  # part: a stride of one plane; the planes take turns

    def used(self, end: int) -> None:
        """The slots before ``end`` are, or have been, in use."""
        self._used = max(self._used, end)

    def make_more(self) -> bool:
        """Make a little more ready, within milliseconds; False where there is nothing to do."""
        turn, plane = divmod(self._next, len(self._planes))
        start = turn * self._stride
        if start >= min(self._n_slots, self._used + self._ahead):
            return False
        self._next += 1
        if not populate(self._planes[plane][start : start + self._stride]):
            self._n_slots = 0  # the system cannot: do not ask again
        return True
