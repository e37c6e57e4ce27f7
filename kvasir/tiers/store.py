"""The record store: runs of blocks in a folder, each either right or not there.

- A record is written under a temporary name, flushed, given its final name, and the folder is
  flushed. Only then is it in the index and does ``put`` say that it is kept.
- The files are the index: opening reads every header, and what does not verify is removed and
  counted. Records of every realm are kept; who asks for one decides whether it is of use. Records
  of a newer version are left alone: only their bytes count.
- Nothing of a record is passed on before it has verified against the header, and the header
  against the name. A record that does not verify is removed and counted.
- The bytes of all files, those being written included, never exceed the cap, unless those that are
  left alone do. Above a cap that has become smaller, the ends of chains go first. (A file that is
  dropped while it is read is counted no more, and gone once it is closed.)
- The first error in writing ends writing until the store is opened again; the record is discarded,
  never retried into success. Reading goes on.

One thread may read (``read``, ``verify``, ``use``) while another one writes (``put``, ``drop``).
The lock guards the index and the counts, never I/O: a record that is dropped while it is read is
read right, or is said not to be there. A name is free for a new record once its old file is gone.

Torch-free.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import Counter
from collections.abc import Callable, Generator, Mapping

from kvasir.tiers.chain_order import ends_first
from kvasir.tiers.folder import Folder, Reading, Writing
from kvasir.tiers.record import (
    VERSION,
    Buffer,
    Damaged,
    Record,
    block_digest,
    encode_header,
    plane_digest,
)
from kvasir.tiers.record_file import (
    Found,
    Kind,
    final_name,
    look,
    read_fully,
    read_header,
    temporary_name,
)

log = logging.getLogger(__name__)

Sink = Callable[[int, memoryview], None]
_Planes = Generator[tuple[int, memoryview], None, None]


class StoreFull(Exception):
    """The record would exceed the cap; make room first."""


class StoreDegraded(Exception):
    """Nothing is written any more, because writing has failed; says how."""


class RecordStore:
    """Records by name."""

    def __init__(self, folder: Folder, cap_bytes: int) -> None:
        """Open ``folder``. Leftovers of a crash and damaged records are removed, and where all
        exceed ``cap_bytes``, the longest unused of those that no other continues. Raises
        ``OSError`` if it cannot be read at all."""
        self._folder = folder
        self._cap_bytes = cap_bytes
        self._changed = threading.Condition()  # guards what follows
        self._records: dict[str, Record] = {}
        self._used_s: dict[str, float] = {}
        self._leaving: set[str] = set()  # whose files are being removed
        self._used_bytes = 0
        self._newer_bytes = 0
        self._failure = ""
        self.counts: Counter[str] = Counter()  # kept, damaged, newer, orphans, over_cap
        self._open()

    @property
    def records(self) -> Mapping[str, Record]:
        """What is kept now, by name; after opening, longest unused first. A copy."""
        with self._changed:
            return dict(self._records)

    @property
    def used_bytes(self) -> int:
        """Bytes of all files."""
        return self._used_bytes

    @property
    def cap_bytes(self) -> int:
        """What ``used_bytes`` never exceeds, unless ``newer_bytes`` do."""
        return self._cap_bytes

    @property
    def newer_bytes(self) -> int:
        """Bytes of ``used_bytes`` that are a newer Kvasir's and stay."""
        return self._newer_bytes

    @property
    def failure(self) -> str:
        """Why nothing is written any more; empty while all is well."""
        return self._failure

    def used_s(self, name: str) -> float:
        """When record ``name`` was last used or written, Unix time. Raises ``KeyError``."""
        with self._changed:
            return self._used_s[name]

    def put(self, record: Record, planes: Buffer) -> str:
        """Keep ``record`` with its ``planes`` [n_planes * plane_bytes], one after another; its
        name, once a power cut could not take it away. Raises ``StoreFull`` or ``StoreDegraded``,
        and ``ValueError`` where record and planes are not in order."""
        data = memoryview(planes).cast("B")
        _check(record, data)
        name = record.name
        crowded = self._crowded(record.file_bytes)
        with self._changed:
            self._changed.wait_for(lambda: name not in self._leaving)
            if name in self._records:
                return name
            if self._failure:
                raise StoreDegraded(self._failure)
            if self._used_bytes + record.file_bytes > self._cap_bytes:
                raise StoreFull(
                    f"{record.file_bytes} bytes do not fit: {self._used_bytes} of "
                    f"{self._cap_bytes} are in use"
                )
            if crowded:
                raise StoreFull(f"{record.file_bytes} bytes do not fit: others fill the disk")
            self._used_bytes += record.file_bytes
        try:
            self._publish(record, name, data)
        except OSError as error:
            self._fail(record, name, error)
            raise StoreDegraded(self._failure) from error
        with self._changed:
            self._records[name] = record
            self._used_s[name] = record.created_s
            self.counts["kept"] += 1
        return name

    def read(self, name: str, first: int, count: int, sink: Sink) -> None:
        """Read the blocks ``first`` … ``first + count - 1`` of record ``name``: of plane after
        plane, call ``sink`` with the plane's index and the bytes of those blocks, which have
        verified and are valid until it returns.

        Raises ``KeyError`` where there is no such record, ``ValueError`` where it has no such
        blocks, and ``Damaged`` where something does not verify: the record is removed then, and
        what the sink was given before must not be used.
        """
        record = self._record(name)
        if first < 0 or count < 1 or first + count > len(record.keys):
            raise ValueError(f"blocks {first} … {first + count - 1} of {len(record.keys)}")
        with contextlib.closing(self._planes(record, name, first, count)) as planes:
            for index, data in planes:
                sink(index, data)

    def verify(self, name: str) -> None:
        """Read all of record ``name`` and keep nothing. Raises as ``read`` does."""
        self.read(name, 0, len(self._record(name).keys), lambda index, data: None)

    def use(self, name: str, now_s: float) -> None:
        """Remember, beyond a restart too, that ``name`` was of use at ``now_s``; unknown names are
        ignored."""
        with self._changed:
            if name not in self._records:
                return
            self._used_s[name] = now_s
        try:
            self._folder.touch(final_name(name), now_s)
        except OSError as error:  # it is found as one that was not used, at worst
            log.debug("the time of %s could not be set: %s", name[:16], error)

    def drop(self, name: str) -> None:
        """Forget record ``name`` and remove its file; unknown names are ignored."""
        with self._changed:
            record = self._records.get(name)
        if record is not None:
            self._drop(name, record)

    # opening -------------------------------------------------------------------------------------

    def _open(self) -> None:
        self._make_lasting()
        for found in look(self._folder):
            if found.kind is Kind.NEWER:
                self.counts["newer"] += 1
                self._newer_bytes += found.n_bytes
                self._used_bytes += found.n_bytes
            elif found.record is not None and found.n_bytes <= self._cap_bytes:
                self._records[found.record.name] = found.record
                self._used_s[found.record.name] = found.time_s
                self._used_bytes += found.n_bytes
            else:
                self._discard(found)
        if self._used_bytes <= self._cap_bytes:
            return
        for name in ends_first(dict(self._records)):
            self.counts["over_cap"] += 1
            self.drop(name)
            if self._used_bytes <= self._cap_bytes:
                break

    def _make_lasting(self) -> None:
        """Flush the folder: whoever renamed a record may have been killed before it did, and what
        is found here counts as what a power cut cannot take. That failing is a failure to write."""
        try:
            self._folder.sync()
        except OSError as error:
            self._failure = f"flushing stored KV failed ({error.strerror or error})"
            log.error("%s", self._failure)

    def _discard(self, found: Found) -> None:
        """Remove a file that is of no use, or alone above the cap."""
        if found.kind is Kind.DAMAGED:
            self.counts["damaged"] += 1
            log.warning("stored record %s is removed: %s", found.file_name[:16], found.problem)
        else:
            self.counts["orphans" if found.kind is Kind.BEGUN else "over_cap"] += 1
        self._remove(found.file_name)

    # writing -------------------------------------------------------------------------------------

    def _crowded(self, n_bytes: int) -> bool:
        """Whether others have left less than ``n_bytes``: that passes, and is no failure."""
        try:
            return self._folder.free_bytes() < n_bytes
        except OSError:
            return False  # writing will tell

    def _publish(self, record: Record, name: str, data: memoryview) -> None:
        header = encode_header(record, _digests(record, name, data))
        with self._folder.create(temporary_name(name)) as file:
            _write_fully(file, header)
            _write_fully(file, data)
            file.sync()
        self._folder.rename(temporary_name(name), final_name(name))
        self._folder.sync()

    def _fail(self, record: Record, name: str, error: OSError) -> None:
        """Discard what was begun. Where even that fails, its bytes stay counted."""
        gone = [self._remove(file_name) for file_name in (temporary_name(name), final_name(name))]
        with self._changed:
            self._failure = f"writing KV failed ({error.strerror or error}); restart to try again"
            if all(gone):
                self._used_bytes -= record.file_bytes
        log.error("%s", self._failure)

    def _drop(self, name: str, record: Record) -> bool:
        """Forget ``record`` and remove its file; False if it has been dropped already."""
        with self._changed:
            if self._records.get(name) is not record:
                return False
            del self._records[name], self._used_s[name]
            self._leaving.add(name)
        gone = self._remove(final_name(name))
        with self._changed:
            self._leaving.discard(name)
            if gone:
                self._used_bytes -= record.file_bytes
            self._changed.notify_all()
        return True

    def _remove(self, file_name: str) -> bool:
        """Whether ``file_name`` is gone."""
        try:
            with contextlib.suppress(FileNotFoundError):
                self._folder.remove(file_name)
        except OSError as error:
            log.warning("%s could not be removed: %s", file_name[:16], error)
            return False
        return True

    # reading -------------------------------------------------------------------------------------

    def _record(self, name: str) -> Record:
        with self._changed:
            return self._records[name]

    def _planes(self, record: Record, name: str, first: int, count: int) -> _Planes:
        """Of each plane its index and the verified bytes of some blocks, in one buffer after
        another's. What the caller raises meanwhile is no damage."""
        try:
            with self._folder.open(final_name(name)) as file:
                _, digests = read_header(file, final_name(name))
                cut = _planes_v1 if record.version == 1 else _planes_v2
                yield from cut(file, record, name, digests, first, count)
        except (Damaged, OSError) as error:
            if not self._drop(name, record):
                raise KeyError(name) from error  # it was dropped meanwhile
            with self._changed:
                self.counts["damaged"] += 1
            log.warning("stored record %s is not used: %s", name[:16], error)
            raise Damaged(str(error)) from error


