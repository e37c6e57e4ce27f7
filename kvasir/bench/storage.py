"""How KV is best laid out on a disk: a file per run of blocks, a file per block, one pack that
grows, or segments of a fixed size that are filled and freed as a whole.

All write the same records of one run each, and every record could be acknowledged when its layout
says so: after the flush of the data and of what makes it findable. Reading is cold (the system is
told to forget the pages) and in another order than writing, as questions come. Reclaiming frees
every second record; a layout that cannot give that room back has to copy what is kept.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from kvasir.bench.machine import busy_warning, describe

RUN_BYTES = 16 * 2**20
BLOCKS = 11  # of a run: 64 tokens of the demonstration model are 1.4 MiB
SEGMENT_RUNS = 16
_INDEX_ENTRY = 512  # bytes appended for each record where the index is a file


class Layout(Protocol):
    """Puts runs on a disk and reads them again."""

    def put(self, number: int, run: memoryview) -> None:
        """Return when run ``number`` would survive a power cut."""
        ...

    def get(self, number: int, into: memoryview) -> None:
        """Read run ``number``."""
        ...

    def reclaim(self, numbers: Sequence[int]) -> int:
        """Free the room of ``numbers``; how many bytes had to be copied for it."""
        ...


class Files:
    """A file for every ``parts``-th of a run: written, flushed, renamed, folder flushed."""

    def __init__(self, folder: Path, parts: int = 1) -> None:
        self._folder = folder
        self._parts = parts
        self._fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)

    def put(self, number: int, run: memoryview) -> None:
        for path, part in self._split(number, run):
            temporary = path.with_suffix(".part")
            with _opened(temporary, os.O_WRONLY | os.O_CREAT) as fd:
                _write(fd, part)
                os.fsync(fd)
            temporary.rename(path)
        os.fsync(self._fd)

    def get(self, number: int, into: memoryview) -> None:
        for path, part in self._split(number, into):
            with _opened(path, os.O_RDONLY) as fd:
                _read(fd, 0, part)

    def reclaim(self, numbers: Sequence[int]) -> int:
        for number in numbers:
            for path, _ in self._split(number, memoryview(b"")):
                path.unlink()
        return 0

    def _split(self, number: int, data: memoryview) -> Iterator[tuple[Path, memoryview]]:
        size = len(data) // self._parts
        for part in range(self._parts):
            path = self._folder / f"{number:06}-{part:02}.kv"
            yield path, data[part * size : (part + 1) * size]


class Pack:
    """One file that grows, and an index that is appended to after the data was flushed."""

    def __init__(self, folder: Path) -> None:
        self._data = os.open(folder / "pack", os.O_RDWR | os.O_CREAT)
        self._index = os.open(folder / "index", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._at: dict[int, tuple[int, int]] = {}
        self._end = 0

    def put(self, number: int, run: memoryview) -> None:
        os.lseek(self._data, self._end, os.SEEK_SET)
        _write(self._data, run)
        os.fsync(self._data)
        os.write(self._index, bytes(_INDEX_ENTRY))
        os.fsync(self._index)
        self._at[number] = (self._end, len(run))
        self._end += len(run)

    def get(self, number: int, into: memoryview) -> None:
        _read(self._data, self._at[number][0], into)

    def reclaim(self, numbers: Sequence[int]) -> int:
        """What is kept is copied to the front; then the end is cut off."""
        for number in numbers:
            del self._at[number]
        copied = 0
        buffer = memoryview(bytearray(RUN_BYTES))
        for number, (at, size) in sorted(self._at.items(), key=lambda item: item[1]):
            if at != copied:
                _read(self._data, at, buffer[:size])
                os.lseek(self._data, copied, os.SEEK_SET)
                _write(self._data, buffer[:size])
                self._at[number] = (copied, size)
            copied += size
        os.ftruncate(self._data, copied)
        os.fsync(self._data)
        return copied


class Segments:
    """Files of a fixed size with room for several runs, made before they are filled; a slot that is
    freed is used again, so nothing is ever copied, and room goes back when a segment is empty."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: list[int] = []
        self._free: list[tuple[int, int]] = []  # (segment, slot)
        self._at: dict[int, tuple[int, int]] = {}
        self._index = os.open(folder / "index", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def put(self, number: int, run: memoryview) -> None:
        if not self._free:
            self._grow()
        segment, slot = self._free.pop(0)
        os.lseek(self._files[segment], slot * RUN_BYTES, os.SEEK_SET)
        _write(self._files[segment], run)
        os.fsync(self._files[segment])
        os.write(self._index, bytes(_INDEX_ENTRY))
        os.fsync(self._index)
        self._at[number] = (segment, slot)

    def get(self, number: int, into: memoryview) -> None:
        segment, slot = self._at[number]
        _read(self._files[segment], slot * RUN_BYTES, into)

    def reclaim(self, numbers: Sequence[int]) -> int:
        self._free += [self._at.pop(number) for number in numbers]
        return 0

    def _grow(self) -> None:
        path = self._folder / f"segment-{len(self._files):04}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        os.posix_fallocate(fd, 0, SEGMENT_RUNS * RUN_BYTES)
        os.fsync(fd)
        self._free += [(len(self._files), slot) for slot in range(SEGMENT_RUNS)]
        self._files.append(fd)


LAYOUTS: dict[str, Callable[[Path], Layout]] = {
    "a file per run": Files,
    "a file per block": lambda folder: Files(folder, BLOCKS),
    "one pack": Pack,
    "segments": Segments,
}


def main(argv: Sequence[str] = ()) -> int:
    """Print, for each layout, GB/s written durably and read cold, and what reclaiming costs."""
    parser = argparse.ArgumentParser(prog="kvasir bench storage", description=__doc__)
    parser.add_argument("--folder", type=Path, help="on the disk that is meant; a temporary one")
    parser.add_argument("--runs", type=int, default=64, help=f"of {RUN_BYTES >> 20} MiB each")
    parser.add_argument("--repeats", type=int, default=len(LAYOUTS))
    options = parser.parse_args(argv)
    machine = describe()
    found: dict[str, list[dict[str, float]]] = {name: [] for name in LAYOUTS}
    names = list(LAYOUTS)
    for repeat in range(options.repeats):
        # In turns, each repeat from another layout on, after one turn that does not count: whoever
        # is first pays for memory that the system has to find for its page cache.
        measure(names[repeat % len(names)], options.folder, options.runs)
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            found[name].append(measure(name, options.folder, options.runs))
    result = {
        "what": f"{options.runs} runs of {RUN_BYTES >> 20} MiB, medians of {options.repeats}",
        "cpu": machine.cpu,
        "kernel": machine.kernel,
        "warning": busy_warning(machine),
        "layouts": {name: _medians(samples) for name, samples in found.items()},
    }
    print(json.dumps(result, indent=2))
    return 0


def measure(name: str, folder: Path | None, n_runs: int) -> dict[str, float]:
    """One turn of one layout."""
    content = memoryview(os.urandom(RUN_BYTES // BLOCKS * BLOCKS))
    order = list(range(n_runs))
    random.Random(1).shuffle(order)
    with tempfile.TemporaryDirectory(dir=folder) as path:
        layout = LAYOUTS[name](Path(path))
        total = len(content) * n_runs
        began_s = time.perf_counter()
        for number in range(n_runs):
            layout.put(number, content)
        write_s = time.perf_counter() - began_s
        _forget_pages(Path(path))
        buffer = memoryview(bytearray(len(content)))
        began_s = time.perf_counter()
        for number in order:
            layout.get(number, buffer)
        read_s = time.perf_counter() - began_s
        began_s = time.perf_counter()
        copied = layout.reclaim(order[::2])
        reclaim_s = time.perf_counter() - began_s
    return {
        "write_gb_per_s": total / write_s / 1e9,
        "read_cold_gb_per_s": total / read_s / 1e9,
        "reclaim_s": reclaim_s,
        "reclaim_copied_mb": copied / 1e6,
    }


def _medians(samples: list[dict[str, float]]) -> dict[str, float]:
    return {key: round(statistics.median(s[key] for s in samples), 3) for key in samples[0]}


def _forget_pages(folder: Path) -> None:
    for path in folder.iterdir():
        with _opened(path, os.O_RDONLY) as fd:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


def _write(fd: int, data: memoryview) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _read(fd: int, offset: int, into: memoryview) -> None:
    while into:
        got = os.preadv(fd, [into], offset)
        if not got:
            raise OSError("a run is shorter than it was written")
        offset, into = offset + got, into[got:]
