"""Runners without a model: one with costs only, one that tags the pool's real bytes.

``VirtualRunner`` moves a virtual clock by what the step would cost and answers with tokens that are
a function of namespace, choice, position and the token before. ``TaggedRunner`` does what a model
does with KV: for each position it writes a tag, a function of namespace, tokens and position, into
the pool through the block table, and it answers from all the tags that it reads back the same way.
A block that is shared wrongly, freed too early, copied short or never written therefore changes
the answer, and ``expected_answer`` says without any cache what the answer has to be.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, MutableSequence, Sequence
from dataclasses import dataclass, field

from kvasir.core.clock import VirtualClock
from kvasir.core.costs import StepCosts, StepShape
from kvasir.core.events import TokenScore
from kvasir.core.plans import (
    Audit,
    Join,
    PromptScores,
    Run,
    Sampled,
    StepPlan,
    StepResult,
    Work,
)
from kvasir.core.ports import Interrupted, never

_LAYERS = 30  # between which a step can be given up
POISON = 0xDEAD_BEEF  # what a slot holds that nobody has written


def step_shape(plan: StepPlan) -> StepShape:
    """What ``plan`` computes, as far as its cost depends on it."""
    shape = StepShape()
    for work in plan.works:
        shape = shape.with_work(len(work.tokens), work.start)
    return shape


@dataclass(slots=True)
class _Known:
    """What a runner remembers of a sequence: how it joined, and its block table."""

    join: Join
    blocks: list[int] = field(default_factory=list)


class VirtualRunner:
    """Costs time on a virtual clock and nothing else.

    ``wait``, where given, is called with the seconds of each step (a server that is tried out over
    HTTP passes ``time.sleep``). ``before`` may raise, to try faults.
    """

    def __init__(
        self,
        costs: StepCosts | None = None,
        clock: VirtualClock | None = None,
        *,
        vocab_size: int = 256,
        wait: Callable[[float], None] | None = None,
        before: Callable[[StepPlan], None] | None = None,
    ) -> None:
        self.costs = costs or StepCosts()
        self.known: dict[int, _Known] = {}
        self._clock = clock
        self._vocab_size = vocab_size
        self._wait = wait
        self._before = before

    def run(self, plan: StepPlan, interrupted: Interrupted = never) -> StepResult:
        if self._before is not None:
            self._before(plan)
        for seq in plan.leaves:
            self.known.pop(seq, None)
        for join in plan.joins:
            self.known[join.seq] = _Known(join, _flat(join.blocks))
        for work in plan.works:
            blocks = self.known[work.seq].blocks
            blocks[work.keep_blocks :] = _flat(work.new_blocks)
        sampled = self._compute(plan)
        whole_s = self.costs.step_s(step_shape(plan))
        for done in range(1, _LAYERS + 1):
            self._pass(whole_s / _LAYERS)
            left_s = whole_s * (1 - done / _LAYERS)
            if left_s > plan.patience_s and interrupted():
                return StepResult(elapsed_s=whole_s - left_s, given_up=True)
        return StepResult(
            elapsed_s=whole_s,
            sampled=sampled,
            prompt_scores=tuple(
                _scores(w, self.known[w.seq].join.n_prompt)
                for w in plan.works
                if w.score is not None
            ),
        )

    def audit(self, audit: Audit) -> bool:
        return True

    def rest(self) -> bool:
        return False

    def _pass(self, seconds: float) -> None:
        if self._clock is not None:
            self._clock.advance(seconds)
        if self._wait is not None:
            self._wait(seconds)

    def _compute(self, plan: StepPlan) -> tuple[Sampled, ...]:
        sampled = []
        for work in plan.works:
            if work.sample:
                join = self.known[work.seq].join
                end = work.start + len(work.tokens)
                state = _mix(_salt(join.namespace), end, work.tokens[-1])
                sampled.append(_sampled(join, state, end, self._vocab_size))
        return tuple(sampled)


class TaggedRunner(VirtualRunner):
    """A virtual runner whose answers depend on every tag that it reads back from the pool.

    ``slots`` are the pool's bytes as unsigned 64-bit numbers, ``stride`` of them per token slot;
    the first of each slot is used. Any writable sequence does, also a view of a device pool's real
    memory.
    """

    def __init__(
        self,
        slots: MutableSequence[int] | memoryview,
        block_tokens: int,
        *,
        stride: int = 1,
        costs: StepCosts | None = None,
        clock: VirtualClock | None = None,
        vocab_size: int = 256,
    ) -> None:
        super().__init__(costs, clock, vocab_size=vocab_size)
        self._slots = slots
        self._stride = stride
        self._block_tokens = block_tokens

    def _compute(self, plan: StepPlan) -> tuple[Sampled, ...]:
        copied = [
            (self._place(copy.target, i), self._slots[self._place(copy.source, i)])
            for copy in plan.copies
            for i in range(copy.n_tokens)
        ]
        for place, tag in copied:
            self._slots[place] = tag
        for work in plan.works:
            self._write(work)
        return tuple(self._answer(work) for work in plan.works if work.sample)

    def audit(self, audit: Audit) -> bool:
        """Whether the tags follow from what is before them: exactly, tags are no arithmetic."""
        before = _flat(audit.before)
        if not before:  # the salt is not known here, so the first tag of a text is taken as right
            tag = int(self._slots[self._place(audit.block, 0)])
            rest = list(enumerate(audit.tokens))[1:]
        else:
            tag = int(self._slots[self._place(before[-1], self._block_tokens - 1)])
            rest = list(enumerate(audit.tokens))
        for offset, token in rest:
            tag = _mix(tag, audit.start + offset, token)
            self._slots[self._place(audit.scratch, offset)] = tag
            if tag != int(self._slots[self._place(audit.block, offset)]):
                return False
        return True

    def _write(self, work: Work) -> None:
        known = self.known[work.seq]
        salt = _salt(known.join.namespace)
        tag = self._read(known, work.start - 1) if work.start else salt
        for position, token in enumerate(work.tokens, start=work.start):
            tag = _mix(tag, position, token)
            self._slots[self._at(known, position)] = tag

    def _answer(self, work: Work) -> Sampled:
        known = self.known[work.seq]
        end = work.start + len(work.tokens)
        state = 0
        for position in range(end):
            state = _fold(state, self._read(known, position))
        return _sampled(known.join, state, end, self._vocab_size)

    def _read(self, known: _Known, position: int) -> int:
        return int(self._slots[self._at(known, position)])

    def _at(self, known: _Known, position: int) -> int:
        block = known.blocks[position // self._block_tokens]
        return self._place(block, position % self._block_tokens)

    def _place(self, block: int, offset: int) -> int:
        return (block * self._block_tokens + offset) * self._stride


def expected_answer(
    namespace: bytes,
    prompt: Sequence[int],
    n_tokens: int,
    *,
    seed: int = 0,
    choice: int = 0,
    vocab_size: int = 256,
) -> list[int]:
    """What the tagged runner has to answer: computed serially, without cache, blocks or batches."""
    salt = _salt(namespace)
    tag, state = salt, 0
    answer: list[int] = []
    tokens = list(prompt)
    position = 0
    while len(answer) < n_tokens:
        while position < len(tokens):
            tag = _mix(tag, position, tokens[position])
            state = _fold(state, tag)
            position += 1
        token = _mix(state, position, seed * 16 + choice) % vocab_size
        answer.append(token)
        tokens.append(token)
    return answer


def _sampled(join: Join, state: int, end: int, vocab_size: int) -> Sampled:
    token = _mix(state, end, join.sampling.seed * 16 + join.choice) % vocab_size
    top = join.sampling.top_logprobs
    alternatives = tuple(((token + i) % vocab_size, -0.5 - i) for i in range(top or 0))
    return Sampled(join.seq, TokenScore(token, -0.5, alternatives), top is not None)


def _scores(work: Work, n_prompt: int) -> PromptScores:
    """Scores that are a function of the token alone, for every prompt token but the first."""
    start = max(1, work.start)
    scores: list[TokenScore] = []
    for token in work.tokens[start - work.start : n_prompt - work.start]:
        logprob = -(1.0 + token % 7)
        scores.append(TokenScore(token, logprob, ((token, logprob),) if work.score else ()))
    return PromptScores(work.seq, start, tuple(scores))


def _flat(runs: Sequence[Run]) -> list[int]:
    return [block for run in runs for block in range(run.first, run.first + run.count)]


def _salt(namespace: bytes) -> int:
    return int.from_bytes(hashlib.sha256(namespace).digest()[:8], "little")


def _mix(state: int, position: int, value: int) -> int:
    """A 64-bit mixing function (the finaliser of SplitMix64 over a linear combination)."""
    x = (state + 0x9E3779B97F4A7C15 * (position + 1) + 0xD1B54A32D192ED03 * (value + 1)) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def _fold(state: int, tag: int) -> int:
    """Take one tag into an answer's state; depends on the order."""
    return ((state * 0x100000001B3) ^ tag) & _MASK


_MASK = 2**64 - 1
