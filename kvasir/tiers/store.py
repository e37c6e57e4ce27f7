"""The record store: runs of blocks on a disk, each either right or not there.

- A record is written under a temporary name, flushed, given its final name, and the folder is
  flushed. Only then is it in the index and does ``put`` say that it is kept.
- The files are the index: opening reads every header, and what does not verify is removed and
  counted. A record is used only after each of its planes has verified against the header.
- The bytes of all files, those being written included, never exceed the cap.
- The first error in writing ends writing until the store is opened again; the record is discarded,
  never retried into success. Reading goes on.

One thread at a time. Torch-free.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from kvasir.tiers.folder import Folder, Reading, Writing
from kvasir.tiers.record import (
    PRELUDE,
    Buffer,
    Damaged,
    Record,
    decode_header,
    encode_header,
    header_size,
    plane_digest,
)

log = logging.getLogger(__name__)

_FINAL = re.compile(r"[0-9a-f]{64}\.kv")
_TEMPORARY = re.compile(r"[0-9a-f]{64}\.part")


class StoreFull(Exception):
    """The record would exceed the cap; make room first."""


class StoreDegraded(Exception):
    """Nothing is written any more, because writing has failed; says how."""


class RecordStore:
    """Records by name."""

    def __init__(self, folder: Folder, cap_bytes: int) -> None:
        """Open ``folder``. Leftovers of a crash and damaged records are removed, and the oldest
        records where they exceed ``cap_bytes``. Raises ``OSError`` if it cannot be read at all."""
        self._folder = folder
        self._cap_bytes = cap_bytes
        self._records: dict[str, Record] = {}
        self._used_bytes = 0
        self._failure = ""
        self.counts: Counter[str] = Counter()  # kept, damaged, orphans, failed_writes, …
        self._open()

    @property
    def records(self) -> Mapping[str, Record]:
        """What is kept, by name."""
        return MappingProxyType(self._records)

    @property
    def used_bytes(self) -> int:
        """Bytes of all files."""
        return self._used_bytes

    @property
    def cap_bytes(self) -> int:
        """What ``used_bytes`` never exceeds."""
        return self._cap_bytes

    @property
    def failure(self) -> str:
        """Why nothing is written any more; empty while all is well."""
        return self._failure

    def put(self, record: Record, planes: Sequence[Buffer]) -> str:
        """Keep ``record`` with its ``planes`` [n_planes][plane_bytes]; its name, once a power cut
        could not take it away. Raises ``StoreFull`` or ``StoreDegraded``."""
        name = record.name
        if name in self._records:
            return name
        if self._failure:
            raise StoreDegraded(self._failure)
        if self._used_bytes + record.file_bytes > self._cap_bytes:
            raise StoreFull(
                f"{record.file_bytes} bytes do not fit: {self._used_bytes} of "
                f"{self._cap_bytes} are in use"
            )
        if [memoryview(plane).nbytes for plane in planes] != [record.plane_bytes] * record.n_planes:
            raise ValueError("the planes are not of the size that the record says")
        self._used_bytes += record.file_bytes
        try:
            self._publish(record, name, planes)
        except OSError as error:
            self._fail(record, name, error)
            raise StoreDegraded(self._failure) from error
        self._records[name] = record
        self.counts["kept"] += 1
        return name

    def get(self, name: str, planes: Sequence[memoryview]) -> None:
        """Read the planes of record ``name`` into ``planes``. Raises ``KeyError`` where there is no
        such record, and ``Damaged`` where it does not verify: it is removed then, and what
        ``planes`` hold must not be used."""
        record = self._records[name]
        try:
            with self._folder.open(_final(name)) as file:
                found, digests = _read_header(file)
                if not _belongs(found, _final(name)):
                    raise Damaged("its header is that of another record")
                for index, (plane, digest) in enumerate(zip(planes, digests, strict=True)):
                    _read_fully(file, record.planes_at + index * record.plane_bytes, plane)
                    if plane_digest(name, index, plane) != digest:
                        raise Damaged(f"plane {index} does not match its digest")
        except (Damaged, OSError) as error:
            self.counts["damaged"] += 1
            log.warning("stored record %s is not used: %s", name[:16], error)
            self.drop(name)
            raise Damaged(str(error)) from error

    def drop(self, name: str) -> None:
        """Forget record ``name`` and remove its file; unknown names are ignored."""
        record = self._records.pop(name, None)
        if record is None:
            return
        if self._remove(_final(name)):
            self._used_bytes -= record.file_bytes

    # inside --------------------------------------------------------------------------------------

    def _open(self) -> None:
        for file_name in self._folder.names():
            if _TEMPORARY.fullmatch(file_name):
                self.counts["orphans"] += 1
                self._remove(file_name)
            elif _FINAL.fullmatch(file_name):
                self._take(file_name)
        for name in list(self._records):  # oldest first
            if self._used_bytes <= self._cap_bytes:
                break
            self.counts["over_cap"] += 1
            self.drop(name)

    def _take(self, file_name: str) -> None:
        try:
            with self._folder.open(file_name) as file:
                record, _ = _read_header(file)
            if not _belongs(record, file_name):
                raise Damaged("it lies under the name of another record")
        except (Damaged, OSError) as error:
            self.counts["damaged"] += 1
            log.warning("stored record %s is removed: %s", file_name[:16], error)
            self._remove(file_name)
            return
        self._records[record.name] = record
        self._used_bytes += record.file_bytes

    def _publish(self, record: Record, name: str, planes: Sequence[Buffer]) -> None:
        digests = [plane_digest(name, index, plane) for index, plane in enumerate(planes)]
        with self._folder.create(_temporary(name)) as file:
            _write_fully(file, encode_header(record, digests))
            for plane in planes:
                _write_fully(file, plane)
            file.sync()
        self._folder.rename(_temporary(name), _final(name))
        self._folder.sync()

    def _fail(self, record: Record, name: str, error: OSError) -> None:
        """Discard what was begun. Where even that fails, its bytes stay counted."""
        self._failure = f"writing KV failed ({error.strerror or error}); restart to try again"
        self.counts["failed_writes"] += 1
        log.error("%s", self._failure)
        gone = True
        for file_name in (_temporary(name), _final(name)):
            gone = self._remove(file_name) and gone
        if gone:
            self._used_bytes -= record.file_bytes

    def _remove(self, file_name: str) -> bool:
        """Whether ``file_name`` is gone."""
        try:
            with contextlib.suppress(FileNotFoundError):
                self._folder.remove(file_name)
        except OSError as error:
            log.warning("%s could not be removed: %s", file_name[:16], error)
            return False
        return True


def _belongs(record: Record, file_name: str) -> bool:
    """Whether ``file_name`` is that of ``record``, which is bound to all that its header says."""
    return _final(record.name) == file_name


def _final(name: str) -> str:
    return f"{name}.kv"


def _temporary(name: str) -> str:
    return f"{name}.part"


def _write_fully(file: Writing, data: Buffer) -> None:
    """Write all of ``data``: a system may take less than it is given."""
    rest = memoryview(data).cast("B")
    while rest:
        taken = file.write(rest)
        if taken <= 0:
            raise OSError("the system takes no more bytes")
        rest = rest[taken:]


def _read_fully(file: Reading, offset: int, into: memoryview) -> None:
    rest = into.cast("B")
    while rest:
        got = file.read(offset, rest)
        if got <= 0:
            raise Damaged("it is shorter than it claims")
        offset += got
        rest = rest[got:]


def _read_header(file: Reading) -> tuple[Record, list[bytes]]:
    """The header, and that the file has the size that it claims."""
    prelude = bytearray(PRELUDE.size)
    _read_fully(file, 0, memoryview(prelude))
    size = header_size(prelude)
    if size > file.size:
        raise Damaged("it is shorter than its header")
    header = bytearray(size)
    _read_fully(file, 0, memoryview(header))
    record, digests = decode_header(header)
    if record.file_bytes != file.size:
        raise Damaged(f"it has {file.size} bytes, its header says {record.file_bytes}")
    return record, digests
