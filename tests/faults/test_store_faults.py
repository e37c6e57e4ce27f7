"""The record store on a disk that loses, tears and refuses: what was acknowledged is there, and
what is there is right."""

from __future__ import annotations

import errno
import itertools
import logging
import random
from collections.abc import Iterator

import pytest
from simulated_folder import Choose, PowerCut, SimulatedFolder

from kvasir.tiers import record as record_module
from kvasir.tiers import store as store_module
from kvasir.tiers.record import Damaged, Record
from kvasir.tiers.store import RecordStore, StoreDegraded, StoreFull

PLANES, PLANE_BYTES = 2, 5000
CAP = 3 * 20_000

logging.getLogger("kvasir.tiers.store").setLevel(logging.CRITICAL)  # thousands of warnings
OPERATIONS = ("put 0", "put 1", "put 2", "drop 0", "get 0", "reopen")


def sample(which: int) -> tuple[Record, list[bytes]]:
    rng = random.Random(which)
    made = Record(
        realm=b"r" * 32,
        namespace_tag=b"n" * 16,
        parent=bytes(32),
        keys=(rng.randbytes(32), rng.randbytes(32)),
        tokens=tuple(rng.randrange(1000) for _ in range(7)),
        block_tokens=4,
        n_planes=PLANES,
        plane_bytes=PLANE_BYTES,
        created_s=float(which),
    )
    return made, [rng.randbytes(PLANE_BYTES) for _ in range(PLANES)]


SAMPLES = [sample(which) for which in range(3)]


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
        else:
            read(self.store, int(which))


def read(store: RecordStore, which: int) -> bool:
    """Whether record ``which`` is there; then it is right."""
    record, planes = SAMPLES[which]
    into = [memoryview(bytearray(PLANE_BYTES)) for _ in range(PLANES)]
    try:
        store.get(record.name, into)
    except (KeyError, Damaged):
        return False
    assert [bytes(plane) for plane in into] == planes, "wrong bytes were served"
    return True


def check(folder: SimulatedFolder, promised: set[int]) -> None:
    """What is found after a crash: all that was promised, nothing wrong, no leftovers."""
    store = RecordStore(folder, CAP)
    present = {which for which in range(len(SAMPLES)) if read(store, which)}
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
    for seed in range(2000):
        rng = random.Random(seed)
        operations = tuple(rng.choices(OPERATIONS, k=rng.randrange(4, 12)))
        folder = SimulatedFolder(cut_at=rng.randrange(1, 90), short=rng.choice([700, 1 << 20]))
        user = run(operations, folder)
        check(user.folder.crash(rng.randrange), user.promised)


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
def test_any_operation_may_fail_and_nothing_wrong_is_served(error: int) -> None:
    operations = ("put 0", "get 0", "put 1", "drop 0", "put 2", "get 1")
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
    assert read(store, 0)
    assert not read(store, 1)
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
    folder = SimulatedFolder()
    RecordStore(folder, CAP).put(*SAMPLES[which])
    return folder, folder.seen[f"{SAMPLES[which][0].name}.kv"].seen


def test_every_flipped_bit_of_the_header_is_noticed() -> None:
    record, _ = SAMPLES[0]
    _, content = stored(0)
    for bit in range(8 * record.header_bytes):
        folder, content = stored(0)
        content[bit // 8] ^= 1 << bit % 8
        store = RecordStore(folder, CAP)
        assert not read(store, 0)
        assert store.counts["damaged"] == 1
        assert not folder.seen


def test_flipped_bits_of_the_planes_are_noticed() -> None:
    record, _ = SAMPLES[0]
    rng = random.Random(1)
    folder, content = stored(0)
    pristine = bytes(content)
    for _ in range(10_000):
        at = rng.randrange(record.planes_at, len(content))
        content[at] ^= 1 << rng.randrange(8)
        store = RecordStore(folder, CAP)
        assert not read(store, 0)
        folder, content = stored(0) if not folder.seen else (folder, content)
        content[:] = pristine


def test_swapped_and_cut_records_are_noticed() -> None:
    folder = SimulatedFolder()
    store = RecordStore(folder, CAP)
    names = [store.put(*SAMPLES[which]) + ".kv" for which in (0, 1)]
    first, second = (folder.seen[name] for name in names)
    first.seen, second.seen = second.seen, first.seen
    assert not read(store, 0)
    assert not RecordStore(folder, CAP).records
    for length in (0, 10, 100, 4096, 5000, 14_095):
        folder, content = stored(2)
        del content[length:]
        assert not RecordStore(folder, CAP).records


def test_exchanged_planes_of_one_record_are_noticed() -> None:
    record, planes = SAMPLES[0]
    folder, content = stored(0)
    content[record.planes_at :] = planes[1] + planes[0]
    assert not read(RecordStore(folder, CAP), 0)


# --- the tests themselves: each planted bug must be caught ----------------------------------------


def _no_folder_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SimulatedFolder, "sync", lambda self: self._operation())


def _published_before_flushed(monkeypatch: pytest.MonkeyPatch) -> None:
    from simulated_folder import _Writing

    monkeypatch.setattr(_Writing, "sync", lambda self: None)


def _digest_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "plane_digest", lambda name, index, plane: bytes(16))


def _short_write_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_write_fully", lambda file, data: file.write(data))


def _key_not_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    bound = record_module.plane_digest
    monkeypatch.setattr(store_module, "_belongs", lambda record, file_name: True)
    monkeypatch.setattr(
        store_module, "plane_digest", lambda name, index, plane: bound("00" * 32, 0, plane)
    )


@pytest.mark.parametrize(
    "bug",
    [
        _no_folder_sync,
        _published_before_flushed,
        _digest_skipped,
        _short_write_ignored,
        _key_not_bound,
    ],
)
def test_these_tests_catch_a_planted_bug(bug: object, monkeypatch: pytest.MonkeyPatch) -> None:
    assert callable(bug)
    bug(monkeypatch)
    with pytest.raises(AssertionError):
        _all_that_may_notice()


def _all_that_may_notice() -> None:
    crash_everywhere(("put 0", "put 1"), 4, short=3000)
    test_flipped_bits_of_the_planes_are_noticed()
    test_exchanged_planes_of_one_record_are_noticed()
    test_swapped_and_cut_records_are_noticed()