def _planes_v2(
    file: Reading, record: Record, name: str, digests: list[bytes], first: int, count: int
) -> _Planes:
    offset, n_bytes = record.block_span(first, count)
    spans = [(block, *record.block_span(block, 1)) for block in range(first, first + count)]
    data = memoryview(bytearray(n_bytes))
    for plane in range(record.n_planes):
        read_fully(file, record.planes_at + plane * record.plane_bytes + offset, data)
        for block, at, size in spans:
            found = block_digest(name, plane, block, data[at - offset : at - offset + size])
            if found != digests[plane * len(record.keys) + block]:
                raise Damaged(f"block {block} of plane {plane} does not match its digest")
        yield plane, data.toreadonly()


def _planes_v1(
    file: Reading, record: Record, name: str, digests: list[bytes], first: int, count: int
) -> _Planes:
    """One digest for a plane: all of it is read, whichever part is asked for."""
    offset, n_bytes = record.block_span(first, count)
    whole = memoryview(bytearray(record.plane_bytes))
    for plane, digest in enumerate(digests):
        read_fully(file, record.planes_at + plane * record.plane_bytes, whole)
        if plane_digest(name, plane, whole) != digest:
            raise Damaged(f"plane {plane} does not match its digest")
        yield plane, whole[offset : offset + n_bytes].toreadonly()


def _check(record: Record, data: memoryview) -> None:
    if record.version != VERSION:
        raise ValueError(f"records of version {record.version} are read, not written")
    try:
        record.check()
    except Damaged as error:
        raise ValueError(f"no record can be like this: {error}") from error
    if data.nbytes != record.n_planes * record.plane_bytes:
        raise ValueError("the planes are not of the size that the record says")


def _digests(record: Record, name: str, data: memoryview) -> list[bytes]:
    """Of each block of each plane, plane after plane."""
    spans = [record.block_span(block, 1) for block in range(len(record.keys))]
    found = []
    for plane in range(record.n_planes):
        begin = plane * record.plane_bytes
        for block, (at, size) in enumerate(spans):
            part = data[begin + at : begin + at + size]
            found.append(block_digest(name, plane, block, part))
    return found


def _write_fully(file: Writing, data: Buffer) -> None:
    """Write all of ``data``: a system may take less than it is given."""
    rest = memoryview(data).cast("B")
    while rest:
        taken = file.write(rest)
        if taken <= 0:
            raise OSError("the system takes no more bytes")
        rest = rest[taken:]
