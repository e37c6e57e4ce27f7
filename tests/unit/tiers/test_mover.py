from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from mover_bench import CAP_BYTES, DTYPES, LONG_S, REALM, Bench, GatedMemory, benches, shape
from simulated_folder import SimulatedFolder

from kvasir.core.clock import SystemClock, VirtualClock
from kvasir.core.geometry import KvGeometry
from kvasir.core.tiers import Tier
from kvasir.kv.moves import Load, Save
from kvasir.tiers.folder import Folder, RealFolder
from kvasir.tiers.mover import ThreadedMover
from kvasir.tiers.ram import RamFolder
from kvasir.tiers.rates import Rate
from kvasir.tiers.store import RecordStore


@pytest.fixture
def made() -> Iterator[Callable[..., Bench]]:
    with benches() as make:
        yield make


def damage(folder: Folder, name: str) -> None:
    """Flip one bit in the last byte of a record in memory."""
    assert isinstance(folder, RamFolder)
    folder._files[f"{name}.kv"].content[-1] ^= 1


@pytest.mark.parametrize("blocks", [[5], [2, 3, 4], [7, 1, 2, 10]])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("real", [False, True])
def test_what_comes_back_is_bit_for_bit_what_was_saved(
    made: Callable[..., Bench], tmp_path: Path, blocks: list[int], dtype: str, real: bool
) -> None:
    folder = RealFolder(tmp_path / "kv") if real else None
    bench = made(folder, geometry=shape(dtype))
    content = bench.content(blocks)
    record = bench.saved(blocks)
    bench.pool.fill(-1.0)
    elsewhere = [9, 0, 1, 4][: len(blocks)]
    assert not bench.end(bench.load(record, elsewhere)).problem
    assert bench.content(elsewhere) == content
    untouched = [b for b in range(12) if b not in elsewhere]
    assert all((plane[b * 4 : b * 4 + 4] == -1).all() for b in untouched
               for layer in range(3) for plane in bench.pool.planes(layer))  # fmt: skip


def test_some_blocks_of_a_record_come_back_alone(made: Callable[..., Bench]) -> None:
    bench = made()
    record, content = bench.saved([1, 2, 8, 9]), bench.content([2, 8])
    bench.pool.fill(-1.0)
    assert not bench.end(bench.load(record, [4, 3], first=1)).problem
    assert bench.content([4, 3]) == content


@pytest.mark.parametrize("n_tokens", [1, 3])
def test_a_tail_comes_back(made: Callable[..., Bench], n_tokens: int) -> None:
    bench = made()
    record, content = bench.saved([6], n_tokens), bench.content([6], n_tokens)
    bench.pool.fill(-1.0)
    assert not bench.end(bench.load(record, [2])).problem
    assert bench.content([2], n_tokens) == content
    assert (bench.pool.planes(2)[1][8 + n_tokens : 12] == -1).all()


def test_a_record_says_all_that_its_extent_says(made: Callable[..., Bench]) -> None:
    bench = made()
    for seed in (0, 1):
        before_s = time.time()
        extent = bench.extent(2, seed=seed)
        name = bench.saved([0, 1], seed=seed)
        record = bench.store.records[name]
        assert record.realm == REALM.tag
        assert record.parent == (extent.parent or bytes(32))
        for part in ("namespace_tag", "keys", "tokens", "block_tokens", "start", "compute_s"):
            assert getattr(record, part) == getattr(extent, part)
        assert before_s <= record.created_s <= time.time()


def test_a_damaged_record_is_a_problem_in_words_and_gone(made: Callable[..., Bench]) -> None:
    bench = made()
    record, other = bench.saved([1, 2]), bench.saved([3], seed=1)
    damage(bench.folder, record)
    moved = bench.end(bench.load(record, [5, 6]))
    assert "damaged" in moved.problem
    assert moved.damaged
    assert record not in bench.store.records
    moved = bench.end(bench.load(record, [5, 6]))
    assert "not there" in moved.problem
    assert not moved.damaged
    assert not bench.end(bench.load(other, [5])).problem
    [status] = bench.mover.status()
    assert status.damaged_records == 1


