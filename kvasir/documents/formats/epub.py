"""EPUB: the chapters of a book in reading order, each with its heading from the table of contents.

Invariant: what the book's own list (the spine) names is read or noted as unread, in that order.
Encrypted books are refused; fonts that are merely disguised do not make a book encrypted.
"""

from __future__ import annotations

import posixpath
import zipfile
from dataclasses import dataclass, field
from typing import BinaryIO
from urllib.parse import unquote

from lxml import etree

from kvasir.core.errors import UnreadableFile
from kvasir.documents.allowance import Exhausted
from kvasir.documents.archive import MemberRefused, open_archive, read_member
from kvasir.documents.building import Builder, one_line
from kvasir.documents.decoding import decode
from kvasir.documents.formats import html
from kvasir.documents.formats.markup import Flow, local_name
from kvasir.documents.formats.xml import parse_xml

_CONTAINER = "META-INF/container.xml"
_ENCRYPTION = "META-INF/encryption.xml"
_FONT_DISGUISES = ("http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC")
_PAGE_TYPES = ("application/xhtml+xml", "text/html", "application/xml", "text/x-oeb1-document")
_MAX_LEVELS = 12


@dataclass(frozen=True, slots=True)
class _Item:
    path: str  # within the archive
    media_type: str
    properties: str


@dataclass(slots=True)
class _Book:
    """What the package file says."""

    items: dict[str, _Item] = field(default_factory=dict)  # by id
    spine: list[str] = field(default_factory=list)  # ids
    ncx: str = ""  # an id


@dataclass(frozen=True, slots=True)
class _Entry:
    level: int
    title: str
    anchor: str  # within its file; empty for the whole


class _Reading:
    def __init__(self, archive: zipfile.ZipFile, build: Builder) -> None:
        self._archive = archive
        self._build = build

    def run(self) -> None:
        self._refuse_encrypted()
        book = self._package()
        contents = self._contents(book)
        n_read = 0
        for identity in book.spine:
            item = book.items.get(identity)
            if item is None:
                self._build.unread("chapter", f"the book lists {identity!r} and does not hold it")
            elif item.media_type not in _PAGE_TYPES:
                self._build.unread("chapter", f"{item.path} is {item.media_type}, not text")
            else:
                n_read += self._chapter(item, contents.get(item.path, []))
        if not n_read:
            raise UnreadableFile("none of its chapters can be read", code="damaged_file")

    def _bytes(self, path: str) -> bytes:
        try:
            info = self._archive.getinfo(path)
        except KeyError as error:
            raise MemberRefused(f"{path} is missing") from error
        return read_member(self._archive, info, self._build.allowance)

    def _refuse_encrypted(self) -> None:
        if _ENCRYPTION not in self._archive.namelist():
            return
        root = parse_xml(self._bytes(_ENCRYPTION), _ENCRYPTION)
        for method in root.iter("{*}EncryptionMethod"):
            if method.getparent() is not None and local_name(method.getparent()) == "encryptedkey":
                continue
            if method.get("Algorithm") not in _FONT_DISGUISES:
                raise UnreadableFile(
                    "it is encrypted (DRM); only books without such a lock can be read",
                    code="encrypted_file",
                )

    def _package(self) -> _Book:
        container = parse_xml(self._bytes(_CONTAINER), _CONTAINER)
        rootfile = next(container.iter("{*}rootfile"), None)
        path = "" if rootfile is None else rootfile.get("full-path") or ""
        root = parse_xml(self._bytes(path), path)
        book = _Book()
        for item in root.iter("{*}item"):
            target = _resolved(path, item.get("href") or "")
            made = _Item(target, item.get("media-type") or "", item.get("properties") or "")
            book.items[item.get("id") or ""] = made
        for spine in root.iter("{*}spine"):
            book.ncx = spine.get("toc") or ""
        book.spine = [ref.get("idref") or "" for ref in root.iter("{*}itemref")]
        return book

    def _contents(self, book: _Book) -> dict[str, list[_Entry]]:
        """Entries of the table of contents, by the file they lead to."""
        nav = next((i for i in book.items.values() if "nav" in i.properties.split()), None)
        ncx = book.items.get(book.ncx)
        found: dict[str, list[_Entry]] = {}
        try:
            if nav is not None:
                _read_nav(parse_xml(self._bytes(nav.path), nav.path), nav.path, found)
            if not found and ncx is not None:
                _read_ncx(parse_xml(self._bytes(ncx.path), ncx.path), ncx.path, found)
        except Exhausted:
            raise
        except UnreadableFile as error:
            self._build.unread("contents", f"the table of contents cannot be read: {error}")
        return found

    def _chapter(self, item: _Item, listed: list[_Entry]) -> bool:
        if self._build.allowance.late:
            self._build.unread("chapter", f"{item.path}: reading took as long as is allowed")
            return False
        try:
            root = _page(self._bytes(item.path), item.path)
        except Exhausted:
            raise
        except UnreadableFile as error:
            self._build.unread("chapter", f"{item.path}: {error}")
            return False
        start = self._build.length
        flow = Flow(self._build, headings=not listed)
        if root is not None:
            flow.write(root)
        for entry in listed:
            at = flow.anchors.get(entry.anchor, start)
            self._build.heading(entry.level, entry.title, at)
        if self._build.length > start:
            self._build.add("\n\n")
        return True


def read(source: BinaryIO, build: Builder) -> None:
    """Fill ``build`` with the book in ``source``. Raises ``UnreadableFile``."""
    with open_archive(source) as archive:
        _Reading(archive, build).run()


def _resolved(base: str, reference: str) -> str:
    """The member that ``reference`` in the file ``base`` names; a name that leads out of the
    archive names nothing in it."""
    joined = posixpath.join(posixpath.dirname(base), unquote(reference))
    return posixpath.normpath(joined).lstrip("/") if reference else ""


def _page(data: bytes, path: str) -> etree._Element | None:
    """The tree of a chapter: XHTML, or what passes for it."""
    try:
        return parse_xml(data, path)
    except UnreadableFile:
        root, problem = html.parse(decode(data).text.replace("\0", ""))
        if problem is not None:
            raise MemberRefused(f"it cannot be read ({problem})") from None
        return root


def _add(found: dict[str, list[_Entry]], base: str, href: str, level: int, title: str) -> None:
    reference, _, anchor = href.partition("#")
    path = _resolved(base, reference) if reference else base
    entry = _Entry(min(level, _MAX_LEVELS), one_line(title, 200), unquote(anchor))
    found.setdefault(path, []).append(entry)


def _read_nav(root: etree._Element, path: str, found: dict[str, list[_Entry]]) -> None:
    """EPUB 3: lists of links within the ``nav`` whose type is "toc"."""
    for nav in root.iter("{*}nav"):
        kinds = " ".join(v for k, v in nav.attrib.items() if k.rpartition("}")[2] == "type")
        if kinds and "toc" not in kinds.split():
            continue
        for link in nav.iter("{*}a"):
            level = sum(local_name(above) == "ol" for above in link.iterancestors())
            title = "".join(link.itertext(with_tail=False))
            _add(found, path, link.get("href") or "", max(1, level), title)
        return


def _read_ncx(root: etree._Element, path: str, found: dict[str, list[_Entry]]) -> None:
    """EPUB 2: points within points."""
    for point in root.iter("{*}navPoint"):
        level = 1 + sum(local_name(above) == "navpoint" for above in point.iterancestors())
        label, content = point.find("{*}navLabel"), point.find("{*}content")
        if label is not None and content is not None:
            title = "".join(label.itertext(with_tail=False))
            _add(found, path, content.get("src") or "", level, title)
