"""The disk itself: its sequential speed through the page cache and past it, and how to empty that.

Speeds are those of whole files of 16 MiB, the size of a record, written and flushed one after
another, then read with one call each.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

FILE_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskSpeed:
    """Bytes per second. ``left_bytes`` were still in the page cache when it had been emptied."""

    write: float
    read_cold: float
    read_warm: float
    left_bytes: int


def measure_disk(
    folder: Path, n_files: int, clock: Callable[[], float] = time.perf_counter
) -> DiskSpeed:
    """Write ``n_files`` files in ``folder``, read them cold and again, and remove them."""
    data = os.urandom(FILE_BYTES)  # nothing that a disk could compress
    into = memoryview(bytearray(FILE_BYTES))
    paths = [folder / f"speed-{index}" for index in range(n_files)]
    try:
        began_s = clock()
        for path in paths:
            _write(path, data)
        write_s = clock() - began_s
        left_bytes = drop_cached(paths)
        read_s = []
        for _ in ("cold", "warm"):
            began_s = clock()
            for path in paths:
                _read(path, into)
            read_s.append(clock() - began_s)
    finally:
        for path in paths:
            path.unlink(missing_ok=True)
    n_bytes = n_files * FILE_BYTES
    return DiskSpeed(
        write=n_bytes / write_s,
        read_cold=n_bytes / read_s[0],
        read_warm=n_bytes / read_s[1],
        left_bytes=left_bytes,
    )


def _write(path: Path, data: bytes) -> None:
    with path.open("xb", buffering=0) as file:
        left = memoryview(data)
        while left:
            left = left[file.write(left) :]
        os.fsync(file.fileno())


def _read(path: Path, into: memoryview) -> None:
    with path.open("rb", buffering=0) as file:
        at = 0
        while n := file.readinto(into[at:]):
            at += n
            if at == len(into):
                return


def drop_cached(paths: Iterable[Path]) -> int:
    """Flush ``paths`` and have the system forget their pages; bytes that it kept in memory all the
    same (pages that somebody has mapped, or that it is just using)."""
    found = list(paths)
    for path in found:
        with _opened(path) as file:
            os.fsync(file)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    return resident_bytes(found)


def read_through(paths: Iterable[Path]) -> None:
    """Bring ``paths`` into the page cache."""
    into = memoryview(bytearray(FILE_BYTES))
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(into):
                pass


def resident_bytes(paths: Sequence[Path]) -> int:
    """Bytes of ``paths`` that are in the page cache, in whole pages."""
    return sum(_resident_pages(path) for path in paths) * mmap.PAGESIZE


def _resident_pages(path: Path) -> int:
    size = path.stat().st_size
    if not size:
        return 0
    with _opened(path) as file:
        # private and writable only because ctypes wants a writable buffer; nothing is written
        mapped = mmap.mmap(file, size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
    first = ctypes.c_char.from_buffer(mapped)
    try:
        pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        libc = ctypes.CDLL(None, use_errno=True)
        address, length = ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(size)
        if libc.mincore(address, length, pages) != 0:
            raise OSError(ctypes.get_errno(), f"mincore of {path.name}")
        return sum(page & 1 for page in pages)
    finally:
        del first
        mapped.close()


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A file descriptor to read ``path`` with."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
