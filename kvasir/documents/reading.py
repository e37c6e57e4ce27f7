"""Reads an open file into documents: finds its format, opens collections, asks the right reader.

What is called here parses what strangers made, so product code calls it in ``extract_child`` alone.
Invariant: for any bytes the result is an ``Extraction`` or a ``RequestError``; of a collection, one
bad member costs that member.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from typing import BinaryIO, TypeVar

from kvasir.core.errors import RequestError, UnreadableFile, UnsupportedFile
from kvasir.documents import media
from kvasir.documents.allowance import WHOLE, Allowance, Exhausted
from kvasir.documents.archive import (
    MemberRefused,
    first_bytes,
    hidden,
    name_of,
    open_archive,
    read_member,
    safe_name,
)
from kvasir.documents.building import Builder, limited, normalised, one_line
from kvasir.documents.decoding import decode
from kvasir.documents.formats import code, docx, epub, html, markdown, pdf, plain, table
from kvasir.documents.values import Document, Extraction, Unread, check

_T = TypeVar("_T")
_MAX_NAME_IN_REASON = 200
_ODF = "application/vnd.oasis.opendocument"


def read(source: BinaryIO, name: str, allowance: Allowance) -> Extraction:
    """What the seekable file ``source`` called ``name`` holds.

    Raises ``UnsupportedFile`` and ``UnreadableFile`` where that is nothing at all.
    """
    head = source.read(media.FIRST_BYTES)
    source.seek(0)
    media_type = _safely(lambda: _refined(media.media_type_of(name, head), source))
    if media_type == media.ZIP:
        return _safely(lambda: _Collection(source, allowance).read())
    parts = 0 if media_type == media.PDF else 1  # it counts its pages itself
    if (reason := allowance.begin(WHOLE, 0, parts)) is not None:
        raise UnreadableFile(reason)
    return Extraction((_safely(lambda: _document(source, name, media_type, allowance)),))


def _safely(do: Callable[[], _T]) -> _T:
    """What ``do`` gives. Whatever a parser raises becomes an ``UnreadableFile``."""
    try:
        return do()
    except RequestError:
        raise
    except MemoryError as error:
        raise UnreadableFile(
            "reading it needs more memory than a file may take; split it", code="hostile_file"
        ) from error
    except RecursionError as error:
        raise UnreadableFile("it is nested too deeply", code="hostile_file") from error
    except Exception as error:  # anything at all may be wrong with a stranger's file
        raise UnreadableFile(
            f"it is damaged ({type(error).__name__}: {str(error)[:200]})", code="damaged_file"
        ) from error


def _refined(media_type: str, source: BinaryIO) -> str:
    """``media_type``, but for archives what the archive is the container of."""
    if media_type != media.ZIP:
        return media_type
    with open_archive(source) as archive:
        names = set(archive.namelist())
        kind = ""
        if "mimetype" in names:
            kind = first_bytes(archive, archive.getinfo("mimetype"), 80).decode("latin-1").strip()
    source.seek(0)
    if kind == media.EPUB or (not kind and "META-INF/container.xml" in names):
        return media.EPUB
    if kind.startswith(_ODF):
        raise media.unsupported("an OpenDocument file; save it as DOCX or PDF")
    if "[Content_Types].xml" in names:
        if any(name.startswith("xl/") for name in names):
            raise media.unsupported("an Excel workbook; save its sheets as CSV")
        if any(name.startswith("ppt/") for name in names):
            raise media.unsupported("a PowerPoint presentation; save it as PDF")
        if any(name.startswith("word/") for name in names):
            return media.DOCX
    return media.ZIP


def _document(source: BinaryIO, name: str, media_type: str, allowance: Allowance) -> Document:
    """The one document in ``source``. Raises ``UnreadableFile`` where it holds no text."""
    build = Builder(name, media_type, allowance)
    _fill(source, media_type, build)
    document = build.document()
    check(document)
    if not document.text.strip():
        reasons = "; ".join(dict.fromkeys(row.reason for row in document.unread[:3]))
        raise UnreadableFile(
            f"no text was found in it{': ' + reasons if reasons else ''}", code="no_text"
        )
    return document


def _fill(source: BinaryIO, media_type: str, build: Builder) -> None:
    if media_type == media.PDF:
        pdf.read(source, build)
    elif media_type == media.DOCX:
        docx.read(source, build)
    elif media_type == media.EPUB:
        epub.read(source, build)
    else:
        _fill_text(_whole(source, build.allowance), media_type, build)


def _whole(source: BinaryIO, allowance: Allowance) -> bytes:
    """All of a text file, which in an encoding of two bytes may be twice what comes of it."""
    most = 2 * allowance.limits.text_bytes
    data = source.read(most + 1)
    if len(data) > most:
        allowance.charge_text(len(data))
    return data


def _fill_text(data: bytes, media_type: str, build: Builder) -> None:
    if media_type == media.HTML:
        html.read(data, build)
        return
    decoded = decode(data)
    build.encoding = decoded.encoding
    if decoded.replaced:
        build.unread("characters", f"{decoded.replaced:,} are not {decoded.encoding}: shown as �")
    text = normalised(decoded.text)
    if media_type == media.MARKDOWN:
        markdown.read(text, build)
    elif media_type in {media.CSV, media.TSV}:
        table.read(text, build)
    elif media_type == media.PLAIN:
        plain.read(text, build)
    else:
        code.read(text, build)


class _Collection:
    """The members of an archive, each read as a file of its own."""

    def __init__(self, source: BinaryIO, allowance: Allowance) -> None:
        self._source = source
        self._allowance = allowance
        self._unread: list[Unread] = []

    def read(self) -> Extraction:
        documents = []
        with open_archive(self._source) as archive:
            members = self._members(archive)
            self._allowance.members = len(members)
            for number, (name, info) in enumerate(members):
                self._allowance.member = number
                if self._allowance.late:
                    self._leave(name, "reading the collection took as long as is allowed")
                    continue
                try:
                    documents.append(_safely(lambda: self._member(archive, info, name)))  # noqa: B023
                except RequestError as error:
                    self._leave(name, str(error))
        if not documents:
            raise UnreadableFile(
                "no file in it could be read: "
                + ("; ".join(row.reason for row in self._unread[:3]) or "it is empty"),
                code="no_text",
            )
        return Extraction(tuple(documents), limited(self._unread, self._allowance.limits.unread))

    def _leave(self, name: str, reason: str) -> None:
        said = f"{one_line(name, _MAX_NAME_IN_REASON)}: {reason}"
        self._unread.append(Unread(None, "file", one_line(said, 600)))

    def _members(self, archive: zipfile.ZipFile) -> list[tuple[str, zipfile.ZipInfo]]:
        """Names and members that are to be read, in the order of their names."""
        limits = self._allowance.limits
        members: dict[str, zipfile.ZipInfo] = {}
        n_hidden = 0
        for info in archive.infolist():
            given = name_of(info)
            if given.endswith("/"):
                continue
            try:
                name = safe_name(given, limits.depth)
                if hidden(name):
                    n_hidden += 1
                elif name in members:
                    self._leave(name, "the archive holds another file of this name")
                else:
                    members[name] = info
            except MemberRefused as error:
                self._leave(given, str(error))
        if n_hidden:
            reason = f"{n_hidden:,} hidden files (names with a dot first, __MACOSX) are left out"
            self._unread.append(Unread(None, "file", reason))
        ordered = sorted(members.items())
        if len(ordered) > limits.members:
            more = len(ordered) - limits.members
            reason = f"{more:,} further files: a collection holds at most {limits.members:,}"
            self._unread.append(Unread(None, "file", reason))
        return ordered[: limits.members]

    def _member(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> Document:
        if (reason := self._allowance.begin(WHOLE, 0, 1)) is not None:
            raise MemberRefused(reason)
        media_type = media.media_type_of(name, first_bytes(archive, info, media.FIRST_BYTES))
        if info.file_size > self._allowance.unpacked_left:
            raise Exhausted("it is larger than what may still be unpacked of the archive")
        source = io.BytesIO(read_member(archive, info, self._allowance))
        media_type = _refined(media_type, source)
        if media_type == media.ZIP:
            raise UnsupportedFile("an archive within an archive is not opened; upload it by itself")
        return _document(source, name, media_type, self._allowance)
