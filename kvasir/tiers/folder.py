"""One folder as stored KV sees it: the only file operations that it goes through.

``tiers.ram`` puts memory here, and tests a simulated disk, which loses, tears and reorders what was
not flushed. The real one never follows a link, never waits on a FIFO and never leaves the folder:
names are plain names.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from kvasir.tiers.record import Buffer


class Writing(Protocol):
    """A new file that is being written."""

    def write(self, data: Buffer) -> int:
        """Append some of ``data``; how many bytes were taken, which may be fewer than all."""
        ...

    def sync(self) -> None:
        """Return when what was written would survive a power cut."""
        ...


class Reading(Protocol):
    """An open file."""

    @property
    def size(self) -> int:
        """Bytes of the file."""
        ...

    def read(self, offset: int, into: memoryview) -> int:
        """Read from ``offset`` into ``into``; how many bytes came, which may be fewer."""
        ...


class Folder(Protocol):
    """A flat folder. Every method may raise ``OSError``."""

    def names(self) -> list[tuple[str, float]]:
        """What is in it, each with its time (Unix, seconds): when it was last written or touched.
        The oldest first."""
        ...

    def create(self, name: str) -> contextlib.AbstractContextManager[Writing]:
        """A new file; it must not be there yet."""
        ...

    def open(self, name: str) -> contextlib.AbstractContextManager[Reading]:
        """A regular file; a link, a folder or a FIFO is refused."""
        ...

    def rename(self, old: str, new: str) -> None:
        """Give a file another name, replacing what has that name."""
        ...

    def remove(self, name: str) -> None:
        """Remove a name that is there."""
        ...

    def touch(self, name: str, time_s: float) -> None:
        """Give a file another time; need not survive a power cut."""
        ...

    def sync(self) -> None:
        """Return when the names as they are now would survive a power cut."""
        ...

    def free_bytes(self) -> int:
        """Bytes that could still be written."""
        ...


class RealFolder:
    """A folder of the system. Holds it open, so it stays the same one if its path changes."""

    def __init__(self, path: Path) -> None:
        path.mkdir(mode=0o700, exist_ok=True)
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)

    def close(self) -> None:
        """Let the folder go."""
        os.close(self._fd)

    def names(self) -> list[tuple[str, float]]:
        found = []
        with os.scandir(self._fd) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # removed since it was listed
                    found.append((entry.stat(follow_symlinks=False).st_mtime_ns, entry.name))
        return [(name, time_ns / 1e9) for time_ns, name in sorted(found)]

    @contextlib.contextmanager
    def create(self, name: str) -> Iterator[Writing]:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(_plain(name), flags, 0o600, dir_fd=self._fd)
        try:
            yield _RealWriting(fd)
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[Reading]:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(_plain(name), flags, dir_fd=self._fd)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(f"{name} is not a regular file")
            yield _RealReading(fd, status.st_size)
        finally:
            os.close(fd)

    def rename(self, old: str, new: str) -> None:
        os.replace(_plain(old), _plain(new), src_dir_fd=self._fd, dst_dir_fd=self._fd)

    def remove(self, name: str) -> None:
        os.unlink(_plain(name), dir_fd=self._fd)

    def touch(self, name: str, time_s: float) -> None:
        at_ns = int(time_s * 1e9)
        os.utime(_plain(name), ns=(at_ns, at_ns), dir_fd=self._fd, follow_symlinks=False)

    def sync(self) -> None:
        os.fsync(self._fd)

    def free_bytes(self) -> int:
        status = os.fstatvfs(self._fd)
        return status.f_bavail * status.f_frsize


class _RealWriting:
    def __init__(self, fd: int) -> None:
        self._fd = fd

    def write(self, data: Buffer) -> int:
        return os.write(self._fd, data)

    def sync(self) -> None:
        os.fsync(self._fd)


class _RealReading:
    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self.size = size

    def read(self, offset: int, into: memoryview) -> int:
        return os.preadv(self._fd, [into], offset)


def _plain(name: str) -> str:
    if not name or "/" in name or "\0" in name or name in (".", ".."):
        raise OSError(f"{name!r} is not a plain file name")
    return name
