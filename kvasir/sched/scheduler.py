"""Plan and commit: what each step computes, and what came of it.

Invariants: a sequence is in exactly one of waiting and running; a running one holds a lease with
room for all its tokens; every plan is followed by exactly one commit; planning costs depend on the
number of sequences and of new tokens, never on how long a sequence is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from kvasir.core.clock import Clock
from kvasir.core.costs import StepCosts, StepShape
from kvasir.core.events import (
    Event,
    Finished,
    FinishReason,
    Progress,
    RefusalKind,
    Refused,
    Scored,
    Started,
    Token,
)
from kvasir.core.plans import (
    Copy,
    Join,
    PromptScores,
    Sampled,
    StepPlan,
    StepResult,
    Work,
    as_runs,
)
from kvasir.core.requests import Request
from kvasir.core.tiers import Tier
from kvasir.kv.cache import KvCache
from kvasir.sched.admission import Admission, refuse_oversized, refuse_queued
from kvasir.sched.limits import Limits
from kvasir.sched.pace import Pace
from kvasir.sched.sequence import Sequence
from kvasir.sched.shares import divide, level
from kvasir.sched.waiting import WaitingQueue


@dataclass(frozen=True, slots=True)
class Submit:
    """A new request; ``keys`` are those of its prompt's full blocks, made off this thread."""

    request: Request
    keys: tuple[bytes, ...]
    arrived_s: float


@dataclass(frozen=True, slots=True)
class Abort:
    """End a request; unknown ids are ignored."""

    request_id: str


Command = Submit | Abort


