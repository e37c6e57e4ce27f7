"""The record store on a disk that loses, tears and refuses: what was acknowledged is there, and
what is there is right."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import logging
import os
import random
from collections.abc import Iterator

import pytest
from simulated_folder import Choose, PowerCut, SimulatedFolder, _File
from store_samples import part, read, sample, served

from kvasir.tiers.record import VERSION, Damaged
from kvasir.tiers.store import RecordStore, StoreDegraded, StoreFull

STATES = int(os.environ.get("KVASIR_TEST_STATES", "2000"))
BITS = int(os.environ.get("KVASIR_TEST_BITS", "10000"))
CAP = 3 * 20_000
OPERATIONS = ("put 0", "put 1", "put 2", "drop 0", "get 0", "part 0", "use 0", "reopen")
SAMPLES = [sample(which) for which in range(3)]

logging.getLogger("kvasir.tiers.store").setLevel(logging.CRITICAL)  # thousands of warnings


class User:
    """Uses a store, and knows what it was promised."""

    def __init__(self, folder: SimulatedFolder) -> None:
        self.folder = folder
        self.promised: set[int] = set()
        self.store: RecordStore | None = None

    def do(self, operation: str) -> None:
        if self.store is None or operation == "reopen":
            self.store = RecordStore(self.folder, CAP)
        if operation == "reopen":
            return
        verb, which = operation.split()
        record, planes = SAMPLES[int(which)]
        if verb == "put":
            self.store.put(record, planes)
            self.promised.add(int(which))
        elif verb == "drop":
            self.promised.discard(int(which))
            self.store.drop(record.name)
        elif verb == "use":
            self.store.use(record.name, 1e9 + self.folder.done)
        elif verb == "part":
            served(self.store, SAMPLES[int(which)], first=1)
        else:
            served(self.store, SAMPLES[int(which)])


def check(folder: SimulatedFolder, promised: set[int]) -> None:
    """What is found after a crash: all that was promised, nothing wrong, no leftovers."""
    store = RecordStore(folder, CAP)
    present = {which for which in range(len(SAMPLES)) if served(store, SAMPLES[which])}
    assert promised <= present, f"{promised - present} was lost"
    assert sorted(folder.seen) == sorted(f"{SAMPLES[which][0].name}.kv" for which in present)
    assert store.used_bytes == sum(len(file.seen) for file in folder.seen.values()) <= CAP


def run(operations: tuple[str, ...], folder: SimulatedFolder) -> User:
    """Carry out ``operations`` until the power is cut, if it is."""
    user = User(folder)
    try:
        for operation in operations:
            user.do(operation)
    except PowerCut:
        pass
    return user


def choices(n_most: int) -> Iterator[Choose]:
    """Nothing is on the disk, everything is, and random subsets."""
    yield lambda n: 0
    yield lambda n: n - 1
    for seed in range(n_most):
        yield random.Random(seed).randrange


def crash_everywhere(operations: tuple[str, ...], n_random: int, **folder: int) -> None:
    for cut_at in itertools.count(1):
        user = run(operations, SimulatedFolder(cut_at=cut_at, **folder))
        for choose in choices(n_random):
            check(user.folder.crash(choose), user.promised)
        if user.folder.done < cut_at:
            return


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_power_cut_anywhere_in_any_three_operations_loses_nothing_acknowledged(
    length: int,
) -> None:
    for operations in itertools.product(OPERATIONS, repeat=length):
        crash_everywhere(operations, 4, short=3000)


def test_power_cuts_in_random_operations() -> None:
    for seed in range(STATES):
        rng = random.Random(seed)
        operations = tuple(rng.choices(OPERATIONS, k=rng.randrange(4, 12)))
        folder = SimulatedFolder(cut_at=rng.randrange(1, 90), short=rng.choice([700, 1 << 20]))
        user = run(operations, folder)
        check(user.folder.crash(rng.randrange), user.promised)


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
def test_any_operation_may_fail_and_nothing_wrong_is_served(error: int) -> None:
    operations = ("put 0", "get 0", "put 1", "use 0", "part 0", "drop 0", "put 2", "get 1")
    for fail_at in itertools.count(1):
        user = User(SimulatedFolder(fail_at=fail_at, error=error))
        for operation in operations:
            try:
                user.do(operation)
            except (StoreDegraded, OSError):
                continue
        if user.folder.done < fail_at:
            break
        if user.store is not None:
            # A record that could not be read once is given up; all else that was promised is there.
            kept = {w for w in user.promised if SAMPLES[w][0].name in user.store.records}
            assert {SAMPLES[which][0].name for which in kept} == set(user.store.records)
            assert len(user.promised - kept) <= user.store.counts["damaged"]
            check(user.folder.crash(lambda n: n - 1), kept)


def test_the_first_failed_write_ends_writing_and_reading_goes_on() -> None:
    folder = SimulatedFolder()
    store = RecordStore(folder, CAP)
    store.put(*SAMPLES[0])
    folder.fail_at = folder.done + 3
    with pytest.raises(StoreDegraded, match="planted"):
        store.put(*SAMPLES[1])
    with pytest.raises(StoreDegraded):
        store.put(*SAMPLES[2])
    assert store.failure
    assert served(store, SAMPLES[0])
    assert not served(store, SAMPLES[1])
    assert store.used_bytes == SAMPLES[0][0].file_bytes
    assert not RecordStore(folder, CAP).failure


def test_the_cap_is_never_exceeded_and_a_smaller_one_drops_the_oldest() -> None:
    folder = SimulatedFolder()
    size = SAMPLES[0][0].file_bytes
    store = RecordStore(folder, 2 * size)
    store.put(*SAMPLES[0])
    store.put(*SAMPLES[1])
    with pytest.raises(StoreFull):
        store.put(*SAMPLES[2])
    store.drop(SAMPLES[0][0].name)
    store.put(*SAMPLES[2])
    smaller = RecordStore(folder, size)
    assert list(smaller.records) == [SAMPLES[2][0].name]
    assert smaller.used_bytes == size


def stored(which: int) -> tuple[SimulatedFolder, bytearray]:
    """A folder with one record, and the bytes of its file."""
    folder = SimulatedFolder()
    RecordStore(folder, CAP).put(*SAMPLES[which])
    return folder, folder.seen[f"{SAMPLES[which][0].name}.kv"].seen


def test_a_record_above_the_cap_goes_before_all_others() -> None:
    folder, _ = stored(0)
    store = RecordStore(folder, CAP)
    large = sample(5, 12_000)
    store.put(*large)
    smaller = RecordStore(folder, large[0].file_bytes - 1)
    assert list(smaller.records) == [SAMPLES[0][0].name]


def test_a_smaller_cap_drops_the_ends_of_chains_and_no_beginning() -> None:
    folder = SimulatedFolder()
    store = RecordStore(folder, CAP)
    (first, planes), (second, tail_planes), (alone, _) = SAMPLES
    second = dataclasses.replace(second, parent=first.keys[-1], start=2 * first.block_tokens)
    for record in (first, second, alone):  # the beginning is the oldest
        store.put(record, tail_planes if record is second else planes)
    size = first.file_bytes
    assert [*RecordStore(folder, 2 * size).records] == [first.name, alone.name]
    assert [*RecordStore(folder, size).records] == [alone.name]


def newer(folder: SimulatedFolder, n_bytes: int) -> str:
    """Puts a record there that a newer server has written; gives its file's name."""
    content = bytearray(b"KVASIRKV" + (VERSION + 1).to_bytes(4, "little")).ljust(n_bytes, b"?")
    file_name = "f" * 64 + ".kv"
    folder.seen[file_name] = _File(content, bytearray(content))
    return file_name


