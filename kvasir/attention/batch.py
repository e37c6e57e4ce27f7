"""A step's rows as every layer reads them, described once.

Invariant: built once per step and read by all layers; the host's work to build it grows with the
number of sequences and new rows, not with the length of what came before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from kvasir.kernels.paging import Span


class AttentionPlan(Protocol):
    """A kernel's own description of a step's rows under one window."""

    def attend(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Causal attention of ``query`` [N, Hq, d] over the planes [n_slots, H, d]: [N, Hq, d]."""
        ...


Planner = Callable[[Sequence[Span], int | None], AttentionPlan]


@dataclass(frozen=True, slots=True)
class AttentionBatch:
    """Rows of one step: where they stand, where their KV goes, and how each is attended."""

    positions: Tensor  # [N] int64
    slots: Tensor  # [N] int64, of the pool, for the rows' own KV
    spans: tuple[Span, ...]
    plans: Mapping[int | None, AttentionPlan]  # by window

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, window: int | None) -> Tensor:
        """Attend every row over one layer's planes, in which the rows' own KV is written."""
        return self.plans[window].attend(query, keys, values)


def describe(
    spans: Sequence[Span], planner: Planner, windows: Iterable[int | None], device: torch.device
) -> AttentionBatch:
    """Build the batch for ``spans``, whose rows follow each other without a gap from 0 on.

    ``windows`` are the distinct windows of the model's layers. A window that no row outgrows yet
    shares the plan of full attention.
    """
    longest = max(span.end for span in spans)
    plans: dict[int | None, AttentionPlan] = {}
    full: AttentionPlan | None = None
    for window in windows:
        if window is None or longest <= window:
            full = full or planner(spans, None)
            plans[window] = full
        else:
            plans[window] = planner(spans, window)
    positions = np.concatenate([np.arange(span.start, span.end) for span in spans])
    slots = np.concatenate([span.table.slots(span.start, span.n) for span in spans])
    return AttentionBatch(
        positions=torch.from_numpy(positions).to(device),
        slots=torch.from_numpy(slots).to(device),
        spans=tuple(spans),
        plans=plans,
    )
