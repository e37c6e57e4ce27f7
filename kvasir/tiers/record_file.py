"""A record's file: what it is called, how its header is read, and which files a folder holds.

Invariant: nothing is changed here, so whoever only looks may do so beside a server.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto

from kvasir.tiers.folder import Folder, Reading
from kvasir.tiers.record import (
    PRELUDE,
    Damaged,
    NewerVersion,
    Record,
    decode_header,
    header_size,
    was_known,
)

SUFFIX = ".kv"
_FINAL = re.compile(r"[0-9a-f]{64}\.kv")
_TEMPORARY = re.compile(r"[0-9a-f]{64}\.part")
_FIRST_READ_BYTES = 32 * 1024  # holds the header of nearly every record


class Kind(Enum):
    """What a file of a store's folder is."""

    RECORD = auto()  # its header verifies; its planes have not been read
    NEWER = auto()  # a record of a version that is not known here
    DAMAGED = auto()  # it has a record's name and is none
    BEGUN = auto()  # it is being written, or whoever wrote it has died


@dataclass(frozen=True, slots=True)
class Found:
    """One file of a store's folder. ``problem`` says what is wrong with a damaged one."""

    file_name: str
    kind: Kind
    time_s: float  # Unix time at which it was last written or touched
    n_bytes: int = 0  # of a record of any version
    record: Record | None = None
    problem: str = ""


def final_name(name: str) -> str:
    """The file of record ``name``."""
    return f"{name}{SUFFIX}"


def temporary_name(name: str) -> str:
    """The file of record ``name`` while it is being written."""
    return f"{name}.part"


def look(folder: Folder) -> Iterator[Found]:
    """The files in ``folder`` that are a store's, the longest unused first; those that are removed
    meanwhile are passed over. Raises ``OSError`` if the folder cannot be read at all."""
    for file_name, time_s in folder.names():
        if _TEMPORARY.fullmatch(file_name):
            yield Found(file_name, Kind.BEGUN, time_s)
        elif _FINAL.fullmatch(file_name):
            try:
                yield _found(folder, file_name, time_s)
            except FileNotFoundError:
                continue


def _found(folder: Folder, file_name: str, time_s: float) -> Found:
    n_bytes = 0
    try:
        with folder.open(file_name) as file:
            n_bytes = file.size
            record, _ = read_header(file, file_name)
    except NewerVersion as newer:
        return Found(file_name, Kind.NEWER, time_s, n_bytes, problem=str(newer))
    except FileNotFoundError:
        raise
    except (Damaged, OSError) as error:
        return Found(file_name, Kind.DAMAGED, time_s, problem=str(error))
    return Found(file_name, Kind.RECORD, time_s, n_bytes, record)


def read_header(file: Reading, file_name: str) -> tuple[Record, list[bytes]]:
    """The header and its digests, once it is sure that the file has the size and the name that the
    header claims. Raises ``Damaged``, of which ``NewerVersion`` is one, and ``OSError``."""
    begin = memoryview(bytearray(min(file.size, _FIRST_READ_BYTES)))
    read_fully(file, 0, begin)
    if len(begin) < PRELUDE.size:
        raise Damaged("it is shorter than a header")
    try:
        size = header_size(begin[: PRELUDE.size])
    except NewerVersion:
        _, _, claimed = PRELUDE.unpack(begin[: PRELUDE.size])
        if PRELUDE.size < claimed <= file.size and was_known(_header(file, begin, claimed)):
            raise Damaged("its version is not that with which it was written") from None
        raise
    if size > file.size:
        raise Damaged("it is shorter than its header")
    header = _header(file, begin, size)
    record, digests = decode_header(header)
    if record.file_bytes != file.size:
        raise Damaged(f"it has {file.size} bytes, its header says {record.file_bytes}")
    if not _belongs(record, file_name):
        raise Damaged("its header is that of another record")
    return record, digests


def _header(file: Reading, begin: memoryview, size: int) -> bytearray:
    """The first ``size`` bytes, of which ``begin`` has been read."""
    header = bytearray(size)
    header[: len(begin)] = begin[:size]
    if size > len(begin):
        read_fully(file, len(begin), memoryview(header)[len(begin) :])
    return header


def read_fully(file: Reading, offset: int, into: memoryview) -> None:
    """Fill ``into`` with what lies at ``offset``: a system may give less than it is asked for.
    Raises ``Damaged`` where the file ends before."""
    rest = into.cast("B")
    while rest:
        got = file.read(offset, rest)
        if got <= 0:
            raise Damaged("it is shorter than it claims")
        offset += got
        rest = rest[got:]


def _belongs(record: Record, file_name: str) -> bool:
    """Whether ``file_name`` is that of ``record``, which is bound to all that its header says."""
    return final_name(record.name) == file_name
