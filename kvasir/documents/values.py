"""What a file becomes: text whose every character has a place. Frozen values, JSON and back.

Offsets count characters (code points) of ``Document.text``. Invariants: pages follow each other
without gaps and cover the text; headings are in the order of the text and lie within it. Whatever
of a file is not in the text is named in ``unread``: nothing is left out silently.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Page:
    """A page, or the whole of a file without pages. ``label`` is what is printed on it ("iv"), else
    its number; ``index`` counts from 0."""

    index: int
    label: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Heading:
    """A title in the document's own structure; ``level`` 1 is the outermost."""

    level: int
    title: str
    start: int  # where what it names begins


@dataclass(frozen=True, slots=True)
class Unread:
    """Something of a file that is not in the text, and why. ``page`` is an index, None where it is
    not of one page."""

    page: int | None
    what: str  # "page", "figure", "file", …
    reason: str  # a sentence for people


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """The text of one file. ``name`` is the file's, with folders where it came in a collection."""

    name: str
    media_type: str
    text: str
    pages: tuple[Page, ...]
    headings: tuple[Heading, ...] = ()
    unread: tuple[Unread, ...] = ()
    paged: bool = False  # whether pages are the file's own; else there is one, which means nothing
    encoding: str | None = (
        None  # that a text file was read in: "utf-8", "cp1252", … (maybe a guess)
    )

    def page_at(self, offset: int) -> Page:
        """The page that holds the character at ``offset``; the last one for the end of the text."""
        at = bisect_right(self.pages, offset, key=lambda page: page.start) - 1
        return self.pages[max(0, at)]

    def pages_between(self, start: int, end: int) -> tuple[Page, Page]:
        """The first and the last page of the characters ``start`` … ``end - 1``."""
        return self.page_at(start), self.page_at(max(start, end - 1))

    def to_json(self) -> dict[str, Any]:
        """As numbers, strings, lists and objects; ``from_json`` gives the same value again."""
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Document:
        """The document that ``to_json`` wrote. Raises ``ValueError`` for anything else."""
        try:
            return Document(
                name=str(data["name"]),
                media_type=str(data["media_type"]),
                text=str(data["text"]),
                pages=tuple(Page(**page) for page in data["pages"]),
                headings=tuple(Heading(**heading) for heading in data["headings"]),
                unread=tuple(Unread(**unread) for unread in data["unread"]),
                paged=bool(data["paged"]),
                encoding=data.get("encoding"),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"this is not a document: {error}") from error


@dataclass(frozen=True, slots=True)
class Extraction:
    """All that one uploaded file holds: one document, or several where it is a collection."""

    documents: tuple[Document, ...]
    unread: tuple[Unread, ...] = ()  # members of a collection that gave no document

    @property
    def n_chars(self) -> int:
        """Characters of all documents."""
        return sum(len(document.text) for document in self.documents)


def check(document: Document) -> None:
    """Raise ``ValueError`` unless ``document`` is as the module's invariants say, whatever its
    fields were made from."""
    check_text(document.name, document.media_type, document.text)
    if document.encoding is not None:
        check_text(document.encoding)
    at = 0
    for number, page in enumerate(document.pages):
        check_text(page.label)
        _check_numbers(page.index, page.start, page.end)
        if page.start != at or page.end < at or (page.index != number and document.paged):
            raise ValueError(f"page {number} of {document.name!r} does not follow the one before")
        at = page.end
    if not document.pages or at != len(document.text):
        raise ValueError(f"the pages of {document.name!r} do not cover its text")
    for row in document.unread:
        check_text(row.what, row.reason)
        _check_numbers(*() if row.page is None else (row.page,))
    _ordered(document.headings, len(document.text), document.name)


def _ordered(headings: Sequence[Heading], n_chars: int, name: str) -> None:
    before = 0
    for heading in headings:
        check_text(heading.title)
        _check_numbers(heading.level, heading.start)
        if not before <= heading.start <= n_chars or heading.level < 1:
            raise ValueError(f"the heading {heading.title[:40]!r} of {name!r} is out of place")
        before = heading.start


def check_text(*values: object) -> None:
    """Raise ``ValueError`` unless all ``values`` are text that can be written down: no halves of
    surrogate pairs, which JSON may spell."""
    for value in values:
        if not isinstance(value, str):
            raise ValueError(f"{str(value)[:40]!r} is no text")
        value.encode("utf-8")


def _check_numbers(*values: object) -> None:
    if not all(type(value) is int for value in values):
        raise ValueError("a position is no whole number")
