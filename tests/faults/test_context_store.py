"""The store of texts when the power goes, or the disk, at any call: what was acknowledged is there
whole, and what was not is there whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvasir.contexts import store as store_module
from kvasir.contexts.store import StoreBroken, TextStore

CONTEXT, FILE = "ctx_" + "a" * 32, "file-" + "b" * 32
DATA = {"text": "The raven came in May. " * 200}
BYTES = b"\x00\x01" * 5000


class PowerCut(BaseException):
    """Nothing after it happens."""


class Disk:
    """Stands for ``os`` in the store: knows what would survive a power cut, and fails on demand.

    Data survive once their file was flushed, names once their folder was. A name that was not may
    survive too, even where the data behind it do not: that is what flushing before renaming is for.
    """

    def __init__(self, folders: list[Path]) -> None:
        self._folders = {folder.stat().st_ino: folder for folder in folders}
        self._data: dict[int, bytes] = {}  # by inode
        self._names: dict[Path, int] = {}  # flushed ones
        self.calls = 0
        self.fail_at = 0
        self.fault: BaseException | None = None
        self.flushes_files = True
        self.flushes_folders = True
        for folder in folders:
            self._flush_folder(folder)
            for path in folder.iterdir():
                self._data[path.stat().st_ino] = path.read_bytes()

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, *arguments: Any) -> int:
        self._call()
        return os.open(*arguments)

    def rename(self, source: Path, target: Path) -> None:
        self._call()
        os.rename(source, target)
        self._call()

    def fsync(self, descriptor: int) -> None:
        self._call()
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            if self.flushes_folders:
                self._flush_folder(self._folders[found.st_ino])
        elif self.flushes_files:
            self._data[found.st_ino] = Path(f"/proc/self/fd/{descriptor}").read_bytes()
        self._call()

    def _call(self) -> None:
        self.calls += 1
        if self.calls == self.fail_at and self.fault is not None:
            raise self.fault

    def _flush_folder(self, folder: Path) -> None:
        for path in [path for path in self._names if path.parent == folder]:
            del self._names[path]
        self._names |= {path: path.stat().st_ino for path in folder.iterdir()}

    def surviving(self, path: Path) -> bytes | None:
        """What is behind a name that was flushed; None where it was not."""
        inode = self._names.get(path)
        return None if inode is None else self._data.get(inode, b"")

    def visible(self) -> dict[Path, bytes]:
        """What may be found after a cut just now: every name there is, before or after the changes
        since the last flush, with the data that were flushed."""
        now = {p: p.stat().st_ino for f in self._folders.values() for p in f.iterdir()}
        return {p: self._data.get(inode, b"") for p, inode in [*self._names.items(), *now.items()]}


def put(store: TextStore) -> None:
    store.put_definition(CONTEXT, DATA)


def put_tree(store: TextStore) -> None:
    store.put_tree(CONTEXT, [DATA])


def put_extracted(store: TextStore) -> None:
    store.put_extracted(FILE, DATA)


def adopt(store: TextStore) -> None:
    part = store.part_path()
    part.write_bytes(BYTES)
    store.adopt(part, FILE)


WAYS: dict[Callable[[TextStore], None], tuple[str, bytes]] = {
    put: (f"contexts/{CONTEXT}.json", json.dumps(DATA).encode()),
    put_tree: (f"contexts/{CONTEXT}.tree.json", json.dumps({"branches": [DATA]}).encode()),
    put_extracted: (f"files/{FILE}.json", json.dumps(DATA).encode()),
    adopt: (f"files/{FILE}.data", BYTES),
}
OLD = ["ctx_" + "0" * 32, "ctx_" + "1" * 32]


def begin(home: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[TextStore, Disk]:
    """A store with something in it that was acknowledged before."""
    store = TextStore(home)
    for id_ in OLD:
        store.put_definition(id_, {"id": id_})
    disk = Disk([store.files, store.contexts])
    monkeypatch.setattr(store_module, "os", disk)
    return store, disk


def check(disk: Disk, home: Path, target: Path, whole: bytes, *, acknowledged: bool) -> None:
    """What is found after a power cut just now."""
    for id_ in OLD:
        assert disk.surviving(home / "contexts" / f"{id_}.json") is not None, "it was lost"
    for path, data in disk.visible().items():
        if path == target:
            assert data == whole, "a half is visible as a whole"
        else:
            assert path.stem in OLD or path.suffix == ".part", f"{path.name} is left over"
    if acknowledged:
        assert disk.surviving(target) == whole, "what was acknowledged is lost"


def count(home: Path, way: Callable[[TextStore], None]) -> int:
    """How many places of failure there are."""
    with pytest.MonkeyPatch.context() as patch:
        store, disk = begin(home, patch)
        way(store)
        return disk.calls


def every_cut(home: Path, way: Callable[[TextStore], None], fault: BaseException) -> int:
    """Fail at every call in turn, on a home of its own; how many there were."""
    n_calls = count(home / "counted", way)
    for at in range(1, n_calls + 2):
        here = home / str(at)
        here.mkdir()
        name, whole = WAYS[way]
        with pytest.MonkeyPatch.context() as patch:
            store, disk = begin(here, patch)
            disk.fail_at, disk.fault = at, fault
            acknowledged = True
            try:
                way(store)
            except type(fault):
                acknowledged = False
            assert acknowledged == (at == n_calls + 1)
            check(disk, here, here / name, whole, acknowledged=acknowledged)
        again = TextStore(here)
        assert not list(again.files.glob("*.part")) + list(again.contexts.glob("*.part"))
        again.collect([], OLD)
        assert sorted(p.stem for p in again.contexts.iterdir()) == OLD
        assert not list(again.files.iterdir())
    return n_calls


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize(
    "fault", [PowerCut(), OSError(errno.EIO, "I/O error")], ids=["power cut", "error"]
)
def test_at_any_call(
    tmp_path: Path, way: Callable[[TextStore], None], fault: BaseException
) -> None:
    (tmp_path / "counted").mkdir()
    assert every_cut(tmp_path, way, fault) >= 6


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("what", ["flushes_files", "flushes_folders"])
def test_a_flush_that_is_left_out_is_caught(
    tmp_path: Path,
    way: Callable[[TextStore], None],
    what: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or the tests above would not show anything."""
    store, disk = begin(tmp_path, monkeypatch)
    setattr(disk, what, False)
    way(store)
    name, whole = WAYS[way]
    with pytest.raises(AssertionError, match=r"half is visible|is lost"):
        check(disk, tmp_path, tmp_path / name, whole, acknowledged=True)


