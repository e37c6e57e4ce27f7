"""How a loaded model computes a step: one face, in torch and in native code.

A ``Forward`` keeps no state between steps: KV lies in the pool, and which rows stand where is in
the spans. Used by one thread only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from kvasir.attention.batch import Planner, describe
from kvasir.kernels.paging import Span
from kvasir.model.decoder import Decoder
from kvasir.model.spec import ModelSpec
from kvasir.tiers.device import DevicePool

AfterLayer = Callable[[int], None]  # told the number of layers done; may raise to end the step


@dataclass(frozen=True, slots=True)
class Computed:
    """What a step gave."""

    hidden: Tensor  # [N, …], for ``Forward.logits``
    logits: Tensor  # [R, V] float32, of the rows that were asked


class Forward(Protocol):
    """A loaded model."""

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def exact(self) -> bool:
        """Whether the same tokens give the same bits however they are cut into steps."""
        ...

    def compute(
        self,
        tokens: Tensor,
        spans: Sequence[Span],
        pool: DevicePool,
        asked: Sequence[int] = (),
        after_layer: AfterLayer | None = None,
    ) -> Computed:
        """Compute ``tokens`` [N] (int64), whose rows ``spans`` place without gaps, write their KV
        into ``pool``, and give the logits of the rows ``asked``."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """The next-token logits [R, V] float32 after rows [R, …] of ``Computed.hidden``."""
        ...


class TorchForward:
    """A ``Decoder`` and the attention kernel that it uses: any device and dtype."""

    def __init__(self, decoder: Decoder, planner: Planner) -> None:
        self._decoder = decoder
        self._planner = planner

    @property
    def spec(self) -> ModelSpec:
        return self._decoder.spec

    @property
    def exact(self) -> bool:
        return False

    @torch.inference_mode()
    def compute(
        self,
        tokens: Tensor,
        spans: Sequence[Span],
        pool: DevicePool,
        asked: Sequence[int] = (),
        after_layer: AfterLayer | None = None,
    ) -> Computed:
        batch = describe(spans, self._planner, self._decoder.windows, pool.device)
        hidden = self._decoder.forward(tokens, batch, pool, after_layer)
        if not asked:
            return Computed(hidden, hidden.new_empty(0, self.spec.vocab_size, dtype=torch.float32))
        return Computed(hidden, self._decoder.logits(hidden[list(asked)]))

    def logits(self, hidden: Tensor) -> Tensor:
        return self._decoder.logits(hidden)
