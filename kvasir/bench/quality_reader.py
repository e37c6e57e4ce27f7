"""A forward pass over one long text and over texts that part from it, without an engine.

Invariant: the text's own KV lies in the first blocks of the pool and is written once; a branch
writes into the blocks behind them, so that it may be made again and again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from kvasir.core.geometry import KvGeometry
from kvasir.kernels.paging import BlockTable, Span
from kvasir.model.forward import Forward
from kvasir.model.spec import ModelSpec
from kvasir.tiers.device import DevicePool

BLOCK_TOKENS = 64
STEP_TOKENS = 512


class Reader:
    """One model with room for a text of ``window`` tokens and one branch of its last quarter."""

    def __init__(self, forward: Forward, window: int, kv_dtype: str) -> None:
        """Raises ``DoesNotFit`` where the memory for KV is short."""
        self.forward = forward
        self._pool = DevicePool(_geometry(forward.spec, window, kv_dtype), "cpu")
        self._own = self._pool.geometry.blocks_for(window)

    def read(self, tokens: Sequence[int], keep: Mapping[str, range]) -> dict[str, Tensor]:
        """Compute the text ``tokens`` and return the hidden states at the positions ``keep``."""
        table = self._table([(0, self._own)])
        kept: dict[str, list[Tensor]] = {name: [] for name in keep}
        for start in range(0, len(tokens), STEP_TOKENS):
            hidden = self._step(table, tokens[start : start + STEP_TOKENS], start)
            for name, positions in keep.items():
                low = max(positions.start - start, 0)
                high = min(positions.stop - start, len(hidden))
                if low < high:
                    kept[name].append(hidden[low:high].clone())
        return {name: torch.cat(parts) for name, parts in kept.items()}

    def branch(self, at: int) -> BlockTable:
        """A table that shares the text before position ``at``, a multiple of ``BLOCK_TOKENS``."""
        shared = at // BLOCK_TOKENS
        return self._table([(0, shared), (self._own, self._own - shared)])

    def last(self, table: BlockTable, tokens: Sequence[int], start: int) -> Tensor:
        """Compute ``tokens`` at the positions from ``start`` on: the last one's hidden state, as
        ``Forward.logits`` takes it."""
        hidden = torch.empty(0)
        for at in range(0, len(tokens), STEP_TOKENS):
            hidden = self._step(table, tokens[at : at + STEP_TOKENS], start + at)
        return hidden[-1:]

    def _step(self, table: BlockTable, tokens: Sequence[int], start: int) -> Tensor:
        span = Span(row=0, n=len(tokens), start=start, table=table)
        return self.forward.compute(torch.tensor(tokens), [span], self._pool).hidden

    def _table(self, runs: Sequence[tuple[int, int]]) -> BlockTable:
        table = BlockTable(BLOCK_TOKENS, torch.device("cpu"))
        table.append(runs)
        return table


def _geometry(spec: ModelSpec, window: int, kv_dtype: str) -> KvGeometry:
    blocks = -(-window // BLOCK_TOKENS)
    return KvGeometry(
        n_layers=spec.n_layers,
        n_kv_heads=spec.n_kv_heads,
        head_dim=spec.head_dim,
        dtype=kv_dtype,
        dtype_bytes={"float32": 4, "bfloat16": 2, "int8": 1}[kv_dtype],
        block_tokens=BLOCK_TOKENS,
        n_blocks=blocks + -(-blocks // 4) + 1,
    )
