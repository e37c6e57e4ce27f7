"""The mover of a running server: one thread that reads records and one that writes them.

- Loads begin in the order in which they were queued and never wait for a save.
- Saves and drops are carried out in the order in which they were queued.
- A move that comes to nothing is reported with its reason; neither thread ends before ``close``.

Torch-free; what it needs of the pool is ``BlockBytes``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from kvasir.core.clock import Clock
from kvasir.core.geometry import KvGeometry
from kvasir.core.realm import Realm
from kvasir.core.tiers import Tier, TierStatus
from kvasir.kv.moves import Load, Moved, Save
from kvasir.tiers.carry import BlockBytes, Carrier
from kvasir.tiers.rates import Rate
from kvasir.tiers.store import RecordStore

log = logging.getLogger(__name__)

_EXPECTED_BYTES_PER_S = 500e6  # before anything is measured: an SSD behind SATA
_BEGINNING_S = 0.001  # waking the thread, opening the file, reading its header
_WRITER_NICE = 10
_CLOSED = "the server is stopping"


@dataclass(frozen=True, slots=True)
class _Drop:
    tier: Tier
    record: str


class ThreadedMover:
    """A ``kvasir.kv.moves.Mover`` over record stores."""

    def __init__(
        self,
        stores: Mapping[Tier, RecordStore],
        memory: BlockBytes,
        realm: Realm,
        geometry: KvGeometry,
        on_moved: Callable[[], None],
        *,
        clock: Clock,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        """``on_moved`` is called from the mover's threads, after something was put where
        ``take_moved`` finds it. ``wall_s`` gives Unix time."""
        self._stores = dict(stores)
        self._carrier = Carrier(self._stores, memory, realm, geometry, wall_s)
        self._token_bytes = geometry.token_bytes
        self._on_moved = on_moved
        self._clock = clock
        self._wall_s = wall_s

        lock = threading.Lock()  # over all that follows
        self._to_read = threading.Condition(lock)
        self._to_write = threading.Condition(lock)
        self._lock = lock
        self._loads: OrderedDict[int, Load] = OrderedDict()
        self._waiting_bytes: Counter[Tier] = Counter()  # of ``_loads``
        self._reading: tuple[Load, float] | None = None  # and since when
        self._uses: dict[tuple[Tier, str], float] = {}
        self._writes: deque[Save | _Drop] = deque()
        self._moved: list[Moved] = []
        self._closed = False
        self._read_rates = {tier: Rate(_EXPECTED_BYTES_PER_S) for tier in self._stores}
        self._write_rates = {tier: Rate(_EXPECTED_BYTES_PER_S) for tier in self._stores}
        self._loaded_bytes: Counter[Tier] = Counter()
        self._saved_bytes: Counter[Tier] = Counter()

        self._threads = [
            threading.Thread(target=self._keep_reading, name="kv-reader", daemon=True),
            threading.Thread(target=self._keep_writing, name="kv-writer", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    # what the engine's thread calls --------------------------------------------------------------

    def load(self, load: Load) -> None:
        with self._lock:
            if self._closed:
                self._moved.append(Moved(id=load.id, problem=_CLOSED))
                return
            self._loads[load.id] = load
            self._waiting_bytes[load.tier] += load.n_bytes
            self._to_read.notify()

    def withdraw(self, load_id: int) -> bool:
        with self._lock:
            load = self._loads.pop(load_id, None)
            if load is None:
                return False
            self._waiting_bytes[load.tier] -= load.n_bytes
            return True

    def save(self, save: Save) -> None:
        with self._lock:
            if self._closed:
                self._moved.append(Moved(id=save.id, problem=_CLOSED))
                return
            self._queue_write(save)

    def drop(self, tier: Tier, record: str) -> None:
        with self._lock:
            if not self._closed:
                self._queue_write(_Drop(tier, record))

    def use(self, tier: Tier, record: str) -> None:
        with self._lock:
            if not self._closed:
                self._uses[tier, record] = self._wall_s()
                self._to_read.notify()

    def take_moved(self) -> Sequence[Moved]:
        with self._lock:
            moved, self._moved = self._moved, []
        return moved

    def load_s(self, n_bytes: int, tier: Tier) -> float:
        with self._lock:
            seconds = _BEGINNING_S + self._read_s(n_bytes, tier)
            seconds += sum(self._read_s(waiting, t) for t, waiting in self._waiting_bytes.items())
            if self._reading:
                load, since_s = self._reading
                taken_s = self._clock.now_s() - since_s
                # An overdue load is expected to take as long again as it is overdue: a disk that
                # hangs looks the slower the longer it does.
                seconds += abs(self._read_s(load.n_bytes, load.tier) - taken_s)
        return seconds

    def status(self) -> Sequence[TierStatus]:
        with self._lock:
            return [self._status_of(tier) for tier in self._stores]

    # what whoever stops the server calls ---------------------------------------------------------

    def close(self, timeout_s: float) -> bool:
        """Give up the loads and saves that have not begun, and report them; carry out what was
        dropped; end both threads. False if one did not end in time."""
        with self._lock:
            self._closed = True
            saves = [job for job in self._writes if isinstance(job, Save)]
            self._writes = deque(job for job in self._writes if isinstance(job, _Drop))
            given_up = [*self._loads, *(save.id for save in saves)]
            self._loads.clear()
            self._waiting_bytes.clear()
            self._to_read.notify()
            self._to_write.notify()
        if given_up:
            self._report(Moved(id=move_id, problem=_CLOSED) for move_id in given_up)
        deadline_s = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    # the reader ----------------------------------------------------------------------------------

    def _keep_reading(self) -> None:
        while True:
            with self._lock:
                self._to_read.wait_for(lambda: self._loads or self._uses or self._closed)
                if self._loads:
                    _, load = self._loads.popitem(last=False)
                    self._waiting_bytes[load.tier] -= load.n_bytes
                    since_s = self._clock.now_s()
                    self._reading = load, since_s
                    used = None
                elif self._uses:
                    used = self._uses.popitem()
                else:
                    return
            if used is None:
                self._carry_load(load, since_s)
            else:
                (tier, record), used_s = used
                self._use(tier, record, used_s)

    def _carry_load(self, load: Load, since_s: float) -> None:
        try:
            moved = self._carrier.load(load)
        except Exception as error:
            log.exception("loading record %s failed", load.record[:16])
            moved = Moved(id=load.id, problem=f"loading failed: {_words(error)}")
            self.drop(load.tier, load.record)
        with self._lock:
            self._reading = None
            if load.blocks and not moved.problem:
                seconds = self._clock.now_s() - since_s
                self._read_rates[load.tier].learn(load.n_bytes, seconds)
                self._loaded_bytes[load.tier] += load.n_bytes
        self._report([moved])

    def _use(self, tier: Tier, record: str, used_s: float) -> None:
        try:
            self._stores[tier].use(record, used_s)
        except Exception:
            log.exception("the use of record %s could not be noted", record[:16])

    # the writer ----------------------------------------------------------------------------------

    def _keep_writing(self) -> None:
        _step_back()
        while True:
            with self._lock:
                self._to_write.wait_for(lambda: self._writes or self._closed)
                if not self._writes:
                    return
                job = self._writes.popleft()
            if isinstance(job, Save):
                self._carry_save(job)
            else:
                self._carry_drop(job)

    def _carry_save(self, save: Save) -> None:
        since_s = self._clock.now_s()
        try:
            moved = self._carrier.save(save)
        except Exception as error:
            log.exception("saving %d blocks failed", len(save.blocks))
            moved = Moved(id=save.id, problem=f"saving failed: {_words(error)}")
        if not moved.problem:
            n_bytes = len(save.extent.tokens) * self._token_bytes
            with self._lock:
                self._write_rates[save.tier].learn(n_bytes, self._clock.now_s() - since_s)
                self._saved_bytes[save.tier] += n_bytes
        self._report([moved])

    def _carry_drop(self, drop: _Drop) -> None:
        try:
            self._stores[drop.tier].drop(drop.record)
        except Exception:
            log.exception("record %s could not be dropped", drop.record[:16])

    # inside --------------------------------------------------------------------------------------

    def _queue_write(self, job: Save | _Drop) -> None:
        self._writes.append(job)
        self._to_write.notify()

    def _report(self, moved: Iterable[Moved]) -> None:
        with self._lock:
            self._moved.extend(moved)
        try:
            self._on_moved()
        except Exception:
            log.exception("the engine could not be told of a move that has ended")

    def _read_s(self, n_bytes: int, tier: Tier) -> float:
        return n_bytes / self._read_rates[tier].bytes_per_s

    def _status_of(self, tier: Tier) -> TierStatus:
        """What is in it, what was evicted and what was not saved is counted by the cache."""
        store = self._stores[tier]
        return TierStatus(
            tier=tier,
            cap_bytes=store.cap_bytes,
            used_bytes=store.used_bytes,
            records=0,
            tokens=0,
            saved_bytes=self._saved_bytes[tier],
            loaded_bytes=self._loaded_bytes[tier],
            damaged_records=store.counts["damaged"],
            read_bytes_per_s=self._read_rates[tier].measured_bytes_per_s,
            write_bytes_per_s=self._write_rates[tier].measured_bytes_per_s,
            failure=store.failure,
        )


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _step_back() -> None:
    """Give this thread a low priority: writing must not slow the reading of a prompt. On Linux a
    thread has its own, elsewhere ``setpriority`` would take the whole process back."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            thread = threading.get_native_id()
            nice = os.getpriority(os.PRIO_PROCESS, thread) + _WRITER_NICE
            os.setpriority(os.PRIO_PROCESS, thread, nice)
