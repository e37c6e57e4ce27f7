"""Attention over the paged pool, written to be read: the oracle of every faster kernel.

One sequence and one row at a time in effect: gather the keys that the row sees, take the softmax
of the scaled dot products, average the values. Any device; computes in ``compute_dtype``, float64
by default.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvasir.kernels.paging import Span


@dataclass(frozen=True, slots=True)
class ReferencePlan:
    """The rows of a step, to be attended one sequence after the other."""

    spans: tuple[Span, ...]
    window: int | None
    compute_dtype: torch.dtype = torch.float64

    def attend(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Causal grouped-query attention.

        ``query`` [N, Hq, d]; ``keys`` and ``values`` [n_slots, H, d], one layer's planes, with the
        new rows already written. Returns [N, Hq, d] in ``query``'s dtype.
        """
        out = torch.empty_like(query)
        group = query.shape[1] // keys.shape[1]
        scale = query.shape[2] ** -0.5
        for span in self.spans:
            slots = torch.from_numpy(span.table.slots(0, span.end)).to(query.device)
            k = keys[slots].to(self.compute_dtype).repeat_interleave(group, 1)  # [T, Hq, d]
            v = values[slots].to(self.compute_dtype).repeat_interleave(group, 1)
            q = query[span.row : span.row + span.n].to(self.compute_dtype)  # [n, Hq, d]
            scores = torch.einsum("nhd,thd->hnt", q, k) * scale
            at = torch.arange(span.start, span.end, device=query.device)[:, None]
            seen_at = torch.arange(span.end, device=query.device)[None]
            hidden = seen_at > at
            if self.window is not None:
                hidden = hidden | (seen_at <= at - self.window)
            weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
            mixed = torch.einsum("hnt,thd->nhd", weights, v)
            out[span.row : span.row + span.n] = mixed.to(query.dtype)
        return out


def plan(spans: Sequence[Span], window: int | None) -> ReferencePlan:
    """Describe a step's rows; ``window`` is the number of last positions seen, None for all."""
    return ReferencePlan(tuple(spans), window)
