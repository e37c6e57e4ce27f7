"""The loop: take what came in, plan, run, commit, deliver. Knows no threads and no tensors.

Whoever calls ``step`` owns all mutable state below it: the scheduler, the cache, the runner.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Sequence

from kvasir.core.clock import Clock
from kvasir.core.events import Event, FinishReason, RefusalKind
from kvasir.core.plans import Fault, StepPlan, StepResult
from kvasir.core.ports import EngineStatus, Interrupted, Runner, never
from kvasir.core.tiers import KeptRecord
from kvasir.kv.verification import Verification
from kvasir.sched.scheduler import Command, Scheduler

log = logging.getLogger(__name__)


class Engine:
    """One scheduler and one runner, stepped by hand or by ``engine.client``."""

    def __init__(
        self, sched: Scheduler, runner: Runner, clock: Clock, *, check_every_s: float = 10.0
    ) -> None:
        """The conservation check runs when the engine falls idle, at most every so often."""
        self.sched = sched
        self._runner = runner
        self._clock = clock
        self._check_every_s = check_every_s
        self._checked_s = -check_every_s
        self._verifications: list[Verification] = []
        self._waits = False

    @property
    def idle(self) -> bool:
        """Whether there is nothing to compute."""
        return self.sched.idle

    @property
    def waits(self) -> bool:
        """Whether all that is left to compute needs stored KV that is on its way."""
        return self._waits

    def step(
        self, commands: Iterable[Command] = (), interrupted: Interrupted = never
    ) -> list[Event]:
        """One step; says everything that happened, in order. A long step is given up when
        ``interrupted`` says that further commands have come."""
        events = self.sched.take(commands)
        self._poll()
        self._waits = False
        if not self.sched.idle:
            plan = self.sched.plan()
            self._waits = plan.empty and self.sched.cache.moving
            result = self._run(plan, interrupted)
            events += self.sched.commit(plan, result)
            self.sched.cache.save()  # also where no further step comes for a while
        if self.sched.idle and self._clock.now_s() - self._checked_s >= self._check_every_s:
            self.sched.cache.check(shelves=False)
            self._checked_s = self._clock.now_s()
        return events

    def rest(self) -> bool:
        """A little of what is best done while idle; False when nothing is left of it."""
        if self._runner.rest():
            return True
        return self.idle and self._audit()

    def verify(self, ended: Callable[[Sequence[KeptRecord]], None]) -> None:
        """Have every stored record read again; ``ended`` is told those that did not verify."""
        self._verifications.append(Verification(self.sched.cache.stored, ended))

    def kept(self) -> list[KeptRecord]:
        """All records of the stored tiers."""
        return self.sched.cache.stored.kept()

    def status(self) -> EngineStatus:
        """A snapshot; ``engine.client`` adds what concerns its thread."""
        counts, cache = self.sched.counts, self.sched.cache
        return EngineStatus(
            running=self.sched.n_running,
            waiting=self.sched.n_waiting,
            waiting_tokens=self.sched.waiting_tokens,
            blocks_total=cache.geometry.n_blocks,
            blocks_free=cache.free_blocks,
            blocks_idle=cache.idle_blocks,
            steps=counts["steps"],
            computed_tokens=counts["computed_tokens"],
            reused_tokens=counts["reused_tokens"],
            generated_tokens=counts["generated_tokens"],
            preemptions=counts["preemptions"],
            steps_given_up=counts["steps_given_up"],
            evicted_blocks=cache.evicted_blocks,
            reused_by_tier=dict(self.sched.reused_by_tier),
            restored_blocks=cache.restored_blocks,
            audited_blocks=cache.auditor.audited_blocks,
            audit_failures=cache.auditor.failures,
            tiers=cache.tiers(),
            finished={reason: counts[f"finished_{reason}"] for reason in FinishReason},
            refused={kind: counts[f"refused_{kind}"] for kind in RefusalKind},
            cost_coefficients=self.sched.costs.coefficients,
        )

    def _audit(self) -> bool:
        try:
            return self.sched.cache.audit(self._runner.audit)
        except Exception:  # it serves nobody: nobody may suffer from it
            log.exception("an audit failed to compute; it is left out")
            return True

    def _poll(self) -> None:
        cache = self.sched.cache
        for moved in cache.poll():
            if cache.keeping.transport.moved(moved):
                continue
            for verification in self._verifications:
                verification.moved(moved)
        self._verifications = [v for v in self._verifications if not v.done]

    def _run(self, plan: StepPlan, interrupted: Interrupted) -> StepResult:
        try:
            return self._runner.run(plan, interrupted)
        except Exception:
            log.exception("step %d failed; repeating it one sequence at a time", plan.number)
            return self._run_apart(plan)

    def _run_apart(self, plan: StepPlan) -> StepResult:
        """The same plan, one work at a time, so that a fault ends only the request it belongs to.

        Leaves, joins and copies go with every part: carrying them out again changes nothing.
        """
        results: list[StepResult] = []
        for work in plan.works:
            joins = tuple(join for join in plan.joins if join.seq == work.seq)
            part = dataclasses.replace(plan, works=(work,), joins=joins)
            try:
                results.append(self._runner.run(part))
            except Exception as error:
                log.exception("sequence %d failed in step %d", work.seq, plan.number)
                message = f"the computation failed ({type(error).__name__}); try again"
                results.append(StepResult(elapsed_s=0.0, faults=(Fault(work.seq, message),)))
        return StepResult(
            elapsed_s=sum(r.elapsed_s for r in results),
            sampled=tuple(s for r in results for s in r.sampled),
            prompt_scores=tuple(s for r in results for s in r.prompt_scores),
            faults=tuple(f for r in results for f in r.faults),
        )
