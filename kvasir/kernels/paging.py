"""Where one sequence's tokens lie in the pool: positions to slots.

Invariant: the table is a list of blocks kept in three forms that always agree: block ids on the
host, the same ids on the device, and the *runs* of neighbouring blocks. Appending costs what is
appended and looking up a few positions costs a bisection, so that a step over a sequence of
200,000 tokens costs the host what it costs over 2,000.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_FIRST_CAPACITY = 16


class BlockTable:
    """The blocks that hold one sequence's KV, in the order of its positions."""

    __slots__ = ("_blocks", "_device_blocks", "_n", "_run_at", "_run_first", "block_tokens")

    def __init__(self, block_tokens: int, device: torch.device) -> None:
        self.block_tokens = block_tokens
        self._blocks: NDArray[np.int64] = np.zeros(_FIRST_CAPACITY, dtype=np.int64)
        self._device_blocks = torch.from_numpy(self._blocks).to(device)  # shared where on the CPU
        self._n = 0
        self._run_first: list[int] = []  # block id with which each run begins
        self._run_at: list[int] = []  # its index in the table

    def __len__(self) -> int:
        return self._n

    @property
    def address(self) -> int:
        """Where the block ids lie on the host, int64, until blocks are next appended."""
        return self._blocks.ctypes.data

    @property
    def capacity_tokens(self) -> int:
        """Tokens that the table's blocks hold."""
        return self._n * self.block_tokens

    def cut(self, keep: int) -> None:
        """Forget all blocks but the first ``keep``."""
        if not 0 <= keep <= self._n:
            raise ValueError(f"cannot keep {keep} of {self._n} blocks")
        self._n = keep
        while self._run_at and self._run_at[-1] >= keep:
            self._run_at.pop()
            self._run_first.pop()

    def append(self, runs: Iterable[tuple[int, int]]) -> None:
        """Add runs of (first block, number of blocks)."""
        start = self._n
        for first, count in runs:
            if count <= 0:
                continue
            end = self._n + count
            self._reserve(end)
            self._blocks[self._n : end] = np.arange(first, first + count)
            if not self._continues(first):
                self._run_first.append(first)
                self._run_at.append(self._n)
            self._n = end
        if self._device_blocks.device.type != "cpu" and self._n > start:
            self._device_blocks[start : self._n] = torch.from_numpy(self._blocks[start : self._n])

    def _continues(self, block: int) -> bool:
        return self._n > 0 and int(self._blocks[self._n - 1]) + 1 == block

    def _reserve(self, n: int) -> None:
        if n <= len(self._blocks):
            return
        grown = np.zeros(max(n, 2 * len(self._blocks)), dtype=np.int64)
        grown[: self._n] = self._blocks[: self._n]
        self._blocks = grown
        self._device_blocks = torch.from_numpy(grown).to(self._device_blocks.device)

    def slots(self, start: int, n: int) -> NDArray[np.int64]:
        """The slots of positions ``start`` to ``start + n - 1``: [n]."""
        positions = np.arange(start, start + n)
        return self._blocks[positions // self.block_tokens] * self.block_tokens + (
            positions % self.block_tokens
        )

    def slot(self, position: int) -> int:
        """The slot of one position."""
        block, offset = divmod(position, self.block_tokens)
        return int(self._blocks[block]) * self.block_tokens + offset

    def pieces(self, low: int, high: int, most: int) -> list[tuple[int, int]] | None:
        """Positions [low, high) as (first slot, tokens) pieces that lie side by side in the pool;
        None where that takes more than ``most`` pieces."""
        found: list[tuple[int, int]] = []
        run = bisect_right(self._run_at, low // self.block_tokens) - 1
        while low < high:
            if len(found) == most:
                return None
            at = self._run_at[run]
            run += 1
            end = self._run_at[run] if run < len(self._run_at) else self._n
            count = min(high, end * self.block_tokens) - low
            offset = low - at * self.block_tokens
            found.append((self._run_first[run - 1] * self.block_tokens + offset, count))
            low += count
        return found

    def blocks(self, low: int, high: int) -> tuple[Tensor, int]:
        """The device's block ids that cover positions [low, high), and ``low``'s offset in them."""
        first = low // self.block_tokens
        last = -(-high // self.block_tokens)
        return self._device_blocks[first:last], low - first * self.block_tokens


@dataclass(frozen=True, slots=True)
class Span:
    """One sequence's share of a step: rows ``row`` to ``row + n - 1`` of the batch stand at
    positions ``start`` onwards; ``table`` says where positions [0, start + n) lie. The table
    belongs to the runner and stays as it is until the step ends."""

    row: int
    n: int
    start: int
    table: BlockTable

    @property
    def end(self) -> int:
        """One past the position of the last row."""
        return self.start + self.n

    def first_visible(self, window: int | None) -> int:
        """The first position that the span's first row sees."""
        return 0 if window is None else max(0, self.start - window + 1)


def gather(plane: Tensor, table: BlockTable, low: int, high: int) -> Tensor:
    """Positions [low, high) of ``plane`` [n_slots, H, d] side by side, as a copy: [high-low, H, d].

    Whole blocks are moved; what they hold outside of [low, high) is cut off, so that slots which
    were never written are not seen.
    """
    ids, offset = table.blocks(low, high)
    blocks = plane.view(-1, table.block_tokens, *plane.shape[1:]).index_select(0, ids)
    return blocks.flatten(0, 1)[offset : offset + high - low]


def read(plane: Tensor, table: BlockTable, low: int, high: int, most: int = 4) -> Tensor:
    """Positions [low, high) of ``plane`` [n_slots, H, d]: a view where they are one run, else a
    copy: [high - low, H, d]. ``most`` runs are joined; more are gathered block by block."""
    pieces = table.pieces(low, high, most)
    if pieces is None:
        return gather(plane, table, low, high)
    return join(plane, pieces)


def join(plane: Tensor, pieces: Sequence[tuple[int, int]]) -> Tensor:
    """The pieces (first slot, tokens) of ``plane`` [n_slots, H, d] as one tensor [tokens, H, d]."""
    views = [plane[first : first + count] for first, count in pieces]
    return views[0] if len(views) == 1 else torch.cat(views)
