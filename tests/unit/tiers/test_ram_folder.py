"""The folder in memory behaves as the real one does, and so do records in it."""

from __future__ import annotations

import dataclasses
import errno
import os
from pathlib import Path

import pytest

from kvasir.core.realm import TAG_BYTES
from kvasir.tiers.folder import Folder, RealFolder
from kvasir.tiers.ram import RamFolder
from kvasir.tiers.record import Record
from kvasir.tiers.store import RecordStore, StoreFull

RECORD = Record(
    realm=b"r" * TAG_BYTES,
    namespace_tag=b"n" * 16,
    parent=bytes(32),
    start=0,
    keys=(b"a" * 32, b"b" * 32),
    tokens=tuple(range(8)),
    block_tokens=4,
    n_planes=2,
    plane_bytes=800,
    created_s=1.0,
)
PLANES = os.urandom(1600)


@pytest.fixture(params=["ram", "real"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    return RamFolder(1 << 20) if request.param == "ram" else RealFolder(tmp_path / "kv")


def write(folder: Folder, name: str, data: bytes) -> None:
    with folder.create(name) as file:
        assert file.write(data) == len(data)
        file.sync()
    folder.sync()


def content(folder: Folder, name: str) -> bytes:
    with folder.open(name) as file:
        into = bytearray(file.size + 10)
        return bytes(into[: file.read(0, memoryview(into))])


def test_files_are_made_read_renamed_and_removed(folder: Folder) -> None:
    write(folder, "a", b"first")
    write(folder, "b", b"second")
    with folder.open("a") as file:
        into = bytearray(2)
        assert (file.size, file.read(3, memoryview(into)), into) == (5, 2, b"st")
        assert file.read(5, memoryview(into)) == 0
    folder.rename("a", "b")
    assert content(folder, "b") == b"first"
    assert [name for name, _ in folder.names()] == ["b"]
    folder.remove("b")
    assert folder.names() == []


def test_what_is_not_there_or_there_already_is_refused(folder: Folder) -> None:
    write(folder, "a", b"first")
    with pytest.raises(FileExistsError), folder.create("a"):
        pass
    with pytest.raises(FileNotFoundError), folder.open("b"):
        pass
    for refused in (
        lambda: folder.rename("b", "c"),
        lambda: folder.remove("b"),
        lambda: folder.touch("b", 1.0),
    ):
        with pytest.raises(FileNotFoundError):
            refused()
    assert content(folder, "a") == b"first"


def test_names_come_with_their_times_oldest_first(folder: Folder) -> None:
    for name, time_s in (("a", 30.5), ("b", 10.25), ("c", 20.0)):
        write(folder, name, b"x")
        folder.touch(name, time_s)
    assert folder.names() == [("b", 10.25), ("c", 20.0), ("a", 30.5)]


def test_a_file_that_is_removed_while_it_is_read_can_be_read(folder: Folder) -> None:
    write(folder, "a", b"first")
    with folder.open("a") as file:
        folder.remove("a")
        into = bytearray(5)
        assert file.read(0, memoryview(into)) == 5
    assert into == b"first"


def test_records_are_kept_served_in_part_and_dropped(folder: Folder) -> None:
    store = RecordStore(folder, 1 << 20)
    name = store.put(RECORD, PLANES)
    store.use(name, 77.0)
    for opened in (store, RecordStore(folder, 1 << 20)):
        found: dict[int, bytes] = {}
        opened.read(name, 1, 1, lambda index, data, found=found: found.update({index: bytes(data)}))
        assert found == {0: PLANES[400:800], 1: PLANES[1200:]}
        assert opened.used_s(name) == 77.0
        assert opened.used_bytes == RECORD.file_bytes
    store.drop(name)
    assert folder.names() == []
    with pytest.raises(KeyError):
        store.verify(name)


def test_memory_ends_at_the_cap() -> None:
    folder = RamFolder(RECORD.file_bytes + 100)
    store = RecordStore(folder, 1 << 20)  # which would take more
    store.put(RECORD, PLANES)
    assert folder.free_bytes() == 100
    with pytest.raises(StoreFull, match="fill"):
        store.put(dataclasses.replace(RECORD, namespace_tag=b"m" * 16), PLANES)
    assert folder.free_bytes() == 100
    store.verify(RECORD.name)
    write(folder, "rest", bytes(100))
    with folder.create("more") as file, pytest.raises(OSError) as full:
        file.write(b"x")
    assert full.value.errno == errno.ENOSPC
