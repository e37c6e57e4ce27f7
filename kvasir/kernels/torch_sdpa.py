"""Attention over the paged pool with ``scaled_dot_product_attention``: any device, any dtype.

Sequences that compute one token are gathered side by side, padded to the longest and attended in
one call; longer chunks are attended one sequence at a time, in place where their KV is one run.
Padding repeats a slot that is written, so that what lies in other slots cannot reach a result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from kvasir.kernels.paging import Span, read

_MASK_ROWS = 256  # rows of a chunk that share one mask: bounds it at 256 × context booleans


@dataclass(frozen=True, slots=True)
class _Decodes:
    """Rows of sequences that compute one token each."""

    rows: Tensor  # [B] int64
    slots: Tensor  # [B * T] int64, padded with the row's own first slot
    mask: Tensor  # [B, 1, 1, T] bool, True where seen


@dataclass(frozen=True, slots=True)
class SdpaPlan:
    """A step's rows, split into single tokens and chunks."""

    decodes: _Decodes | None
    chunks: tuple[Span, ...]
    window: int | None

    def attend(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """As ``reference.ReferencePlan.attend``."""
        out = torch.empty_like(query)
        if self.decodes is not None:
            rows = self.decodes.rows
            n = len(rows)
            k = keys.index_select(0, self.decodes.slots).view(n, -1, *keys.shape[1:])
            v = values.index_select(0, self.decodes.slots).view(n, -1, *keys.shape[1:])
            mixed = scaled_dot_product_attention(
                query.index_select(0, rows)[:, :, None],  # [B, Hq, 1, d]
                k.transpose(1, 2),  # [B, H, T, d]
                v.transpose(1, 2),
                attn_mask=self.decodes.mask,
                enable_gqa=True,
            )
            out.index_copy_(0, rows, mixed[:, :, 0])
        for span in self.chunks:
            self._attend_chunk(span, query, keys, values, out)
        return out

    def _attend_chunk(
        self, span: Span, query: Tensor, keys: Tensor, values: Tensor, out: Tensor
    ) -> None:
        for first in range(0, span.n, _MASK_ROWS):
            n = min(_MASK_ROWS, span.n - first)
            tile = Span(span.row + first, n, span.start + first, span.table)
            low = tile.first_visible(self.window)
            k = read(keys, span.table, low, tile.end)  # [T, H, d]
            v = read(values, span.table, low, tile.end)
            rows = slice(tile.row, tile.row + n)
            mixed = scaled_dot_product_attention(
                query[rows].transpose(0, 1)[None],
                k.transpose(0, 1)[None],
                v.transpose(0, 1)[None],
                attn_mask=causal_mask(tile, low, self.window, query.device),
                enable_gqa=True,
            )
            out[rows] = mixed[0].transpose(0, 1)


def causal_mask(span: Span, low: int, window: int | None, device: torch.device) -> Tensor:
    """Which of positions [low, end) each row of ``span`` sees: [n, end - low] bool."""
    at = torch.arange(span.start, span.end, device=device)[:, None]
    seen_at = torch.arange(low, span.end, device=device)[None]
    seen = seen_at <= at
    return seen if window is None else seen & (seen_at > at - window)


def plan(spans: Sequence[Span], window: int | None) -> SdpaPlan:
    """Describe a step's rows; ``window`` is the number of last positions seen, None for all."""
    singles = [span for span in spans if span.n == 1]
    return SdpaPlan(
        decodes=_plan_decodes(singles, window) if singles else None,
        chunks=tuple(span for span in spans if span.n > 1),
        window=window,
    )


def _plan_decodes(spans: list[Span], window: int | None) -> _Decodes:
    lows = [span.first_visible(window) for span in spans]
    counts = [span.end - low for span, low in zip(spans, lows, strict=True)]
    longest = max(counts)
    slots = []
    for span, low, count in zip(spans, lows, counts, strict=True):
        block_tokens = span.table.block_tokens
        ids, offset = span.table.blocks(low, span.end)
        within = torch.arange(block_tokens, device=ids.device)
        own = (ids[:, None] * block_tokens + within).flatten()[offset : offset + count]
        slots.append(torch.cat([own, own[:1].expand(longest - count)]))
    device = slots[0].device
    seen = torch.arange(longest, device=device) < torch.tensor(counts, device=device)[:, None]
    return _Decodes(
        rows=torch.tensor([span.row for span in spans], device=device),
        slots=torch.cat(slots),
        mask=seen[:, None, None],
    )
