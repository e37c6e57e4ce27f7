"""How far one computation's predictions are from another's, over stretches of a text.

Invariant: sums are kept, never means, so that a stretch may be added slice by slice; every figure
is of the same positions for both computations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

FIRST_TOKENS = 512
MIDDLE = range(3584, 4096)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One stretch: what the reference and the other computation predict."""

    n_tokens: int
    reference_perplexity: float
    perplexity: float
    change_percent: float  # of the perplexity, against the reference
    kl_nats: float  # mean of KL(reference || other)
    top1_agreement: float  # share of positions with the same most likely token


def stretches(window: int) -> Mapping[str, range]:
    """The positions that are scored, by name: each predicts the token after it."""
    last = range(window * 3 // 4, window - 1)
    found = {"first": range(min(FIRST_TOKENS, last.start))}
    if MIDDLE.stop <= last.start:
        found["middle"] = MIDDLE
    return {**found, "last": last}


class Tally:
    """Sums over the positions of one stretch."""

    def __init__(self) -> None:
        self._n = 0
        self._agreed = 0
        self._reference_nats = self._nats = self._kl = 0.0

    def add(self, reference: Tensor, other: Tensor, targets: Tensor) -> None:
        """Take in the logits [R, V] of both, and the tokens [R] (int64) that really followed."""
        p, q = reference.float().log_softmax(-1), other.float().log_softmax(-1)
        at = targets[:, None]
        self._n += len(targets)
        self._agreed += int((p.argmax(-1) == q.argmax(-1)).sum())
        self._reference_nats -= float(p.gather(1, at).double().sum())
        self._nats -= float(q.gather(1, at).double().sum())
        self._kl += float((p.exp() * (p - q)).sum(-1).double().sum())

    def score(self) -> Score:
        """The figures so far. Raises ``ValueError`` where there are none."""
        if not self._n:
            raise ValueError("no position was scored")
        reference, other = self._reference_nats / self._n, self._nats / self._n
        return Score(
            n_tokens=self._n,
            reference_perplexity=_exp(reference),
            perplexity=_exp(other),
            change_percent=100 * (_exp(other - reference) - 1),
            kl_nats=max(0.0, self._kl / self._n),
            top1_agreement=self._agreed / self._n,
        )


def _exp(x: float) -> float:
    return math.exp(min(x, 700.0))


def matching_rows(hidden: Mapping[str, Tensor], slice_rows: int) -> list[tuple[str, slice]]:
    """Slices of at most ``slice_rows`` rows that cover every stretch of ``hidden``."""
    return [
        (name, slice(at, min(at + slice_rows, len(rows))))
        for name, rows in hidden.items()
        for at in range(0, len(rows), slice_rows)
    ]


def targets_of(tokens: Tensor, stretch: range, rows: slice) -> Tensor:
    """The tokens that follow the positions ``rows`` of ``stretch``."""
    return tokens[stretch.start + rows.start + 1 : stretch.start + rows.stop + 1].to(torch.int64)