@pytest.mark.parametrize("written", [0, 1, 100])
def test_whoever_fails_in_writing_leaves_nothing(tmp_path: Path, written: int) -> None:
    store = TextStore(tmp_path)

    def write() -> None:
        with store.writing(store.contexts / f"{CONTEXT}.json") as stream:
            stream.write(b"x" * written)
            raise OSError(errno.ENOSPC, "no space left")

    with pytest.raises(OSError, match="no space"):
        write()
    assert not list(store.contexts.iterdir())


def test_what_is_written_over_is_the_old_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, disk = begin(tmp_path, monkeypatch)
    target = tmp_path / "contexts" / f"{OLD[0]}.json"
    disk.fault = PowerCut()
    seen = set()
    for at in range(1, 12):
        disk.calls, disk.fail_at = 0, at
        try:
            store.put_definition(OLD[0], {"new": at})
        except PowerCut:
            found = disk.visible()[target]
            assert json.loads(found) in ({"id": OLD[0]}, *({"new": n} for n in range(at + 1)))
            seen.add(found)
        else:
            assert json.loads(disk.surviving(target) or b"") == {"new": at}
    assert len(seen) > 1


@pytest.mark.parametrize("id_", ["", "ctx_../../x", "file-", "ctx_" + "g" * 32, "x" * 40, "../a"])
def test_names_are_made_here_alone(tmp_path: Path, id_: str) -> None:
    store = TextStore(tmp_path)
    for use in (store.definition, store.extracted, store.remove_file, store.upload_path):
        with pytest.raises(ValueError, match="not an id that was made here"):
            use(id_)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b"null"])
def test_what_cannot_be_read_says_what_to_do(tmp_path: Path, data: bytes) -> None:
    store = TextStore(tmp_path)
    with pytest.raises(StoreBroken, match="cannot be read"):
        store.definition(CONTEXT)
    (store.contexts / f"{CONTEXT}.json").write_bytes(data)
    with pytest.raises(StoreBroken, match=r"cannot be read|does not hold"):
        store.definition(CONTEXT)
    store.remove_context(CONTEXT)
    store.remove_context(CONTEXT)
    assert store.tree(CONTEXT) == []