class Scheduler:
    """Decides who computes what next. One thread owns it."""

    def __init__(self, cache: KvCache, limits: Limits, clock: Clock) -> None:
        self.cache = cache
        self.limits = limits
        self.counts: Counter[str] = Counter()  # computed, reused, generated, preemptions, …
        self.reused_by_tier: Counter[Tier] = Counter()  # tokens
        self._clock = clock
        self._fit = cache.fit
        self._pace = Pace(limits)
        self._waiting = WaitingQueue(limits.max_waiting, limits.max_waiting_tokens)
        self._admission = Admission(cache, self._waiting, limits)
        self._running: dict[int, Sequence] = {}
        self._events: list[Event] = []  # said outside of commit, told with the next take or commit
        self._leaves: list[int] = []
        self._next_id = 0
        self._step = 0
        self._stopping = False

    # what there is -------------------------------------------------------------------------------

    @property
    def costs(self) -> StepCosts:
        """The cost model as fitted so far."""
        return self._fit.costs

    @property
    def n_running(self) -> int:
        """Sequences that hold blocks."""
        return len(self._running)

    @property
    def n_waiting(self) -> int:
        """Sequences that wait for blocks, for a leader, or for a place."""
        return len(self._waiting)

    @property
    def waiting_tokens(self) -> int:
        """Prompt tokens of what waits."""
        return self._waiting.n_tokens

    @property
    def idle(self) -> bool:
        """Whether there is nothing to plan."""
        return not self._running and not len(self._waiting)

    # commands ------------------------------------------------------------------------------------

    def take(self, commands: Iterable[Command]) -> list[Event]:
        """Accept submissions and aborts; says at once what is refused or ended."""
        for command in commands:
            if isinstance(command, Submit):
                self._submit(command)
            else:
                self._abort(command.request_id)
        return self._flush()

    def stop(self) -> None:
        """Refuse whatever comes from now on; what was admitted or waits is finished."""
        self._stopping = True

    def abort_all(self) -> list[Event]:
        """End everything now, as CANCELLED."""
        for sequence in [*self._running.values(), *self._waiting]:
            self._end(sequence, FinishReason.CANCELLED)
        return self._flush()

    # a step --------------------------------------------------------------------------------------

    def plan(self) -> StepPlan:
        """Who computes what in the next step; empty when nothing can be computed."""
        self._follow_restores()  # first, because who is admitted looks at how far the others are
        copies = self._start_admitted()
        decoding = [s for s in self._running.values() if s.behind == 1]
        decoding = self._with_room(decoding)
        shape = StepShape()
        for sequence in decoding:
            shape = shape.with_work(1, sequence.computed)
        spent_s = self.costs.step_s(shape)
        reading = [s for s in self._running.values() if s.behind > 1 and s.reach > 0]
        # Prompt scores are computed after the last layer, where a step can no longer be given up.
        scored = any(s.scored for s in reading)
        watched = bool(decoding) or len(self._waiting) > 0 or scored
        budget_s = self._pace.budget_s(reading, self.costs, watched=watched)
        left_s = max(budget_s - spent_s, budget_s * self.limits.reading_share)
        works = [(s, 1) for s in decoding]
        for share in divide(left_s, reading, self.costs, self.limits.max_step_tokens):
            works.append((share.sequence, share.n_tokens))
            shape = shape.with_work(share.n_tokens, share.sequence.computed)
        self._step += 1
        leaves, self._leaves = tuple(self._leaves), []
        return StepPlan(
            number=self._step,
            leaves=leaves,
            joins=tuple(self._join(s) for s, _ in works if not s.joined),
            copies=tuple(copy for seq, copy in copies.items() if seq in self._running),
            works=tuple(self._work(s, n) for s, n in works),
            predicted_s=self.costs.step_s(shape),
            patience_s=self._pace.patience_s(budget_s),
        )

    def commit(self, plan: StepPlan, result: StepResult) -> list[Event]:
        """Take note of what ``plan`` has computed; says what happened to whom."""
        if not plan.empty:
            self._observe(plan, result)
        sampled = {s.seq: s for s in result.sampled}
        faults = {f.seq: f.message for f in result.faults}
        for scores in result.prompt_scores:
            sequence = self._running.get(scores.seq)
            if sequence is not None:
                self._report_scores(sequence, scores)
        for work in plan.works:
            sequence = self._running.get(work.seq)
            if sequence is None:
                continue  # ended since the plan was made
            if work.seq in faults:
                self._end(sequence, FinishReason.FAILED, message=faults[work.seq])
            elif result.given_up:
                self._copied(sequence)
            else:
                self._advance(sequence, work, sampled.get(work.seq))
        return self._flush()

    # inside: requests ----------------------------------------------------------------------------

    def _submit(self, command: Submit) -> None:
        request = command.request
        refused = (
            Refused(request.id, RefusalKind.STOPPING, "The server is shutting down.")
            if self._stopping
            else refuse_oversized(request, self.limits, self.cache)
            or refuse_queued(request, self._waiting, self._running.values(), self.costs)
        )
        if refused is not None:
            self.counts[f"refused_{refused.kind}"] += 1
            self._say(refused)
            return
        chain = self.cache.chain(request.namespace)
        for choice in range(request.n):
            self._next_id += 1
            sequence = Sequence(self._next_id, request, choice, chain, list(command.keys))
            sequence.arrived_s = command.arrived_s
            if not choice and not sequence.scored:
                self._prefetch(sequence)
            self._waiting.put(sequence)

    def _prefetch(self, sequence: Sequence) -> None:
        """Begin to load what is stored of a prompt while it waits, unless that would take the room
        of those that wait before it."""
        earlier = self.cache.geometry.blocks_for(self._waiting.n_tokens)
        spare = len(self._running) + earlier
        sequence.restore = self._admission.restore(sequence, spare_blocks=spare)

    def _abort(self, request_id: str) -> None:
        for sequence in [*self._running.values(), *self._waiting]:
            if sequence.request.id == request_id:
                self._end(sequence, FinishReason.CANCELLED)

    def _end(
        self,
        sequence: Sequence,
        reason: FinishReason,
        *,
        stop_token: int | None = None,
        message: str = "",
    ) -> None:
        completion = sequence.generated
        if sequence.id in self._running:
            self._leave(sequence)
        else:
            self._waiting.remove(sequence)
        self.counts[f"finished_{reason}"] += 1
        usage = sequence.usage(self._clock.now_s(), completion)
        self._say(
            Finished(sequence.request.id, sequence.choice, reason, usage, stop_token, message)
        )

    def _leave(self, sequence: Sequence) -> None:
        """Give up the lease; what was sealed, and the tail, stay for reuse."""
        del self._running[sequence.id]
        lease, sequence.lease = sequence.lease, None
        if lease is not None:
            self.cache.release(lease, sequence.tokens, sequence.computed)
        if sequence.joined:
            self._leaves.append(sequence.id)
            sequence.joined = False

    # inside: planning ----------------------------------------------------------------------------

    def _start_admitted(self) -> dict[int, Copy]:
        copies: dict[int, Copy] = {}
        for sequence, copy in self._admission.admit(self._running.values()):
            level(sequence, (s for s in self._running.values() if s.behind > 1))
            self._running[sequence.id] = sequence
            if copy is not None:
                copies[sequence.id] = copy
            if not sequence.preemptions:
                sequence.admitted_s = self._clock.now_s()
                self.counts["reused_tokens"] += sequence.reused
                self.reused_by_tier.update(sequence.reused_by_tier)
                self._say(Started(sequence.request.id, sequence.choice, sequence.reused))
        return copies

    def _follow_restores(self) -> None:
        """Let those who compute towards stored KV share what has arrived of it."""
        for sequence in self._running.values():
            lease = sequence.lease
            if lease is None or lease.restore is None:
                continue
            before = Counter(lease.reused_by_tier)
            computed = self.cache.follow(lease, sequence.tokens, sequence.computed)
            if not sequence.preemptions:
                sequence.reused += computed - sequence.computed
                self.counts["reused_tokens"] += computed - sequence.computed
                self.reused_by_tier.update(lease.reused_by_tier - before)
            sequence.computed = computed
            if lease.restore is not None and not sequence.reach:
                self.cache.meet(lease, lease.restore, computed)

    def _with_room(self, decoding: list[Sequence]) -> list[Sequence]:
        """Those of ``decoding`` whose next token has a slot; the youngest give way if need be."""
        able: list[Sequence] = []
        for sequence in sorted(decoding, key=lambda s: (s.arrived_s, s.id)):
            while sequence.id in self._running and not self._grow(sequence):
                if self.cache.give_way():
                    continue  # running answers come before what is loaded ahead
                self._preempt(max(self._running.values(), key=lambda s: (s.arrived_s, s.id)))
            if sequence.id in self._running:
                able.append(sequence)
        return [s for s in able if s.id in self._running]

    def _grow(self, sequence: Sequence) -> bool:
        if sequence.lease is None:
            return False
        room = min(sequence.request.max_tokens - sequence.generated, self.limits.answer_room_tokens)
        wish = max(0, room) // self.cache.geometry.block_tokens
        return self.cache.grow(sequence.lease, len(sequence.tokens), wish_blocks=wish)

    def _preempt(self, sequence: Sequence) -> None:
        """Give up the blocks and wait again; the tokens stay, so the result will be the same."""
        self._leave(sequence)
        sequence.preemptions += 1
        sequence.computed = 0
        sequence.matched_blocks = 0
        sequence.restore = None
        self.cache.chain(sequence.request.namespace).extend(
            sequence.keys, sequence.tokens, self.cache.geometry.block_tokens
        )
        self.counts["preemptions"] += 1
        self._waiting.put(sequence)

    def _join(self, sequence: Sequence) -> Join:
        sequence.joined = True
        sampling = sequence.request.sampling
        blocks: tuple[int, ...] = ()
        if sequence.lease is not None:
            sequence.lease.take_changes()
            blocks = tuple(sequence.lease.blocks)
        return Join(
            seq=sequence.id,
            choice=sequence.choice,
            namespace=sequence.request.namespace,
            sampling=sampling,
            blocks=as_runs(blocks),
            n_prompt=sequence.n_prompt,
            history=tuple(sequence.tokens[: sequence.computed]) if sampling.penalised else (),
        )

    def _work(self, sequence: Sequence, n_tokens: int) -> Work:
        start = sequence.computed
        keep, new = sequence.lease.take_changes() if sequence.lease is not None else (0, ())
        reads_all = n_tokens == sequence.behind
        scored = sequence.scored and start < sequence.n_prompt
        return Work(
            seq=sequence.id,
            start=start,
            tokens=sequence.tokens[start : start + n_tokens],
            keep_blocks=keep,
            new_blocks=new,
            sample=reads_all and sequence.request.max_tokens > 0,
            score=sequence.request.prompt_logprobs if scored else None,
        )

    # inside: committing --------------------------------------------------------------------------

    def _observe(self, plan: StepPlan, result: StepResult) -> None:
        shape = StepShape()
        for work in plan.works:
            shape = shape.with_work(len(work.tokens), work.start)
        self._pace.ended(result.elapsed_s, given_up=result.given_up)
        if result.given_up:
            self.counts["steps_given_up"] += 1
            return
        if plan.works and not result.faults:
            self._fit.observe(shape, result.elapsed_s)
        self.counts["steps"] += 1
        self.counts["computed_tokens"] += shape.n_prefill + shape.n_decode

    def _advance(self, sequence: Sequence, work: Work, sampled: Sampled | None) -> None:
        reading = work.start < sequence.n_prompt
        if sequence.behind > 1:
            sequence.served_s += self.costs.prefill_s(len(work.tokens), work.start)
        sequence.computed += len(work.tokens)
        self._copied(sequence)
        if sequence.lease is not None:
            self.cache.seal(sequence.lease, sequence.tokens, sequence.computed)
        if reading:
            self._report_progress(sequence)
        if sampled is not None:
            self._append(sequence, sampled)
        elif sequence.behind == 0:  # the prompt was only to be read
            self._end(sequence, FinishReason.LENGTH)

    def _copied(self, sequence: Sequence) -> None:
        if sequence.lease is not None:
            self.cache.copied(sequence.lease)

    def _append(self, sequence: Sequence, sampled: Sampled) -> None:
        token = sampled.score.token
        sequence.tokens.append(token)
        self.counts["generated_tokens"] += 1
        if not sequence.first_token_s:
            sequence.first_token_s = self._clock.now_s()
        if token in sequence.request.stop_token_ids:
            self._end(sequence, FinishReason.STOP, stop_token=token)
            return
        score = sampled.score if sampled.scored else None
        self._say(Token(sequence.request.id, sequence.choice, token, score))
        full = len(sequence.tokens) >= self.limits.window
        if sequence.generated >= sequence.request.max_tokens or full:
            self._end(sequence, FinishReason.LENGTH)

    def _report_progress(self, sequence: Sequence) -> None:
        readers = sum(1 for s in self._running.values() if s.behind > 1) or 1
        left_s = self.costs.prefill_s(sequence.behind, sequence.computed) * readers
        self._say(
            Progress(
                sequence.request.id,
                sequence.choice,
                min(sequence.computed, sequence.n_prompt),
                sequence.n_prompt,
                max(0, sequence.reused),
                left_s,
            )
        )

    def _report_scores(self, sequence: Sequence, scores: PromptScores) -> None:
        """Each position once, though a preempted prompt is read and scored again."""
        known = max(0, sequence.scored_to - scores.start)
        fresh = scores.scores[known:]
        if fresh:
            sequence.scored_to = scores.start + len(scores.scores)
            self._say(Scored(sequence.request.id, scores.start + known, fresh))

    def _say(self, event: Event) -> None:
        self._events.append(event)

    def _flush(self) -> list[Event]:
        events, self._events = self._events, []
        return events
