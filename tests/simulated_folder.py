"""A disk that keeps only what was flushed: a ``Folder`` in memory, with crashes and failures.

Until its file is synced, each sector that was written may be on the disk or not, in any
combination; until the folder is synced, each change of names may be there or not. ``crash`` gives
the folder as a machine could find it after a power cut, by choices that ``choose`` makes.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from kvasir.tiers.record import Buffer

SECTOR = 4096
Choose = Callable[[int], int]  # one of n possibilities: 0 … n - 1


class PowerCut(BaseException):
    """The machine is gone; nothing catches it by accident."""


@dataclass
class _File:
    kept: bytearray = field(default_factory=bytearray)  # what is on the disk for certain
    seen: bytearray = field(default_factory=bytearray)  # what programs see
    time_s: float = 0.0  # the disk may have it or not: nobody relies on it


@dataclass
class SimulatedFolder:
    """``cut_at`` cuts the power before that operation, ``fail_at`` makes it fail with ``error``;
    both count all operations from 1. ``short`` is the most that one write takes."""

    cut_at: int = 0
    fail_at: int = 0
    error: int = errno.EIO
    short: int = 1 << 30
    capacity: int = 1 << 30
    done: int = 0
    kept: dict[str, _File] = field(default_factory=dict)
    seen: dict[str, _File] = field(default_factory=dict)
    changes: list[tuple[str, _File | None]] = field(default_factory=list)  # not synced

    def names(self) -> list[tuple[str, float]]:
        self._operation()
        found = [(name, file.time_s) for name, file in self.seen.items()]
        return sorted(found, key=lambda one: one[1])

    @contextlib.contextmanager
    def create(self, name: str) -> Iterator[_Writing]:
        self._operation()
        if name in self.seen:
            raise FileExistsError(errno.EEXIST, "it is there", name)
        file = _File(time_s=float(self.done))
        self._set(name, file)
        yield _Writing(self, file)

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[_Reading]:
        self._operation()
        if name not in self.seen:
            raise FileNotFoundError(errno.ENOENT, "no such file", name)
        yield _Reading(self, self.seen[name])

    def rename(self, old: str, new: str) -> None:
        self._operation()
        file = self.seen[old]
        self._set(old, None)
        self._set(new, file)
        # One change for the disk: either both names changed or neither.
        self.changes[-2:] = [(f"{old}\0{new}", file)]

    def remove(self, name: str) -> None:
        self._operation()
        if name not in self.seen:
            raise FileNotFoundError(errno.ENOENT, "no such file", name)
        self._set(name, None)

    def touch(self, name: str, time_s: float) -> None:
        self._operation()
        if name not in self.seen:
            raise FileNotFoundError(errno.ENOENT, "no such file", name)
        self.seen[name].time_s = time_s

    def sync(self) -> None:
        self._operation()
        self.kept = dict(self.seen)
        self.changes.clear()

    def free_bytes(self) -> int:
        return self.capacity - sum(len(file.seen) for file in self.seen.values())

    def crash(self, choose: Choose) -> SimulatedFolder:
        """The folder after a power cut."""
        names = dict(self.kept)
        for name, file in self.changes:
            if choose(2):
                _apply(names, name, file)
        found: dict[str, _File] = {}
        for name, file in names.items():
            content = _torn(file, choose)
            time_s = file.time_s if choose(2) else 0.0
            found[name] = _File(bytearray(content), bytearray(content), time_s)
        return SimulatedFolder(kept=found, seen=dict(found))

    def _set(self, name: str, file: _File | None) -> None:
        _apply(self.seen, name, file)
        self.changes.append((name, file))

    def _operation(self) -> None:
        self.done += 1
        if self.done == self.cut_at:
            raise PowerCut
        if self.done == self.fail_at:
            raise OSError(self.error, "planted")


def _apply(names: dict[str, _File], name: str, file: _File | None) -> None:
    old, _, new = name.partition("\0")
    if file is None or new:
        names.pop(old, None)
    if file is not None:
        names[new or old] = file


def _torn(file: _File, choose: Choose) -> bytes:
    """Of the sectors that differ from what is kept, some; the length is the old or the new one."""
    if file.kept == file.seen:
        return bytes(file.kept)
    length = len(file.seen) if choose(2) else len(file.kept)
    content = bytearray(length)
    content[: len(file.kept)] = file.kept[:length]
    for at in range(0, length, SECTOR):
        if choose(2):
            content[at : at + SECTOR] = file.seen[at : min(at + SECTOR, length)]
    return bytes(content)


@dataclass
class _Writing:
    folder: SimulatedFolder
    file: _File

    def write(self, data: Buffer) -> int:
        self.folder._operation()
        taken = min(len(data), self.folder.short, self.folder.free_bytes())
        if data and not taken:
            raise OSError(errno.ENOSPC, "no space left")
        self.file.seen += bytes(data[:taken])
        return taken

    def sync(self) -> None:
        self.folder._operation()
        self.file.kept = bytearray(self.file.seen)


@dataclass
class _Reading:
    folder: SimulatedFolder
    file: _File

    @property
    def size(self) -> int:
        return len(self.file.seen)

    def read(self, offset: int, into: memoryview) -> int:
        self.folder._operation()
        data = self.file.seen[offset : offset + min(len(into), self.folder.short)]
        into[: len(data)] = data
        return len(data)
