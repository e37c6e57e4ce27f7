"""Who may start: door checks, the waiting queue, and taking sequences out of it into the pool.

A waiting sequence whose next block is being computed by a running one, or is on its way from a
stored tier, *follows*: it is passed over until that block is there, and then shares it. If the
leader goes, the first follower leads. A sequence for which stored KV is on its way waits for it,
unless computing its beginning meanwhile brings it there sooner. A sequence that does not fit lets
later, smaller ones pass, but only so often.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

from kvasir.core.costs import StepCosts
from kvasir.core.events import RefusalKind, Refused
from kvasir.core.plans import Copy
from kvasir.core.requests import Request
from kvasir.kv.cache import KvCache
from kvasir.kv.restore import Restore
from kvasir.sched.limits import Limits
from kvasir.sched.sequence import Sequence
from kvasir.sched.waiting import WaitingQueue

MAX_BYPASSED = 64  # later arrivals that may be admitted before one that does not fit yet


def refuse_oversized(request: Request, limits: Limits, cache: KvCache) -> Refused | None:
    """A refusal, with the numbers, of what could not be served even by an empty engine."""
    wanted = len(request.tokens) + request.max_tokens
    if wanted > limits.window:
        return Refused(
            request.id,
            RefusalKind.NEVER_FITS,
            f"This model's maximum context length is {limits.window} tokens. However, you "
            f"requested {wanted} tokens ({len(request.tokens)} in the messages, "
            f"{request.max_tokens} in the completion). Please reduce the length of the messages "
            "or completion.",
        )
    geometry = cache.geometry
    if geometry.blocks_for(wanted) > geometry.n_blocks:
        return Refused(
            request.id,
            RefusalKind.NEVER_FITS,
            f"The request needs KV for {wanted} tokens ({len(request.tokens)} of prompt, "
            f"{request.max_tokens} of answer), and the whole KV pool holds {geometry.pool_tokens}. "
            "Ask for a shorter answer, shorten the prompt, or start the server with a larger "
            "--kv-gib.",
        )
    return None


def refuse_queued(
    request: Request, waiting: WaitingQueue, running: Collection[Sequence], costs: StepCosts
) -> Refused | None:
    """A refusal with the time to come back, when the queue is full; None when it may wait."""
    leaving = waiting.excess(len(request.tokens))
    if not leaving:
        return None
    everyone = [*running, *waiting]
    work_s = sum(_remaining_s(s, costs, len(running)) for s in everyone)
    retry_after_s = max(1.0, work_s * leaving / max(1, len(everyone)))
    return Refused(
        request.id,
        RefusalKind.QUEUE_FULL,
        f"The server is at its limit: {len(running)} answers are running and "
        f"{waiting.n_requests} requests with {waiting.n_tokens} tokens are waiting. "
        f"Try again in {retry_after_s:.0f} seconds.",
        retry_after_s,
    )


class Admission:
    """Takes sequences from the waiting queue into the pool."""

    def __init__(self, cache: KvCache, waiting: WaitingQueue, limits: Limits) -> None:
        self._cache = cache
        self._waiting = waiting
        self._limits = limits

    def admit(self, running: Iterable[Sequence]) -> list[tuple[Sequence, Copy | None]]:
        """Everyone who may start now, with the copy that each needs; they hold leases then."""
        active = list(running)
        led = {key for s in active if (key := frontier(s, self._cache)) is not None}
        admitted: list[tuple[Sequence, Copy | None]] = []
        passed_over: list[Sequence] = []
        awaiting: set[str] = set()  # requests of which a choice awaits something
        for sequence in self._waiting:
            if len(active) >= self._limits.max_running:
                break
            # A later choice waits with the first: what it computed would look reused to that one.
            if sequence.request.id in awaiting or self._awaits(sequence, led, len(active)):
                awaiting.add(sequence.request.id)
                continue
            started, copy = self._try(sequence, len(active))
            if started:
                admitted.append((sequence, copy))
                active.append(sequence)
                if (key := frontier(sequence, self._cache)) is not None:
                    led.add(key)
                for earlier in passed_over:
                    earlier.bypassed += 1
            else:
                passed_over.append(sequence)
                if sequence.bypassed >= MAX_BYPASSED:
                    break
        for sequence, _ in admitted:
            self._waiting.remove(sequence)
        return admitted

    def _awaits(self, sequence: Sequence, led: set[bytes], n_active: int) -> bool:
        """Whether what ``sequence`` needs next is being computed or loaded anyway."""
        if sequence.scored:
            return False
        computed = self._matched(sequence)
        matched = sequence.matched_blocks
        key = sequence.keys[matched] if matched < len(sequence.keys) else None
        if key in led:
            return True
        coming = sequence.restore
        if coming is None or coming.done:
            if key is not None and self._cache.brings(key):
                return True
            coming = sequence.restore = self.restore(sequence, spare_blocks=n_active)
        if coming is None:
            return False
        # One of many questions on kept texts is in no hurry: what it computed to be through sooner
        # would keep the others waiting.
        patient = sequence.request.transient
        if not patient and self._cache.worth_meeting(coming, computed):
            return False
        if key is not None:
            led.add(key)  # it may wait for a part of that block, which ``brings`` does not know
        return True

    def restore(self, sequence: Sequence, *, spare_blocks: int) -> Restore | None:
        """Begin to bring back what is stored of ``sequence``, where there is room for it. What was
        refused is not looked at again before there is more room or more is matched."""
        room = self._cache.free_blocks + self._cache.idle_blocks - spare_blocks
        refused_room, refused_matched = sequence.restore_refused
        if room <= refused_room and sequence.matched_blocks == refused_matched:
            return None
        begun = self._cache.restore(
            sequence.request.namespace,
            sequence.tokens,
            sequence.keys,
            known=sequence.matched_blocks,
            spare_blocks=spare_blocks,
            patient=sequence.request.transient,
        )
        sequence.restore_refused = (-1, -1) if begun else (room, sequence.matched_blocks)
        return begun

    def _matched(self, sequence: Sequence) -> int:
        """How many of its tokens are in whole blocks of the pool."""
        sequence.matched_blocks = self._cache.matched_blocks(
            sequence.keys, len(sequence.tokens), sequence.matched_blocks
        )
        return sequence.matched_blocks * self._cache.geometry.block_tokens

    def _try(self, sequence: Sequence, n_active: int) -> tuple[bool, Copy | None]:
        geometry = self._cache.geometry
        still = sequence.request.max_tokens - sequence.generated
        room = min(still, self._limits.answer_room_tokens)
        n_tokens = len(sequence.tokens)
        wish = geometry.blocks_for(n_tokens + room) - geometry.blocks_for(n_tokens)
        taken = self._cache.admit(
            sequence.request.namespace,
            sequence.chain,
            sequence.tokens,
            sequence.keys,
            reuse=not sequence.scored,
            transient=sequence.request.transient,
            known=sequence.matched_blocks,
            spare_blocks=n_active,  # each running answer may need one more block soon
            wish_blocks=wish,
        )
        if taken is None:
            return False, None
        sequence.lease, match, copy = taken
        sequence.computed = match.n_tokens
        if sequence.restore is not None and not sequence.scored:
            self._cache.meet(sequence.lease, sequence.restore, sequence.computed)
        sequence.restore = None
        if sequence.reused < 0:
            coming = sequence.lease.restore
            if coming is not None and not coming.done:
                sequence.differs_at, match = coming.pieces[-1].end, replace(match, miss=None)
            else:
                sequence.differs_at = match.n_tokens
            sequence.reused = match.n_tokens
            sequence.reused_by_tier = sequence.lease.reused_by_tier
            sequence.miss = match.miss
            sequence.kept_token = match.kept_token
        return True, copy


def frontier(sequence: Sequence, cache: KvCache) -> bytes | None:
    """The key of the next full block of prompt that ``sequence`` is about to compute."""
    index = sequence.computed // cache.geometry.block_tokens
    return sequence.keys[index] if index < len(sequence.keys) else None


def _remaining_s(sequence: Sequence, costs: StepCosts, n_running: int) -> float:
    """Predicted seconds of engine time until ``sequence`` ends, if it uses all its tokens."""
    reading = costs.prefill_s(sequence.behind, sequence.computed)
    still = max(0, sequence.request.max_tokens - sequence.generated)
    step_s = costs.coefficients[0] / max(1, n_running) + costs.decode_s(len(sequence.tokens))
    return reading + still * step_s
