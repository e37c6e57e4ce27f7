"""A folder in memory: the host tier's records, which end with the process.

Never holds more bytes than its cap. A file that is removed or replaced while it is read can still
be read, as on a disk; its memory goes back when the reader has closed it.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Iterator
from dataclasses import dataclass

from kvasir.tiers.folder import Reading, Writing
from kvasir.tiers.record import Buffer


@dataclass(slots=True)
class _File:
    content: bytearray
    time_s: float


class RamFolder:
    """Files of up to ``cap_bytes`` together. One thread may read while another one writes."""

    def __init__(self, cap_bytes: int) -> None:
        self._cap_bytes = cap_bytes
        self._files: dict[str, _File] = {}

    def names(self) -> list[tuple[str, float]]:
        found = [(name, file.time_s) for name, file in list(self._files.items())]
        return sorted(found, key=lambda one: one[1])

    @contextlib.contextmanager
    def create(self, name: str) -> Iterator[Writing]:
        if name in self._files:
            raise FileExistsError(errno.EEXIST, "the file is there already", name)
        file = self._files[name] = _File(bytearray(), time.time())
        yield _RamWriting(self, file)

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[Reading]:
        yield _RamReading(self._file(name).content)

    def rename(self, old: str, new: str) -> None:
        self._files[new] = self._file(old)
        del self._files[old]

    def remove(self, name: str) -> None:
        if self._files.pop(name, None) is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", name)

    def touch(self, name: str, time_s: float) -> None:
        self._file(name).time_s = time_s

    def sync(self) -> None:
        """Nothing here survives the process, whatever is done."""

    def free_bytes(self) -> int:
        return self._cap_bytes - sum(len(file.content) for file in list(self._files.values()))

    def _file(self, name: str) -> _File:
        file = self._files.get(name)
        if file is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", name)
        return file


class _RamWriting:
    def __init__(self, folder: RamFolder, file: _File) -> None:
        self._folder = folder
        self._file = file

    def write(self, data: Buffer) -> int:
        taken = memoryview(data)[: self._folder.free_bytes()]
        if len(data) and not taken:
            raise OSError(errno.ENOSPC, "the memory for stored KV is full")
        try:
            self._file.content += taken
        except MemoryError as error:
            raise OSError(errno.ENOMEM, "the system gives no more memory") from error
        self._file.time_s = time.time()
        return len(taken)

    def sync(self) -> None:
        """Nothing here survives the process, whatever is done."""


class _RamReading:
    def __init__(self, content: bytearray) -> None:
        self._content = content
        self.size = len(content)

    def read(self, offset: int, into: memoryview) -> int:
        part = memoryview(self._content)[offset : offset + len(into)]
        into[: len(part)] = part
        return len(part)