def test_a_record_is_verified_without_keeping_anything_of_it(made: Callable[..., Bench]) -> None:
    bench = made()
    record, other = bench.saved([1, 2]), bench.saved([3], seed=1)
    damage(bench.folder, other)
    before = bench.content(range(12))
    assert not bench.end(bench.load(record, [])).problem
    assert bench.end(bench.load(other, [])).damaged
    assert "not there" in bench.end(bench.load("0" * 64, [])).problem
    assert bench.content(range(12)) == before
    assert bench.mover.status()[0].loaded_bytes == 0


@pytest.mark.parametrize(
    "other", [shape("float32"), replace(shape(), n_layers=2), replace(shape(), n_layers=4)]
)
def test_a_record_of_another_model_is_refused_and_removed(
    made: Callable[..., Bench], other: KvGeometry
) -> None:
    folder = RamFolder(CAP_BYTES)
    record = made(folder, geometry=other).saved([1, 2])
    bench = made(folder)
    others = [block for block in range(12) if block not in (5, 6)]
    before = bench.content(others)
    assert "loading failed" in bench.end(bench.load(record, [5, 6])).problem
    assert bench.content(others) == before
    bench.written()
    assert record not in bench.store.records


def test_only_a_load_that_has_not_begun_can_be_withdrawn(made: Callable[..., Bench]) -> None:
    bench = made(memory=GatedMemory)
    bench.memory.gate.set()
    record = bench.saved([1])
    bench.memory.gate.clear()
    while bench.memory.entered.acquire(blocking=False):
        pass
    loads = [bench.load(record, [block]) for block in (4, 5, 6)]
    assert bench.memory.entered.acquire(timeout=LONG_S)
    assert [bench.mover.withdraw(load) for load in loads[:2]] == [False, True]
    assert not bench.mover.withdraw(loads[1])
    bench.memory.gate.set()
    assert not bench.end(loads[0]).problem
    assert not bench.end(loads[2]).problem
    assert bench.memory.scattered == [(4,), (6,)]
    assert loads[1] not in bench.moved
    assert not bench.mover.withdraw(loads[2])


def test_loads_are_carried_out_in_the_order_of_queueing(made: Callable[..., Bench]) -> None:
    bench = made(memory=GatedMemory)
    bench.memory.gate.set()
    record = bench.saved([1])
    bench.memory.gate.clear()
    order = [7, 3, 9, 2, 8]
    loads = [bench.load(record, [block]) for block in order]
    bench.memory.gate.set()
    bench.end(loads[-1])
    assert bench.memory.scattered == [(block,) for block in order]


def test_loads_do_not_wait_for_saves(made: Callable[..., Bench]) -> None:
    class SlowToSave(GatedMemory):
        def scatter(self, plane: int, blocks: Sequence[int], data: memoryview) -> None:
            self.pool.scatter(plane, blocks, data)

    bench = made(memory=SlowToSave)
    bench.memory.gate.set()
    record = bench.saved([1])
    bench.memory.gate.clear()
    save = bench.save([2], seed=1)
    assert not bench.end(bench.load(record, [5])).problem
    assert save not in bench.moved
    bench.memory.gate.set()
    assert bench.end(save).record in bench.store.records


def test_saves_and_drops_keep_their_order(made: Callable[..., Bench]) -> None:
    bench = made()
    record = bench.saved([1])
    bench.mover.drop(Tier.DISK, record)
    again = bench.save([1])
    assert bench.end(again).record == record
    assert record in bench.store.records
    bench.mover.drop(Tier.DISK, record)
    bench.mover.drop(Tier.DISK, record)
    bench.written()
    assert not bench.store.records
    assert bench.store.used_bytes == 0


def test_use_is_remembered(made: Callable[..., Bench]) -> None:
    bench = made()
    record = bench.saved([1])
    before_s = time.time()
    bench.mover.use(Tier.DISK, record)
    bench.mover.use(Tier.DISK, "0" * 64)
    deadline_s = time.monotonic() + LONG_S
    while bench.store.used_s(record) < before_s and time.monotonic() < deadline_s:
        time.sleep(0.001)
    assert before_s <= bench.store.used_s(record) <= time.time()


def test_a_store_that_cannot_be_written_is_a_problem_and_goes_on_reading(
    made: Callable[..., Bench],
) -> None:
    folder = SimulatedFolder()
    bench = made(folder)
    record, content = bench.saved([1, 2]), bench.content([1, 2])
    folder.fail_at = folder.done + 2
    assert "planted" in bench.end(bench.save([3], seed=1)).problem
    assert "planted" in bench.end(bench.save([4], seed=2)).problem
    assert "planted" in bench.mover.status()[0].failure
    assert not bench.end(bench.load(record, [6, 7])).problem
    assert bench.content([6, 7]) == content


