"""The protocols between layers; each has a real implementation and a virtual one.

``Runner`` separates policy from computing: the scheduler plans, a runner computes. ``Engine``
separates serving from policy: the service submits requests and is told events. Neither side of a
port imports the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from kvasir.core.events import Event
from kvasir.core.plans import Audit, StepPlan, StepResult
from kvasir.core.requests import Request
from kvasir.core.tiers import KeptRecord, KeptText, Residence, Tier, TierStatus

Deliver = Callable[[Event], None]
Interrupted = Callable[[], bool]  # whether a request or an abort has come since the step began


def never() -> bool:
    """The ``Interrupted`` of a step that nobody watches."""
    return False


class Runner(Protocol):
    """Computes steps. Used by one thread only."""

    def run(self, plan: StepPlan, interrupted: Interrupted = never) -> StepResult:
        """Carry out ``plan`` and say what came of it.

        Running the same plan twice in a row has the effect of running it once, so that a failed
        step can be repeated in parts. A fault of one sequence is reported as a ``Fault``; an
        exception means that the step as a whole failed. Where ``interrupted`` says so and the rest
        of the step would last longer than ``plan.patience_s``, the step is given up.
        """
        ...

    def audit(self, audit: Audit) -> bool:
        """Compute a block again; whether it is what it should be, within the bound that this
        runner's arithmetic needs."""
        ...

    def rest(self) -> bool:
        """Do a few milliseconds of what is best done while there is nothing to compute; False when
        nothing is left of it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStatus:
    """A snapshot of the engine, for health, metrics and people. Counters only grow."""

    running: int = 0
    waiting: int = 0
    waiting_tokens: int = 0
    blocks_total: int = 0
    blocks_free: int = 0
    blocks_idle: int = 0  # kept for reuse, evictable
    steps: int = 0
    last_step_age_s: float = 0.0  # since the last step ended; 0 while idle
    alive: bool = True
    stopping: bool = False
    computed_tokens: int = 0
    reused_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0
    steps_given_up: int = 0  # long ones, for somebody who came meanwhile
    evicted_blocks: int = 0
    reused_by_tier: dict[Tier, int] = field(default_factory=dict)  # tokens, all tiers
    restored_blocks: int = 0  # that came back from a stored tier
    audited_blocks: int = 0  # of them, those that were computed again and compared
    audit_failures: int = 0  # that were not as they should be: an alarm
    tiers: tuple[TierStatus, ...] = ()  # the stored ones
    finished: dict[str, int] = field(default_factory=dict)  # by FinishReason
    refused: dict[str, int] = field(default_factory=dict)  # by RefusalKind
    cost_coefficients: tuple[float, ...] = ()  # a, b, c, d, e of core.costs


class Engine(Protocol):
    """Serves requests. Every method may be called from any thread and returns at once."""

    def submit(self, request: Request, deliver: Deliver) -> None:
        """Queue ``request``. ``deliver`` is called on the engine's thread with each event of it,
        in order, and must return quickly. Raises ``EngineStopped`` once the engine has ended.
        ``request.id`` must be new."""
        ...

    def abort(self, request_id: str) -> None:
        """End ``request_id`` at the next step, as CANCELLED; unknown ids are ignored."""
        ...

    def status(self) -> EngineStatus:
        """How the engine is doing."""
        ...

    def kept(self) -> Sequence[KeptRecord]:
        """All records of the stored tiers. May take as long as a step."""
        ...

    def clear(self, tier: Tier | None, namespace_tag: bytes | None) -> int:
        """Forget what is stored in ``tier`` (None: in all) for the namespace with that tag (None:
        for all), and, where no tier is named, what of it is in the pool and not in use; how many
        records that were. May take as long as a step."""
        ...

    def verify(self) -> Sequence[KeptRecord]:
        """Read every record again; those that did not verify, which are gone. Takes as long as
        reading all of it takes."""
        ...

    # What follows is for texts that are to be kept. Every call may take as long as a step, hashes
    # the tokens that it is given on the caller's thread, and raises ``EngineStopped`` at the end.

    def hold(self, holder: str, namespace: bytes, texts: Sequence[Sequence[int]]) -> None:
        """What is stored of ``texts``, now and later, is not evicted and not superseded until
        ``holder`` lets go; in the place of what that one held before. What of them is in the pool
        alone is saved. Holds end with the process. Nothing is computed."""
        ...

    def let_go(self, holder: str) -> bool:
        """End what ``holder`` holds; False where it holds nothing."""
        ...

    def residence(self, namespace: bytes, tokens: Sequence[int]) -> Residence:
        """Where this text is. Where it is neither ``durable`` nor ``saving`` a part was not stored
        (no room, or evicted from the pool before its turn): ask it again with ``max_tokens`` 0, or,
        where ``failure`` says so, not."""
        ...

    def texts(self, namespace: bytes) -> Sequence[KeptText]:
        """The longest texts that are stored of ``namespace``, the last used first."""
        ...

    def drop(self, namespace: bytes, texts: Sequence[Sequence[int]]) -> None:
        """Forget what is stored and idle of ``texts``, and of what continues them, as the questions
        that were asked on them do; but not what is held, nor what another kept text shares with
        them. Let go first."""
        ...

    def parcels(self, namespace: bytes, tokens: Sequence[int]) -> Iterator[bytes]:
        """The KV of this text, all of which must be stored, in pieces of about 16 MiB that say what
        they are and nothing of whose they are; hold it meanwhile. Each is verified when it is its
        turn. Raises ``NotStored`` where something of the text is not stored, or not any more."""
        ...

    def accept(self, namespace: bytes, parcel: bytes) -> int:
        """Take in one piece, of which the caller knows that it may be trusted; how many tokens of
        KV it has. It is durable then. The pieces of a text come in their order; one that is there
        already changes nothing. Raises ``ParcelRefused`` where it is damaged, of another realm, or
        continues nothing, and ``NotStored`` where it cannot be stored."""
        ...

    def room_bytes(self, namespace: bytes) -> int:
        """How many bytes more can be held for ``namespace``, whatever others ask for: what is held
        or promised counts, and so does what others use of their guaranteed shares."""
        ...

    def bytes_of(self, n_tokens: int) -> int:
        """What a text of so many tokens takes once it is stored. Returns at once."""
        ...
