"""How long the next step may last: one budget, or longer where nobody would notice.

Prompts are read faster in large chunks, because every chunk goes through all the keys before it.
While no answer is running, nobody sees how prompts are cut into steps, so a step may then last
until the first of them could be through. If somebody comes who would wait too long for its end, the
step is given up and what it computed is lost. Nothing is risked again before 24 times what was lost
has been computed, so that at most 4 % of the time go for nothing, whatever comes when.
"""

from __future__ import annotations

import math

from kvasir.core.costs import StepCosts, StepShape
from kvasir.sched.limits import Limits
from kvasir.sched.sequence import Sequence
from kvasir.sched.shares import first_through_s

_REPAID = 24.0


class Pace:
    """The time that steps are given. Told of every step that has ended."""

    def __init__(self, limits: Limits) -> None:
        self._budget_s = limits.step_budget_s
        self._patience_s = limits.patience * limits.step_budget_s
        self._longest_s = limits.long_stretch * limits.step_budget_s
        self._owed_s = 0.0

    def patience_s(self, budget_s: float) -> float:
        """How long somebody who comes may be kept waiting by the rest of a step of ``budget_s``.
        A step that was not made longer is never given up: it could not be shorter next time."""
        return self._patience_s if budget_s > self._patience_s else math.inf

    def budget_s(self, reading: list[Sequence], costs: StepCosts, *, watched: bool) -> float:
        """Seconds for a step in which ``reading`` are read; ``watched`` where answers are running
        or requests wait, which then have a step of one budget."""
        if watched or not reading:
            return self._budget_s
        most_s = self._patience_s if self._owed_s > 0 else self._longest_s
        unnoticed_s = costs.step_s(StepShape()) + first_through_s(reading, costs)
        return max(self._budget_s, min(unnoticed_s, most_s))

    def ended(self, elapsed_s: float, *, given_up: bool) -> None:
        """A step has ended after ``elapsed_s``."""
        if given_up:
            self._owed_s += elapsed_s * _REPAID
        else:
            self._owed_s = max(0.0, self._owed_s - elapsed_s)