def test_a_newer_servers_records_are_left_alone_and_their_bytes_count() -> None:
    folder, _ = stored(0)
    size = SAMPLES[0][0].file_bytes
    file_name = newer(folder, 100)
    for cap in (CAP, 2 * size, size, 50):
        store = RecordStore(folder, cap)
        assert file_name in folder.seen
        assert "f" * 64 not in store.records
        assert (store.counts["newer"], store.counts["damaged"]) == (1, 0)
        kept = size if cap >= size + 100 else 0
        assert (store.used_bytes, store.newer_bytes) == (kept + 100, 100)
        if cap == 2 * size:
            with pytest.raises(StoreFull):
                store.put(*SAMPLES[1])


def test_what_was_used_last_goes_last() -> None:
    folder = SimulatedFolder()
    store = RecordStore(folder, CAP)
    for one in SAMPLES:
        store.put(*one)
    store.use(SAMPLES[0][0].name, 1e9)
    store.use("no such record", 1e9)
    again = RecordStore(folder, CAP)
    assert list(again.records) == [SAMPLES[which][0].name for which in (1, 2, 0)]
    assert again.used_s(SAMPLES[0][0].name) == store.used_s(SAMPLES[0][0].name) == 1e9


@pytest.mark.parametrize("which", [0, 1])
def test_every_flipped_bit_of_the_header_is_noticed(which: int) -> None:
    record, _ = SAMPLES[which]
    for bit in range(8 * record.header_bytes):
        folder, content = stored(which)
        opened_before = RecordStore(folder, CAP)
        content[bit // 8] ^= 1 << bit % 8
        assert not served(opened_before, SAMPLES[which])
        assert opened_before.counts["damaged"] == 1
        assert not folder.seen
        folder, content = stored(which)
        content[bit // 8] ^= 1 << bit % 8
        store = RecordStore(folder, CAP)
        assert not store.records
        assert (store.counts["damaged"], store.counts["newer"]) == (1, 0)
        assert not folder.seen


def flip_bits_of_planes(n_bits: int) -> None:
    """Random ones: a read of the block that was hit finds it, a read of the other one is right."""
    record, planes = SAMPLES[0]
    rng = random.Random(1)
    folder, content = stored(0)
    pristine = bytes(content)
    block_bytes = record.plane_bytes // len(record.keys)
    for _ in range(n_bits):
        at = rng.randrange(record.planes_at, len(content))
        content[at] ^= 1 << rng.randrange(8)
        hit = (at - record.planes_at) % record.plane_bytes // block_bytes
        store = RecordStore(folder, CAP)
        assert served(store, SAMPLES[0], 1 - hit, 1)
        reached: list[bytes] = []
        try:
            store.read(record.name, hit, 1, lambda index, data: reached.append(bytes(data)))  # noqa: B023
        except Damaged:
            assert reached == part(record, planes, hit, 1)[: len(reached)]
        else:
            raise AssertionError("a damaged block was served")
        assert store.counts["damaged"] == 1
        folder, content = stored(0) if not folder.seen else (folder, content)
        content[:] = pristine


def test_flipped_bits_of_the_planes_are_noticed() -> None:
    flip_bits_of_planes(BITS)


def test_swapped_and_cut_records_are_noticed() -> None:
    folder = SimulatedFolder()
    store = RecordStore(folder, CAP)
    names = [store.put(*SAMPLES[which]) + ".kv" for which in (0, 2)]
    first, second = (folder.seen[name] for name in names)
    first.seen, second.seen = second.seen, first.seen
    assert not served(store, SAMPLES[0])
    assert not RecordStore(folder, CAP).records
    for length in (0, 10, 100, 4096, 5000, SAMPLES[2][0].file_bytes - 1):
        folder, content = stored(2)
        opened_before = RecordStore(folder, CAP)
        del content[length:]
        assert not served(opened_before, SAMPLES[2])
        folder, content = stored(2)
        del content[length:]
        assert not RecordStore(folder, CAP).records


def test_exchanged_planes_and_blocks_of_one_record_are_noticed() -> None:
    record, planes = SAMPLES[0]
    (a0, b0), (a1, b1) = (part(record, planes, 0, 1), part(record, planes, 1, 1))
    for exchanged in (b0 + b1 + a0 + a1, a1 + a0 + b0 + b1):
        folder, content = stored(0)
        content[record.planes_at :] = exchanged
        assert not served(RecordStore(folder, CAP), SAMPLES[0])


def test_what_a_sink_raises_is_no_damage() -> None:
    folder, _ = stored(0)
    store = RecordStore(folder, CAP)

    def sink(index: int, data: memoryview) -> None:
        raise OSError("the device is gone")

    with pytest.raises(OSError, match="the device is gone"):
        store.read(SAMPLES[0][0].name, 0, 1, sink)
    assert not store.counts["damaged"]
    assert served(store, SAMPLES[0])


def test_blocks_that_are_not_there_are_refused() -> None:
    folder, _ = stored(0)
    store = RecordStore(folder, CAP)
    for first, count in ((-1, 1), (0, 0), (0, 3), (2, 1), (1, -1)):
        with pytest.raises(ValueError, match="of 2"):
            read(store, SAMPLES[0][0].name, first, count)
    assert served(store, SAMPLES[0])


def test_verify_reads_all_of_a_record() -> None:
    for at in range(SAMPLES[0][0].planes_at, SAMPLES[0][0].file_bytes, 1000):
        folder, content = stored(0)
        store = RecordStore(folder, CAP)
        store.verify(SAMPLES[0][0].name)
        content[at] ^= 1
        with pytest.raises(Damaged):
            store.verify(SAMPLES[0][0].name)
        with pytest.raises(KeyError):
            store.verify(SAMPLES[0][0].name)
