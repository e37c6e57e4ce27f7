"""A mover for the virtual engine: real stores, carried out when a virtual clock says so.

Nothing happens by itself and there are no threads: a move is carried out by the call of
``take_moved`` at or after its end, so blocks that change hands too early are seen to.
"""

from __future__ import annotations

from array import array
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kvasir.core.clock import VirtualClock
from kvasir.core.geometry import KvGeometry
from kvasir.core.realm import Realm
from kvasir.core.tiers import Tier, TierStatus
from kvasir.kv.moves import Load, Moved, Save
from kvasir.tiers.block_bytes import slot_runs
from kvasir.tiers.carry import BlockBytes, Carrier
from kvasir.tiers.store import RecordStore


class TaggedMemory:
    """``BlockBytes`` of the pool of a ``TaggedRunner``: one tag of 64 bits per slot, of which the
    only layer's keys are the lower half and its values the upper one."""

    def __init__(self, slots: array[int], geometry: KvGeometry) -> None:
        assert geometry.token_bytes == slots.itemsize
        assert geometry.n_layers == 1
        self._halves = np.frombuffer(slots, np.uint32).reshape(-1, 2)
        self._geometry = geometry

    def gather(self, blocks: Sequence[int], n_tokens: int, into: memoryview) -> None:
        slots = self._slots(blocks, n_tokens)
        np.frombuffer(into, np.uint32).reshape(2, -1)[:] = self._halves[slots].T

    def scatter(self, plane: int, blocks: Sequence[int], data: memoryview) -> None:
        half = np.frombuffer(data, np.uint32)
        self._halves[self._slots(blocks, len(half)), plane] = half

    def _slots(self, blocks: Sequence[int], n_tokens: int) -> list[int]:
        geometry = self._geometry
        runs = slot_runs(blocks, n_tokens, geometry.block_tokens, geometry.n_blocks)
        return [slot for first, count in runs for slot in range(first, first + count)]


@dataclass(frozen=True)
class _Drop:
    tier: Tier
    record: str


_Job = Load | Save | _Drop


class _Lane:
    """Jobs that are done one after another, and when."""

    def __init__(self, bytes_per_s: float) -> None:
        self.bytes_per_s = bytes_per_s
        self.jobs: deque[tuple[_Job, int, float]] = deque()  # bytes, when it was queued
        self._free_s = 0.0  # when what is not in ``jobs`` any more has ended

    def add(self, job: _Job, n_bytes: int, now_s: float) -> None:
        self.jobs.append((job, n_bytes, now_s))

    def times(self) -> Iterator[tuple[float, float, _Job]]:
        """Of each job when it begins and when it ends."""
        end_s = self._free_s
        for job, n_bytes, queued_s in self.jobs:
            begin_s = max(end_s, queued_s)
            end_s = begin_s + n_bytes / self.bytes_per_s
            yield begin_s, end_s, job

    def next_s(self) -> float | None:
        return next((end_s for _, end_s, _ in self.times()), None)

    def last_s(self) -> float:
        return max((end_s for _, end_s, _ in self.times()), default=self._free_s)

    def pop(self) -> _Job:
        """The first job, which has ended."""
        _, self._free_s, job = next(self.times())
        self.jobs.popleft()
        return job


class SteppedMover:
    """A ``kvasir.kv.moves.Mover``. What raises unexpectedly is not caught: a test is to see it."""

    def __init__(
        self,
        stores: Mapping[Tier, RecordStore],
        memory: BlockBytes,
        realm: Realm,
        geometry: KvGeometry,
        clock: VirtualClock,
        *,
        read_bytes_per_s: float = 1e9,
        write_bytes_per_s: float = 1e9,
    ) -> None:
        self.stores = dict(stores)
        self._carrier = Carrier(self.stores, memory, realm, geometry, clock.now_s)
        self._token_bytes = geometry.token_bytes
        self._clock = clock
        self._reads = _Lane(read_bytes_per_s)
        self._writes = _Lane(write_bytes_per_s)
        self._loaded_bytes: Counter[Tier] = Counter()
        self._saved_bytes: Counter[Tier] = Counter()

    def load(self, load: Load) -> None:
        self._reads.add(load, load.n_bytes, self._clock.now_s())

    def withdraw(self, load_id: int) -> bool:
        now_s = self._clock.now_s()
        for index, (begin_s, _, job) in enumerate(self._reads.times()):
            if isinstance(job, Load) and job.id == load_id and begin_s > now_s:
                del self._reads.jobs[index]
                return True
        return False

    def save(self, save: Save) -> None:
        n_bytes = len(save.extent.tokens) * self._token_bytes
        self._writes.add(save, n_bytes, self._clock.now_s())

    def drop(self, tier: Tier, record: str) -> None:
        self._writes.add(_Drop(tier, record), 0, self._clock.now_s())

    def use(self, tier: Tier, record: str) -> None:
        self.stores[tier].use(record, self._clock.now_s())

    def next_s(self) -> float | None:
        """When the next move ends, so that a clock can be advanced to it; None if none is left."""
        return min((s for lane in self._lanes if (s := lane.next_s()) is not None), default=None)

    def take_moved(self) -> Sequence[Moved]:
        """Carries out what has ended by now, in the order in which it ended."""
        moved: list[Moved] = []
        while (next_s := self.next_s()) is not None and next_s <= self._clock.now_s():
            lane = min(self._lanes, key=_end_of)
            moved += self._carry(lane.pop())
        return moved

    def load_s(self, n_bytes: int, tier: Tier) -> float:
        now_s = self._clock.now_s()
        waiting_s = max(0.0, self._reads.last_s() - now_s)
        return waiting_s + n_bytes / self._reads.bytes_per_s

    def status(self) -> Sequence[TierStatus]:
        return [
            TierStatus(
                tier=tier,
                cap_bytes=store.cap_bytes,
                used_bytes=store.used_bytes,
                records=0,
                tokens=0,
                saved_bytes=self._saved_bytes[tier],
                loaded_bytes=self._loaded_bytes[tier],
                damaged_records=store.counts["damaged"],
                read_bytes_per_s=self._reads.bytes_per_s,
                write_bytes_per_s=self._writes.bytes_per_s,
                failure=store.failure,
            )
            for tier, store in self.stores.items()
        ]

    @property
    def _lanes(self) -> tuple[_Lane, _Lane]:
        return self._reads, self._writes

    def _carry(self, job: _Job) -> list[Moved]:
        if isinstance(job, _Drop):
            self.stores[job.tier].drop(job.record)
            return []
        if isinstance(job, Load):
            moved = self._carrier.load(job)
            if job.blocks and not moved.problem:
                self._loaded_bytes[job.tier] += job.n_bytes
        else:
            moved = self._carrier.save(job)
            if not moved.problem:
                self._saved_bytes[job.tier] += len(job.extent.tokens) * self._token_bytes
        return [moved]


def _end_of(lane: _Lane) -> float:
    end_s = lane.next_s()
    return float("inf") if end_s is None else end_s
