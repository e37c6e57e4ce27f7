"""Attention over the paged pool on CPUs, in place, with plain torch.

Every part is exact attention over a stretch of keys that gives its log-sum-exp; parts are merged
by it (as in FlashDecoding and Flash-Attention's own tiles). A chunk is a part without a mask over
what came before it and a causal part over itself, so no mask is ever built but for windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvasir.kernels import torch_cpu_decode
from kvasir.kernels.paging import Span, gather, read
from kvasir.kernels.torch_cpu_decode import DecodePlan
from kvasir.kernels.torch_sdpa import causal_mask

_MOST_RUNS = 8  # attended one by one; a table in more pieces is gathered into one copy
_PIECE = 512  # tokens of a stretch that one task attends
_TOGETHER_ROWS = 8  # single tokens that see
_TOGETHER_TOKENS = 8192  # this many in all are attended together; fewer one by one
_GROUPED_ROWS = 128  # a shorter chunk attends with the query heads of a KV group as its rows
_MASK_ROWS = 256  # rows of a windowed chunk that share one mask


def against(device: torch.device, dtype: torch.dtype) -> list[str]:
    """Why this kernel cannot attend here; empty where it can."""
    reasons = []
    if device.type != "cpu":
        reasons.append(f"it is for CPUs, the device is {device.type}")
    if dtype not in (torch.float32, torch.bfloat16):
        reasons.append(f"it computes float32 and bfloat16, not {str(dtype)[6:]}")
    if not hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu"):
        reasons.append("this build of torch has no flash attention for CPUs")
    return reasons


@dataclass(frozen=True, slots=True)
class CpuPlan:
    """A step's rows: sequences attended one by one, and single tokens attended together."""

    spans: tuple[Span, ...]
    singles: tuple[Span, ...]
    decodes: DecodePlan | None  # of ``singles``
    window: int | None

    def attend(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """As ``reference.ReferencePlan.attend``."""
        one = self.spans[0] if len(self.spans) == 1 else None
        if one is not None and one.n == len(query) and not self._windowed(one):
            return self._attend_alone(one, query, keys, values)
        out = torch.empty_like(query)
        alone = self.spans
        if self.decodes is not None:
            attended = self.decodes.attend(query, keys, values)
            if attended is None:
                alone += self.singles
            elif len(attended) == len(query):
                return attended
            else:
                out.index_copy_(0, self.decodes.rows, attended)
        for span in alone:
            rows = slice(span.row, span.row + span.n)
            if self.window is not None and self._windowed(span):
                _attend_windowed(span, self.window, query, keys, values, out)
            else:
                out[rows] = self._attend_alone(span, query[rows], keys, values)
        return out

    def _windowed(self, span: Span) -> bool:
        """Whether the window hides something from rows of ``span``."""
        return self.window is not None and span.n > 1 and span.end > self.window

    def _attend_alone(self, span: Span, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """The rows of one span, ``query`` [n, Hq, d]."""
        if span.n == 1:
            return attend_single(span, span.first_visible(self.window), query, keys, values)
        return attend_chunk(span, query, keys, values)


def _flash(
    query: Tensor, keys: Tensor, values: Tensor, *, causal: bool = False, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``query`` [n, Hq, d] over ``keys`` and ``values`` [T, H, d]: [n, Hq, d] and its
    log-sum-exp [n, Hq]. Where few rows see every key, the query heads of a KV group are rows of one
    attention: longer blocks of rows share each load of the keys. Many rows fill blocks alone."""
    n, n_query, dim = query.shape
    rows = query.transpose(0, 1)  # [Hq, n, d]
    if not causal and mask is None and n < _GROUPED_ROWS:
        rows = rows.reshape(keys.shape[1], -1, dim)  # [H, G n, d]
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        rows[None],
        keys.transpose(0, 1)[None],
        values.transpose(0, 1)[None],
        0.0,
        causal,
        attn_mask=mask,
    )
    out, lse = out.reshape(n_query, n, dim), lse.reshape(n_query, n)
    return out.transpose(0, 1), lse.transpose(0, 1)


def attend_chunk(span: Span, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Every row of ``span`` sees all that came before the chunk, and the chunk up to itself."""
    table = span.table
    own = (read(keys, table, span.start, span.end), read(values, table, span.start, span.end))
    out, lse = _flash(query, *own, causal=True)
    for k, v in _stretches(span, 0, span.start, keys, values):
        out, lse = _merge(out, lse, *_flash(query, k, v))
    return out


def attend_single(span: Span, low: int, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """The span's only row sees positions [low, end). The query heads of a KV group are the rows of
    one attention over their KV head, and long stretches are cut into pieces that threads share."""
    heads, dim = keys.shape[1:]
    grouped = query.view(1, heads, -1, dim)  # [1, H, G, d]
    outs: list[Tensor] = []
    lses: list[Tensor] = []
    for k, v in _stretches(span, low, span.end, keys, values):
        whole = len(k) // _PIECE * _PIECE if len(k) >= 2 * _PIECE else 0
        for a, b, n in ((0, whole, whole // _PIECE), (whole, len(k), 1)):
            if a == b:
                continue
            out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                grouped.expand(n, -1, -1, -1),
                k[a:b].view(n, -1, heads, dim).transpose(1, 2),
                v[a:b].view(n, -1, heads, dim).transpose(1, 2),
            )
            outs.append(out)
            lses.append(lse.view(n, heads, -1))
    if len(outs) == 1 and len(outs[0]) == 1:
        return outs[0].reshape(query.shape)
    shares = torch.cat(lses).softmax(0)  # [pieces, H, G]
    return (torch.cat(outs) * shares[..., None]).sum(0).to(query.dtype).view(query.shape)


def _stretches(
    span: Span, low: int, high: int, keys: Tensor, values: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of positions [low, high) in as few stretches [T, H, d] as can be had without
    a copy, or in one copy where they lie in too many places."""
    if low >= high:
        return []
    pieces = span.table.pieces(low, high, _MOST_RUNS)
    if pieces is None:
        return [(gather(keys, span.table, low, high), gather(values, span.table, low, high))]
    return [(keys[slot : slot + n], values[slot : slot + n]) for slot, n in pieces]


def _merge(out: Tensor, lse: Tensor, other: Tensor, other_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over two stretches of keys from that over each: outputs [n, Hq, d] and
    log-sum-exps [n, Hq]."""
    share = torch.sigmoid(other_lse - lse)[..., None].to(out.dtype)
    return torch.lerp(out, other, share), torch.logaddexp(lse, other_lse)


def _attend_windowed(
    span: Span, window: int, query: Tensor, keys: Tensor, values: Tensor, out: Tensor
) -> None:
    for first in range(0, span.n, _MASK_ROWS):
        n = min(_MASK_ROWS, span.n - first)
        tile = Span(span.row + first, n, span.start + first, span.table)
        low = tile.first_visible(window)
        seen = causal_mask(tile, low, window, query.device)
        mask = torch.zeros(seen.shape, dtype=query.dtype).masked_fill_(~seen, -torch.inf)
        k, v = read(keys, span.table, low, tile.end), read(values, span.table, low, tile.end)
        rows = slice(tile.row, tile.row + n)
        out[rows] = _flash(query[rows], k, v, mask=mask)[0]


def plan(spans: Sequence[Span], window: int | None) -> CpuPlan:
    """Describe a step's rows; ``window`` is the number of last positions seen, None for all."""
    singles = tuple(span for span in spans if span.n == 1)
    seen_tokens = sum(span.end - span.first_visible(window) for span in singles)
    together = len(singles) >= _TOGETHER_ROWS and seen_tokens >= _TOGETHER_TOKENS
    return CpuPlan(
        spans=tuple(span for span in spans if span.n > 1 or not together),
        singles=singles,
        decodes=torch_cpu_decode.plan(singles, window) if together else None,
        window=window,
    )
