"""The record store between two threads: one reads while the other one puts and drops."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from simulated_folder import SimulatedFolder
from store_samples import read, sample, served

from kvasir.tiers.folder import Folder, RealFolder
from kvasir.tiers.ram import RamFolder
from kvasir.tiers.record import Damaged
from kvasir.tiers.store import RecordStore, StoreFull

CAP = 150_000
SAMPLES = [sample(which) for which in range(16)]  # more than fit
WRITES = 1500


class Reader(threading.Thread):
    """Reads whatever there is until it is told to end; remembers what went wrong."""

    def __init__(self, store: RecordStore) -> None:
        super().__init__()
        self.store = store
        self.end = threading.Event()
        self.reads = 0
        self.problem: BaseException | None = None

    def run(self) -> None:
        rng = random.Random(0)
        try:
            while not self.end.is_set():
                one = rng.choice(SAMPLES)
                self.reads += served(self.store, one)
                served(self.store, one, first=len(one[0].keys) - 1)
                self.store.use(one[0].name, rng.uniform(0, 1e9))
        except BaseException as problem:  # for the thread that waits
            self.problem = problem


def write(store: RecordStore) -> None:
    rng = random.Random(1)
    for _ in range(WRITES):
        record, planes = rng.choice(SAMPLES)
        try:
            store.put(record, planes)
        except StoreFull:
            store.drop(rng.choice(list(store.records)))


@pytest.fixture
def _short_turns() -> Iterator[None]:
    """Threads take turns often, so that they meet in many places."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_short_turns")
@pytest.mark.parametrize("kind", ["ram", "real"])
def test_reading_beside_writing_finds_all_right_or_not_there(kind: str, tmp_path: Path) -> None:
    folder: Folder = RamFolder(CAP) if kind == "ram" else RealFolder(tmp_path / "kv")
    store = RecordStore(folder, CAP)
    reader = Reader(store)
    reader.start()
    write(store)
    reader.end.set()
    reader.join()
    if reader.problem is not None:
        raise reader.problem
    assert reader.reads
    assert not store.counts["damaged"], "a record that was dropped is no damage"
    records = store.records
    assert store.used_bytes == sum(record.file_bytes for record in records.values())
    assert sorted(name for name, _ in folder.names()) == sorted(f"{name}.kv" for name in records)
    assert all(served(store, one) == (one[0].name in records) for one in SAMPLES)


class SlowRemoval(SimulatedFolder):
    """Lets a test do something while a file is being removed."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.may_end = threading.Event(), threading.Event()

    def remove(self, name: str) -> None:
        self.begun.set()
        self.may_end.wait(10)
        super().remove(name)


def test_a_name_is_free_for_a_new_record_once_its_old_file_is_gone() -> None:
    """The reader finds damage and removes the file, while the writer computes it anew."""
    folder = SlowRemoval()
    store = RecordStore(folder, CAP)
    name = store.put(*SAMPLES[0])
    folder.seen[f"{name}.kv"].seen[-1] ^= 1
    found: list[str] = []

    def read_damaged() -> None:
        try:
            read(store, name, 0, 2)
        except Damaged:
            found.append("damaged")

    reader = threading.Thread(target=read_damaged)
    reader.start()
    folder.begun.wait(10)
    writer = threading.Thread(target=store.put, args=SAMPLES[0])
    writer.start()
    writer.join(0.05)
    folder.may_end.set()
    reader.join()
    writer.join()
    assert found == ["damaged"]
    assert served(store, SAMPLES[0])
    assert store.used_bytes == SAMPLES[0][0].file_bytes


def test_a_record_dropped_before_it_is_opened_is_said_not_to_be_there() -> None:
    folder = SimulatedFolder()
    store = RecordStore(folder, CAP)
    name = store.put(*SAMPLES[0])
    opening = folder.open

    def drop_first(file_name: str):  # type: ignore[no-untyped-def]
        store.drop(name)
        return opening(file_name)

    folder.open = drop_first  # type: ignore[method-assign]
    with pytest.raises(KeyError):
        read(store, name, 0, 1)
    assert not store.counts["damaged"]
