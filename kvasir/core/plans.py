"""What the scheduler and the runner say to each other, once per step. Frozen values.

A plan carries counts, slots and new token ids, never tensors, and only what changed since the plan
before: a runner remembers each sequence's block table from its ``Join`` and appends the
``new_blocks`` of each ``Work``. So a step over a 200,000-token sequence is as cheap to plan as one
over 2,000.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from kvasir.core.events import TokenScore
from kvasir.core.requests import Sampling


@dataclass(frozen=True, slots=True)
class Run:
    """``count`` blocks that lie side by side in the pool, from block ``first`` on."""

    first: int
    count: int


def as_runs(blocks: Sequence[int]) -> tuple[Run, ...]:
    """A block table as runs of side by side blocks, in order."""
    runs: list[Run] = []
    for block in blocks:
        if runs and runs[-1].first + runs[-1].count == block:
            runs[-1] = Run(runs[-1].first, runs[-1].count + 1)
        else:
            runs.append(Run(block, 1))
    return tuple(runs)


@dataclass(frozen=True, slots=True)
class Copy:
    """Copy the KV of the first ``n_tokens`` of block ``source`` into block ``target``.

    All copies of a plan happen before anything of that plan is computed or written.
    """

    source: int
    target: int
    n_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """Compute ``tokens`` at positions ``start`` onwards into block ``scratch``, behind the blocks
    ``before``, and compare with what block ``block`` holds."""

    before: tuple[Run, ...]
    start: int
    tokens: tuple[int, ...]
    block: int
    scratch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Join:
    """A sequence that the runner has not met, or has forgotten (after a preemption).

    ``blocks`` is its whole block table at this moment and ``history`` the token ids from position 0
    up to the first ``Work`` (empty unless the sampling is penalised). Of ``history``, the first
    ``n_prompt`` are the prompt's. ``namespace`` is there for the tagged virtual runner.
    """

    seq: int
    choice: int
    namespace: bytes
    sampling: Sampling
    blocks: tuple[Run, ...]
    n_prompt: int
    history: Sequence[int] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One sequence's share of a step: compute ``tokens`` at positions ``start`` onwards.

    The runner cuts its block table to ``keep_blocks`` entries and appends ``new_blocks``: blocks
    change hands when a follower comes to share its leader's, and grow as the sequence does.
    ``sample`` asks for the token after the last position. ``score`` asks for the log-probabilities
    of these prompt tokens, with that many alternatives.
    """

    seq: int
    start: int
    tokens: Sequence[int]  # [n]
    keep_blocks: int
    new_blocks: tuple[Run, ...] = ()
    sample: bool = False
    score: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """Everything the runner does in one step: leaves, joins, copies, then the works at once."""

    number: int
    works: tuple[Work, ...] = ()
    joins: tuple[Join, ...] = ()
    copies: tuple[Copy, ...] = ()
    leaves: tuple[int, ...] = ()  # sequences to forget
    predicted_s: float = 0.0
    patience_s: float = math.inf  # what is left of a step may keep somebody who comes waiting

    @property
    def empty(self) -> bool:
        """Whether there is nothing to compute."""
        return not self.works


@dataclass(frozen=True, slots=True)
class Sampled:
    """The token chosen after a work with ``sample``."""

    seq: int
    score: TokenScore
    scored: bool = False  # whether the log-probabilities in ``score`` were asked for and are filled


@dataclass(frozen=True, slots=True)
class PromptScores:
    """The scores of a scored work's tokens; those of position 0 are left out."""

    seq: int
    start: int
    scores: tuple[TokenScore, ...]


@dataclass(frozen=True, slots=True)
class Fault:
    """A sequence whose share of the step failed; the others are not touched."""

    seq: int
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What came of a plan, and how long it took."""

    elapsed_s: float
    sampled: tuple[Sampled, ...] = ()
    prompt_scores: tuple[PromptScores, ...] = ()
    faults: tuple[Fault, ...] = ()
    given_up: bool = False  # leaves, joins and copies were carried out; of the works only faults
