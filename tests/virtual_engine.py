"""A whole engine without weights, stepped by hand: real scheduler and cache, tagged runner."""

from __future__ import annotations

import random
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from realms import realm
from stepped_mover import SteppedMover, TaggedMemory

from kvasir.core.clock import VirtualClock
from kvasir.core.costs import StepCosts
from kvasir.core.events import Event, Finished, FinishReason, Refused, Started, Token
from kvasir.core.geometry import KvGeometry
from kvasir.core.plans import Audit, StepPlan, StepResult
from kvasir.core.ports import Interrupted, Runner, never
from kvasir.core.requests import GREEDY, Request, Sampling
from kvasir.core.tiers import Tier
from kvasir.engine.engine import Engine
from kvasir.engine.storage import open_stored
from kvasir.kv.cache import KvCache
from kvasir.sched.limits import Limits
from kvasir.sched.scheduler import Abort, Command, Scheduler, Submit
from kvasir.sched.virtual import POISON, TaggedRunner, expected_answer
from kvasir.tiers.folder import Folder
from kvasir.tiers.store import RecordStore


def geometry(n_blocks: int, block_tokens: int = 4) -> KvGeometry:
    return KvGeometry(
        n_layers=1,
        n_kv_heads=1,
        head_dim=1,
        dtype="float32",
        dtype_bytes=4,
        block_tokens=block_tokens,
        n_blocks=n_blocks,
    )


def text(rng: random.Random, n_tokens: int) -> list[int]:
    return [rng.randrange(256) for _ in range(n_tokens)]


@dataclass
class Answer:
    """Everything that was said about one choice."""

    tokens: list[int] = field(default_factory=list)
    finished: Finished | None = None
    started: Started | None = None
    first_token_s: float | None = None
    token_times_s: list[float] = field(default_factory=list)