def test_a_full_store_is_a_problem(made: Callable[..., Bench]) -> None:
    bench = made(cap_bytes=6000)
    record = bench.saved([1])
    assert "do not fit" in bench.end(bench.save([2], seed=1)).problem
    bench.mover.drop(Tier.DISK, record)
    assert not bench.end(bench.save([2], seed=1)).problem


def test_what_fails_unexpectedly_is_reported_and_the_threads_go_on(
    made: Callable[..., Bench], caplog: pytest.LogCaptureFixture
) -> None:
    bench = made(memory=GatedMemory)
    bench.memory.gate.set()
    record, other = bench.saved([1]), bench.saved([2], seed=1)
    bench.memory.fails = True
    assert "saving failed: RuntimeError: planted" in bench.end(bench.save([3], seed=2)).problem
    assert "loading failed: RuntimeError: planted" in bench.end(bench.load(record, [4])).problem
    bench.memory.fails = False
    assert not bench.end(bench.load(other, [4])).problem
    assert not bench.end(bench.save([3], seed=2)).problem
    assert record not in bench.store.records, "a load with a problem leaves no record"
    assert sum("failed" in record.message for record in caplog.records) == 2


def test_an_extent_that_does_not_fit_its_blocks_is_a_problem(made: Callable[..., Bench]) -> None:
    bench = made()
    foreign = replace(bench.extent(1, 3), block_tokens=8)
    for move_id, extent, blocks in ((3, bench.extent(2), (1,)), (4, foreign, (1,))):
        bench.mover.save(Save(id=move_id, tier=Tier.DISK, extent=extent, blocks=blocks))
        assert "saving failed" in bench.end(move_id).problem
    assert not bench.store.records
    bench.mover.load(Load(id=2, tier=Tier.HOST, record="", first=0, blocks=(1,), n_bytes=1))
    assert bench.end(2).problem


def test_an_engine_that_cannot_be_told_does_not_end_the_threads(
    made: Callable[..., Bench], caplog: pytest.LogCaptureFixture
) -> None:
    bench = made()

    def told() -> None:
        bench.told.release()
        raise RuntimeError("planted")

    bench.mover._on_moved = told
    record = bench.saved([1])
    assert not bench.end(bench.load(record, [2])).problem
    assert bench.mover.close(LONG_S)
    assert "could not be told" in caplog.text


def test_closing_gives_up_what_has_not_begun_and_drops_what_was_dropped(
    made: Callable[..., Bench],
) -> None:
    bench = made(memory=GatedMemory)
    bench.memory.gate.set()
    records = [bench.saved([1]), bench.saved([2], seed=1)]
    bench.memory.gate.clear()
    while bench.memory.entered.acquire(blocking=False):
        pass
    begun = [bench.save([3], seed=2), bench.load(records[0], [5])]
    for _ in begun:
        assert bench.memory.entered.acquire(timeout=LONG_S)
    waiting = [bench.save([4], seed=3), bench.load(records[0], [6])]
    bench.mover.drop(Tier.DISK, records[1])
    assert not bench.mover.close(0.01)
    for move in (*waiting, bench.save([7], seed=4), bench.load(records[0], [7])):
        assert "stopping" in bench.end(move).problem
        assert not bench.end(move).damaged
    bench.memory.gate.set()
    assert bench.mover.close(LONG_S)
    for move in begun:
        assert not bench.end(move).problem
    assert set(bench.store.records) == {records[0], bench.moved[begun[0]].record}
    assert bench.mover.close(0.0)


