"""Zip files from strangers: their members' names, and their bytes up to what is allowed.

Invariant: no name leads out of the archive, no member is read twice over, and nothing is unpacked
that was not charged; sizes that the archive declares are never believed.
"""

from __future__ import annotations

import re
import stat
import unicodedata
import zipfile
import zlib
from typing import BinaryIO

from kvasir.core.errors import UnreadableFile
from kvasir.documents.allowance import Allowance

MAX_NAME_CHARS = 1024
_DRIVE = re.compile(r"^[A-Za-z]:")
_CONTROL = re.compile("[\x00-\x1f\x7f\u202a-\u202e\u2066-\u2069]")
_CHUNK_BYTES = 2**20
_ENCRYPTED = 0x1
_UTF8_NAME = 0x800
_LOCAL_HEADER_BYTES = 30
BROKEN = (  # what zipfile raises for archives that are not as they should be
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,  # a way of compressing that it does not know
    OSError,
    EOFError,
    ValueError,
    KeyError,
    RuntimeError,
    OverflowError,
)


class MemberRefused(UnreadableFile):
    """A member that is not read, and why."""


def open_archive(source: BinaryIO) -> zipfile.ZipFile:
    """The archive in ``source``. Raises ``UnreadableFile`` where it is damaged, or where members
    share bytes, as they do in bombs that declare the same bytes many times."""
    try:
        archive = zipfile.ZipFile(source)
    except BROKEN as error:
        raise UnreadableFile(
            f"its table of contents is damaged ({error}); pack it again", code="damaged_file"
        ) from error
    end = 0
    for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
        if info.header_offset < end:
            raise UnreadableFile(
                "its members overlap each other, as in archives that are made to overwhelm whoever "
                "unpacks them; pack it again",
                code="hostile_file",
            )
        end = info.header_offset + _LOCAL_HEADER_BYTES + info.compress_size
    return archive


def name_of(info: zipfile.ZipInfo) -> str:
    """The member's name as it was meant, with ``/`` between folders."""
    name = info.orig_filename
    if not info.flag_bits & _UTF8_NAME:
        try:
            name = name.encode("cp437").decode("utf-8")  # many packers do not set the flag
        except UnicodeError:
            name = info.orig_filename
    return name.replace("\\", "/")


def safe_name(name: str, depth: int) -> str:
    """``name`` in its plainest spelling: relative, without empty or "." parts.

    Raises ``MemberRefused`` for names that lead out of the folder, could be shown as another, or
    are longer or deeper than is sensible.
    """
    if _CONTROL.search(name) or len(name) > MAX_NAME_CHARS:
        raise MemberRefused("its name holds control characters or is too long")
    if name.startswith("/") or _DRIVE.match(name):
        raise MemberRefused("its name is an absolute path")
    parts = [part for part in name.split("/") if part not in {"", "."}]
    if ".." in parts:
        raise MemberRefused("its name leads out of the archive")
    if not parts:
        raise MemberRefused("it has no name")
    if len(parts) > depth:
        raise MemberRefused(f"it is in more than {depth} folders within each other")
    return unicodedata.normalize("NFC", "/".join(parts))


def hidden(name: str) -> bool:
    """Whether systems and tools leave such files beside the real ones."""
    parts = name.split("/")
    return (
        any(part.startswith(".") and part not in {".", ".."} for part in parts)
        or "__MACOSX" in parts
        or parts[-1].lower() in {"thumbs.db", "desktop.ini"}
    )


def refuse_special(info: zipfile.ZipInfo) -> None:
    """Raise ``MemberRefused`` for links, devices and what cannot be unpacked."""
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind == stat.S_IFLNK:
        raise MemberRefused("it is a link, and links are not followed")
    if kind not in {0, stat.S_IFREG, stat.S_IFDIR}:
        raise MemberRefused("it is not a plain file")
    if info.flag_bits & _ENCRYPTED:
        raise MemberRefused("it is encrypted")
    if info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise MemberRefused("it is compressed by another method than deflate; pack it again")


def read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, allowance: Allowance) -> bytes:
    """The member's bytes, charged while they are unpacked.

    Raises ``MemberRefused`` where it is damaged or special, ``Exhausted`` where it is too much.
    """
    refuse_special(info)
    data = bytearray()
    try:
        with archive.open(info) as member:
            while chunk := member.read(_CHUNK_BYTES):
                allowance.charge_unpacked(len(chunk))
                data += chunk
    except BROKEN as error:
        raise MemberRefused(f"it is damaged ({error})") from error
    return bytes(data)


def first_bytes(archive: zipfile.ZipFile, info: zipfile.ZipInfo, n_bytes: int) -> bytes:
    """The first ``n_bytes`` of a member. Raises ``MemberRefused``."""
    refuse_special(info)
    try:
        with archive.open(info) as member:
            return member.read(n_bytes)
    except BROKEN as error:
        raise MemberRefused(f"it is damaged ({error})") from error