class VirtualEngine:
    """Submits, steps, and keeps what was said; ``right`` compares with the serial oracle."""

    def __init__(
        self,
        *,
        n_blocks: int = 64,
        block_tokens: int = 4,
        costs: StepCosts | None = None,
        runner: Runner | None = None,
        folders: Mapping[Tier, Folder] | None = None,
        cap_bytes: int = 2**20,
        read_bytes_per_s: float = 1e9,
        write_bytes_per_s: float = 1e9,
        audit_one_in: int = 0,
        run_blocks: int = 6,
        parts: Mapping[str, str] | None = None,
        **limits: float,
    ) -> None:
        """``folders`` are those of the stored tiers, each of up to ``cap_bytes``; another engine
        over the same ones is this one restarted. A record has up to ``run_blocks``. ``parts`` are
        those of another realm."""
        self.geometry = geometry(n_blocks, block_tokens)
        self.clock = VirtualClock()
        self.slots = array("Q", [POISON]) * (n_blocks * block_tokens)
        self.realm = realm(self.geometry, **(parts or {}))
        stores = {t: RecordStore(folder, cap_bytes) for t, folder in (folders or {}).items()}
        self.mover = SteppedMover(
            stores,
            TaggedMemory(self.slots, self.geometry),
            self.realm,
            self.geometry,
            self.clock,
            read_bytes_per_s=read_bytes_per_s,
            write_bytes_per_s=write_bytes_per_s,
        )
        stored = open_stored(stores, self.mover, self.geometry, self.realm, now_s=self.clock.now_s)
        self.cache = KvCache(self.geometry, self.realm, stored=stored, audit_one_in=audit_one_in)
        self.cache._saver.run_blocks = run_blocks
        self.tagged = TaggedRunner(self.slots, block_tokens, costs=costs, clock=self.clock)
        bounds = {"window": n_blocks * block_tokens, "answer_room_tokens": 2 * block_tokens}
        self.sched = Scheduler(self.cache, Limits(**(bounds | limits)), self.clock)  # type: ignore[arg-type]
        self.engine = Engine(self.sched, runner or self.tagged, self.clock, check_every_s=0)
        self.requests: dict[str, Request] = {}
        self.refused: dict[str, Refused] = {}
        self.answers: dict[tuple[str, int], Answer] = {}
        self.events: list[Event] = []
        self._commands: list[Command] = []

    def submit(
        self,
        tokens: Sequence[int],
        *,
        max_tokens: int = 4,
        namespace: bytes = b"a",
        request_id: str | None = None,
        sampling: Sampling = GREEDY,
        **fields: object,
    ) -> str:
        request = Request(
            id=request_id or f"r{len(self.requests)}",
            namespace=namespace,
            tokens=tokens,
            max_tokens=max_tokens,
            sampling=sampling,
            **fields,  # type: ignore[arg-type]
        )
        keys: list[bytes] = []
        self.cache.chain(namespace).extend(keys, tokens, self.geometry.block_tokens)
        self.requests[request.id] = request
        self._commands.append(Submit(request, tuple(keys), self.clock.now_s()))
        return request.id

    def abort(self, request_id: str) -> None:
        self._commands.append(Abort(request_id))

    def step(self, interrupted: Interrupted = never) -> list[Event]:
        commands, self._commands = self._commands, []
        events = self.engine.step(commands, interrupted)
        if self.engine.waits:
            self._pass_until_moved()
        for event in events:
            self._note(event)
        return events

    def _pass_until_moved(self) -> None:
        next_s = self.mover.next_s()
        assert next_s is not None, "the engine waits for nothing"
        self.clock.advance(max(0.0, next_s - self.clock.now_s()))

    def save(self) -> None:
        """Let everything be saved that is to be."""
        while self.cache.saving or self.mover.next_s() is not None:
            self._pass_until_moved()
            self.engine.step()

    def run(self, *, max_steps: int = 100_000) -> None:
        for _ in range(max_steps):
            if self.engine.idle and not self._commands:
                self.cache.check()
                return
            self.step()
        raise AssertionError(f"still not idle after {max_steps} steps")

    def answer(self, request_id: str, choice: int = 0) -> Answer:
        return self.answers.setdefault((request_id, choice), Answer())

    def ask(self, tokens: Sequence[int], **fields: object) -> Answer:
        """Submit one request, run until idle, check the answer, and give it."""
        request_id = self.submit(tokens, **fields)  # type: ignore[arg-type]
        self.run()
        assert self.right(request_id)
        return self.answer(request_id)

    def right(self, request_id: str) -> bool:
        """Whether every choice that was not cancelled says what the serial oracle says."""
        request = self.requests[request_id]
        for choice in range(request.n):
            answer = self.answer(request_id, choice)
            expected = expected_answer(
                request.namespace,
                request.tokens,
                request.max_tokens,
                seed=request.sampling.seed,
                choice=choice,
            )
            stops = [i for i, t in enumerate(expected) if t in request.stop_token_ids]
            if stops:
                expected = expected[: stops[0]]
            whole = answer.finished is not None and answer.finished.reason in (
                FinishReason.LENGTH,
                FinishReason.STOP,
            )
            if answer.tokens != (expected if whole else expected[: len(answer.tokens)]):
                return False
        return True

    def _note(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Refused):
            self.refused[event.request_id] = event
        elif isinstance(event, Started):
            self.answer(event.request_id, event.choice).started = event
        elif isinstance(event, Token):
            answer = self.answer(event.request_id, event.choice)
            answer.tokens.append(event.token)
            answer.token_times_s.append(self.clock.now_s())
            if answer.first_token_s is None:
                answer.first_token_s = self.clock.now_s()
        elif isinstance(event, Finished):
            self.answer(event.request_id, event.choice).finished = event


class FailingRunner:
    """Passes plans on to ``inner``, unless ``fails`` says that a plan is to raise."""

    def __init__(self, inner: Runner, fails: object) -> None:
        self.inner = inner
        self.fails = fails

    def run(self, plan: StepPlan, interrupted: Interrupted = never) -> StepResult:
        if callable(self.fails) and self.fails(plan):
            raise RuntimeError("planted fault")
        return self.inner.run(plan, interrupted)

    def audit(self, audit: Audit) -> bool:
        return self.inner.audit(audit)

    def rest(self) -> bool:
        return self.inner.rest()