def test_the_prediction_grows_with_what_is_queued_and_learns(made: Callable[..., Bench]) -> None:
    mib = 2**20
    clock = VirtualClock()

    class SlowMemory(GatedMemory):
        def scatter(self, plane: int, blocks: Sequence[int], data: memoryview) -> None:
            if plane == 0:
                clock.advance(0.25)
            super().scatter(plane, blocks, data)

    bench = made(memory=SlowMemory)
    bench.mover._clock = clock
    bench.memory.gate.set()
    record = bench.saved([1])
    alone_s = bench.mover.load_s(mib, Tier.DISK)
    assert alone_s == pytest.approx(mib / 500e6 + 0.001)
    bench.memory.gate.clear()
    while bench.memory.entered.acquire(blocking=False):
        pass

    def load(move_id: int, n_bytes: int) -> None:
        bench.mover.load(
            Load(id=move_id, tier=Tier.DISK, record=record, first=0, blocks=(2,), n_bytes=n_bytes)
        )

    load(101, 250 * mib)  # takes a quarter of a second, as was told above: 1 GiB/s
    assert bench.memory.entered.acquire(timeout=LONG_S)
    behind_s = bench.mover.load_s(mib, Tier.DISK)
    assert behind_s == pytest.approx(alone_s + 250 * mib / 500e6 - 0.25)
    load(102, 10 * mib)
    assert bench.mover.load_s(mib, Tier.DISK) == pytest.approx(behind_s + 10 * mib / 500e6)
    assert bench.mover.withdraw(102)
    assert bench.mover.load_s(mib, Tier.DISK) == pytest.approx(behind_s)
    bench.memory.gate.set()
    bench.end(101)
    [status] = bench.mover.status()
    assert status.read_bytes_per_s == pytest.approx(1000 * mib)
    assert status.loaded_bytes == 250 * mib
    assert mib / (1000 * mib) < bench.mover.load_s(mib, Tier.DISK) - 0.001 < mib / (950 * mib)


def test_a_load_that_hangs_is_expected_to_take_as_long_again_as_it_is_overdue(
    made: Callable[..., Bench],
) -> None:
    bench = made(memory=GatedMemory)
    clock = bench.mover._clock = VirtualClock()
    bench.memory.gate.set()
    record = bench.saved([1])
    alone_s = bench.mover.load_s(1, Tier.DISK)
    bench.memory.gate.clear()
    while bench.memory.entered.acquire(blocking=False):
        pass
    bench.mover.load(
        Load(id=101, tier=Tier.DISK, record=record, first=0, blocks=(2,), n_bytes=500_000_000)
    )  # expected to take a second
    assert bench.memory.entered.acquire(timeout=LONG_S)
    for taken_s, left_s in ((0.0, 1.0), (0.75, 0.25), (1.5, 0.5), (11.0, 10.0)):
        clock.advance(taken_s - clock.now_s())
        assert bench.mover.load_s(1, Tier.DISK) == pytest.approx(alone_s + left_s)


def test_two_tiers_are_told_apart(made: Callable[..., Bench]) -> None:
    bench = made()
    host = RecordStore(RamFolder(CAP_BYTES), CAP_BYTES)
    mover = ThreadedMover(
        {Tier.HOST: host, Tier.DISK: bench.store}, bench.pool, REALM, bench.geometry,
        bench.told.release, clock=SystemClock(),
    )  # fmt: skip
    mover.save(Save(id=1, tier=Tier.HOST, extent=bench.extent(1), blocks=(1,)))
    assert bench.told.acquire(timeout=LONG_S)
    assert mover.close(LONG_S)
    assert (len(host.records), len(bench.store.records)) == (1, 0)
    of = {status.tier: status.saved_bytes for status in mover.status()}
    assert of == {Tier.HOST: bench.geometry.block_bytes, Tier.DISK: 0}


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads have nice on Linux only")
def test_the_writer_steps_back_and_nobody_else(made: Callable[..., Bench]) -> None:
    here = os.getpriority(os.PRIO_PROCESS, 0)
    bench = made()
    bench.saved([1])
    reader, writer = (thread.native_id for thread in bench.mover._threads)
    assert os.getpriority(os.PRIO_PROCESS, writer or 0) == min(19, here + 10)
    assert os.getpriority(os.PRIO_PROCESS, reader or 0) == here


def test_a_rate_is_expected_first_and_then_measured() -> None:
    rate = Rate(500e6)
    assert (rate.bytes_per_s, rate.measured_bytes_per_s) == (pytest.approx(500e6), 0.0)
    rate.learn(256 * 2**10 - 1, 1.0)
    rate.learn(2**30, 0.0)
    assert rate.bytes_per_s == pytest.approx(500e6)
    rate.learn(16 * 2**20, 16 * 2**20 / 2e9)
    assert rate.measured_bytes_per_s == pytest.approx(2e9)
    assert 1e9 < rate.bytes_per_s < 2e9
    for _ in range(20):
        rate.learn(16 * 2**20, 16 * 2**20 / 1e8)
    assert rate.bytes_per_s == pytest.approx(1e8, rel=0.05)
