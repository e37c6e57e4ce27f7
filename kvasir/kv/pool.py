"""Which blocks of the pool are free. Hands them out in contiguous runs where it can.

Invariant: the free intervals are disjoint, maximal (no two touch) and add up to ``n_free``.
Attention reads side by side blocks as one view, so a long run is worth much more than its parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class BlockPool:
    """A free list of block numbers 0 … ``n_blocks`` - 1, kept as intervals."""

    def __init__(self, n_blocks: int) -> None:
        if n_blocks < 1:
            raise ValueError(f"a pool needs at least one block, not {n_blocks}")
        self.n_blocks = n_blocks
        self.n_free = n_blocks
        self._length_at: dict[int, int] = {0: n_blocks}  # first block of an interval -> length
        self._first_of: dict[int, int] = {n_blocks - 1: 0}  # last block of an interval -> first

    def take(self, count: int, *, after: int | None = None) -> list[int]:
        """``count`` free blocks in the order in which they are to be used.

        Continues directly behind block ``after`` where that is free; else uses the smallest
        interval that holds everything; else the largest intervals there are. Raises ``ValueError``
        when fewer than ``count`` are free.
        """
        if count > self.n_free:
            raise ValueError(f"{count} blocks wanted, {self.n_free} free")
        taken: list[int] = []
        if after is not None and after + 1 in self._length_at:
            taken += self._cut(after + 1, min(count, self._length_at[after + 1]))
        while len(taken) < count:
            missing = count - len(taken)
            first = self._best_fit(missing)
            taken += self._cut(first, min(missing, self._length_at[first]))
        return taken

    def give(self, blocks: Iterable[int]) -> None:
        """Return blocks. Raises ``ValueError`` for one that is free already or does not exist."""
        for first, length in _intervals(sorted(blocks)):
            self._insert(first, length)

    def free_blocks(self) -> set[int]:
        """Every free block; for the conservation check and for tests."""
        return {b for first, n in self._length_at.items() for b in range(first, first + n)}

    def _best_fit(self, count: int) -> int:
        holding = [(n, first) for first, n in self._length_at.items() if n >= count]
        if holding:
            return min(holding)[1]
        return max((n, -first) for first, n in self._length_at.items())[1] * -1

    def _cut(self, first: int, count: int) -> list[int]:
        """Take ``count`` blocks from the front of the interval that begins at ``first``."""
        length = self._length_at.pop(first)
        if count < length:
            self._length_at[first + count] = length - count
            self._first_of[first + length - 1] = first + count
        else:
            del self._first_of[first + length - 1]
        self.n_free -= count
        return list(range(first, first + count))

    def _insert(self, first: int, length: int) -> None:
        if first < 0 or first + length > self.n_blocks:
            raise ValueError(f"blocks {first}…{first + length - 1} are not in the pool")
        if any(lo < first + length and first < lo + n for lo, n in self._length_at.items()):
            raise ValueError(f"one of the blocks {first}…{first + length - 1} is free already")
        added = length
        if first - 1 in self._first_of:  # joins the interval before
            before = self._first_of.pop(first - 1)
            length += self._length_at.pop(before)
            first = before
        if first + length in self._length_at:  # joins the interval behind
            behind = self._length_at.pop(first + length)
            del self._first_of[first + length + behind - 1]
            length += behind
        self._length_at[first] = length
        self._first_of[first + length - 1] = first
        self.n_free += added


def _intervals(ordered: Sequence[int]) -> list[tuple[int, int]]:
    """Maximal runs (first, length) of strictly ascending block numbers; a repeat ends a run."""
    runs: list[tuple[int, int]] = []
    for block in ordered:
        if runs and runs[-1][0] + runs[-1][1] == block:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((block, 1))
    return runs
