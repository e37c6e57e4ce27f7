"""Random paged pools for kernel tests: tables in any order, shared blocks, poisoned slots."""

from __future__ import annotations

import random

import torch

from kvasir.kernels.paging import BlockTable, Span

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def table_of(blocks: list[int], block_tokens: int, device: str) -> BlockTable:
    table = BlockTable(block_tokens, torch.device(device))
    table.append((block, 1) for block in blocks)
    return table


def scattered(rng: random.Random, free: list[int], n: int) -> list[int]:
    """``n`` blocks out of ``free`` (which loses them): runs of random lengths in random order."""
    free.sort()
    taken: list[int] = []
    while len(taken) < n:
        at = rng.randrange(len(free))
        count = min(rng.choice([1, 1, 2, 5]), n - len(taken), len(free) - at)
        taken += free[at : at + count]
        del free[at : at + count]
    return taken


class Pool:
    """Planes [n_slots, H, d] in which only written slots hold numbers; the rest is NaN."""

    def __init__(
        self, n_blocks: int, block_tokens: int, heads: int, dim: int, dtype: torch.dtype, dev: str
    ) -> None:
        shape = (n_blocks * block_tokens, heads, dim)
        self.keys = torch.full(shape, torch.nan, dtype=dtype, device=dev)
        self.values = torch.full(shape, torch.nan, dtype=dtype, device=dev)

    def write(self, span: Span, spread: float) -> None:
        """Random KV for all positions of ``span`` that hold none yet."""
        slots = torch.from_numpy(span.table.slots(0, span.end)).to(self.keys.device)
        slots = slots[self.keys[slots].isnan().any(-1).any(-1)]
        shape = (len(slots), *self.keys.shape[1:])
        self.keys[slots] = (torch.randn(shape) * spread).to(self.keys)
        self.values[slots] = torch.randn(shape).to(self.values)
