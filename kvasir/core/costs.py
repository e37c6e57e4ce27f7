"""The cost of a step, fitted while running:

    t = a + b·n_prefill + c·Σ n·context + d·n_decode + e·Σ context

with n tokens of a sequence that is behind by more than one (its mean context counted per token),
and one token of each sequence that is behind by one. Coefficients are never negative. Observations
are forgotten exponentially, and outliers are ignored unless they persist.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

N_TERMS = 5
_MOST_TOKENS = 2**31
_LEARNING_STEPS = 64  # after each of which the costs are solved for; later only
_SOLVE_EVERY = 8  # steps
_PERSISTENT = 5  # outliers in a row that are taken for the truth
Vector = tuple[float, float, float, float, float]

# Seconds; a slow laptop running a small model. Only the first few steps depend on it.
PRIOR: Vector = (5e-3, 4e-4, 5e-8, 1e-3, 1e-7)


@dataclass(frozen=True, slots=True)
class StepShape:
    """What a step computes, as far as its cost depends on it."""

    n_prefill: int = 0
    prefill_context: float = 0.0  # Σ n · mean context, token pairs
    n_decode: int = 0
    decode_context: float = 0.0  # Σ context, tokens

    def with_work(self, n_tokens: int, start: int) -> StepShape:
        """This shape and one more sequence that computes ``n_tokens`` from position ``start``."""
        if n_tokens == 1:
            return StepShape(
                self.n_prefill,
                self.prefill_context,
                self.n_decode + 1,
                self.decode_context + start,
            )
        pairs = n_tokens * (start + n_tokens / 2)
        return StepShape(
            self.n_prefill + n_tokens,
            self.prefill_context + pairs,
            self.n_decode,
            self.decode_context,
        )

    @property
    def features(self) -> Vector:
        """The factors of a, b, c, d, e."""
        return (
            1.0,
            float(self.n_prefill),
            self.prefill_context,
            float(self.n_decode),
            self.decode_context,
        )


@dataclass(frozen=True, slots=True)
class StepCosts:
    """The five coefficients, in seconds, and what follows from them."""

    coefficients: Vector = PRIOR

    def step_s(self, shape: StepShape) -> float:
        """Predicted seconds of a step."""
        return sum(k * x for k, x in zip(self.coefficients, shape.features, strict=True))

    def prefill_s(self, n_tokens: float, start: float) -> float:
        """Predicted seconds that reading ``n_tokens`` from position ``start`` adds to steps."""
        _, b, c, _, _ = self.coefficients
        return b * n_tokens + c * n_tokens * (start + n_tokens / 2)

    def decode_s(self, context: float) -> float:
        """Predicted seconds that one sequence behind by one adds to a step."""
        _, _, _, d, e = self.coefficients
        return d + e * context

    def prefill_tokens(self, seconds: float, start: int) -> int:
        """How many tokens from position ``start`` on can be read in ``seconds``; at most 2³¹."""
        _, b, c, _, _ = self.coefficients
        if seconds <= 0:
            return 0
        # The positive root of c n²/2 + linear n = seconds, in the form that also holds for c = 0.
        linear = b + c * start
        divisor = linear + math.sqrt(linear * linear + 2 * c * seconds)
        if divisor * _MOST_TOKENS <= 2 * seconds:
            return _MOST_TOKENS
        return int(2 * seconds / divisor)


class CostFit:
    """Learns ``StepCosts`` from observed steps by non-negative least squares."""

    def __init__(self, prior: Vector = PRIOR, *, memory_steps: float = 200.0) -> None:
        self.costs = StepCosts(prior)
        self._keep = 1.0 - 1.0 / memory_steps
        # Features are scaled by what the prior says they cost, so that all weigh alike.
        self._scale = [max(k, 1e-12) for k in prior]
        self._gram = [[0.0] * N_TERMS for _ in range(N_TERMS)]
        self._moment = [0.0] * N_TERMS
        for i in range(N_TERMS):  # a weak pull to the prior, forgotten with the first steps
            self._gram[i][i] = 1e-6
            self._moment[i] = 1e-6
        self._solution = [1.0] * N_TERMS
        self._seen = 0
        self._refused_in_a_row = 0
        self._typical_error = 0.5  # relative, exponentially averaged

    def alone_s(self, n_tokens: int, start: int) -> float:
        """Predicted seconds of a step that reads so many tokens from ``start`` and nothing else."""
        return self.costs.step_s(StepShape()) + self.costs.prefill_s(n_tokens, start)

    def observe(self, shape: StepShape, seconds: float) -> None:
        """Take a step's duration into account, unless it is an outlier."""
        if not (math.isfinite(seconds) and seconds > 0):
            return
        predicted = self.costs.step_s(shape)
        error = abs(seconds - predicted) / max(predicted, 1e-9)
        if self._is_outlier(error):
            self._refused_in_a_row += 1
            return
        if self._refused_in_a_row:
            self._forget_most()
        self._seen += 1
        self._typical_error = 0.95 * self._typical_error + 0.05 * min(error, 1.0)
        self._accumulate(shape, seconds)
        # one step changes little of what many have taught, and solving costs more than it brings
        if self._seen <= _LEARNING_STEPS or self._seen % _SOLVE_EVERY == 0:
            self._solve()

    def _is_outlier(self, error: float) -> bool:
        """Far off, once enough was seen; several in a row are no accident."""
        limit = max(1.0, 6.0 * self._typical_error)
        persistent = self._refused_in_a_row >= _PERSISTENT
        return self._seen >= 20 and error > limit and not persistent

    def _forget_most(self) -> None:
        """What looked like outliers persisted: the machine has changed, so learn afresh."""
        if self._refused_in_a_row >= _PERSISTENT:
            self._gram = [[x * 0.01 for x in row] for row in self._gram]
            self._moment = [x * 0.01 for x in self._moment]
            self._seen = 0
        self._refused_in_a_row = 0

    def _accumulate(self, shape: StepShape, seconds: float) -> None:
        # Relative errors count, so that short steps are predicted as well as long ones.
        weight = 1.0 / seconds
        x = [f * s * weight for f, s in zip(shape.features, self._scale, strict=True)]
        for i in range(N_TERMS):
            row = self._gram[i]
            for j in range(N_TERMS):
                row[j] = row[j] * self._keep + x[i] * x[j]
            self._moment[i] = self._moment[i] * self._keep + x[i]

    def _solve(self) -> None:
        """Coordinate descent on the normal equations, clipped at zero, from the last solution."""
        z = self._solution
        for _ in range(30):
            moved = 0.0
            for i in range(N_TERMS):
                diagonal = self._gram[i][i]
                if diagonal <= 0:
                    continue
                residual = self._moment[i] - _dot(self._gram[i], z)
                new = max(0.0, z[i] + residual / diagonal)
                moved = max(moved, abs(new - z[i]))
                z[i] = new
            if moved < 1e-6:
                break
        a, b, c, d, e = (k * s for k, s in zip(z, self._scale, strict=True))
        self.costs = StepCosts((a, b, c, d, e))


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))
