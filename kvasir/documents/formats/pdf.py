"""PDF by pdfium: each page's text in the order pdfium gives it, printed labels, the outline.

Invariant: every page has its place in the document, in its order, also where nothing of it could be
read; then why is noted for that page. Drawings made of lines are not noticed; images are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import Any, BinaryIO

import pypdfium2 as pdfium
import pypdfium2.raw as pdfium_c

from kvasir.core.errors import UnreadableFile
from kvasir.documents.building import Builder, normalised
from kvasir.documents.formats.pdf_outline import Entry, entries, place

_HYPHEN = "\ufffe"  # pdfium's mark of a hyphen at the end of a line, which it joins to the next
_MIN_FIGURE_POINTS = 36.0  # half an inch either way; smaller images are ornaments
_WHOLE_PAGE = 0.85  # of a page's area: a scan with its letters laid over it
_MAX_OBJECTS = 20_000  # of a page that are looked at
_MAX_DEPTH = 3  # of forms within forms
_MOST_FAILURES = 100  # pages one after the other; the rest is not there at all
_MEANINGLESS = re.compile("[\ufffd\ue000-\uf8ff\x01-\x08\x0b\x0e-\x1f]")
_MOST_MEANINGLESS = 0.3  # of a page's letters
_LATE = "reading the file took as long as is allowed; the pages before this one were read"


def clean(text: str) -> str:
    """pdfium's text as it is kept: what is printed at a line's end is a hyphen and a new line."""
    return normalised(text.replace(_HYPHEN, "-\n"))


def read(source: BinaryIO, build: Builder) -> None:
    """Fill ``build`` with the PDF in ``source``. Raises ``UnreadableFile`` where it cannot be
    opened or wants a password."""
    document = _open(source)
    try:
        _Reading(document, build).run()
    finally:
        document.close()


def _open(source: BinaryIO) -> pdfium.PdfDocument:
    try:
        return pdfium.PdfDocument(source)
    except pdfium.PdfiumError as error:
        if getattr(error, "err_code", None) == pdfium_c.FPDF_ERR_PASSWORD:
            raise UnreadableFile(
                "it is encrypted and wants a password; save it without one", code="encrypted_file"
            ) from error
        if getattr(error, "err_code", None) == pdfium_c.FPDF_ERR_SECURITY:
            raise UnreadableFile(
                "it is encrypted in a way that cannot be read; save it without",
                code="encrypted_file",
            ) from error
        raise UnreadableFile(
            f"it is damaged ({error}); open it in a viewer and save it again", code="damaged_file"
        ) from error


class _Reading:
    """One pass over the pages of a document."""

    def __init__(self, document: pdfium.PdfDocument, build: Builder) -> None:
        self._document = document
        self._build = build
        self._limits = build.allowance.limits
        self._n_pages = len(document)
        self._failures = 0  # one after the other, up to here
        self._outline: dict[int, list[Entry]] = {}

    def run(self) -> None:
        last = min(self._n_pages, self._limits.pages)
        for entry in islice(entries(self._document), self._limits.headings):
            self._outline.setdefault(entry.page, []).append(entry)
        for index in range(last):
            self._build.start_page(self._label(index))
            if self._build.allowance.late:
                self._build.unread("page", _LATE, index)
                last = index + 1
                break
            if self._failures == _MOST_FAILURES:
                last = index
                break
            self._page(index, last)
        if last < self._n_pages:
            self._build.unread(
                "page", f"pages {last + 1:,} to {self._n_pages:,} of the file were not read"
            )
        if self._document.get_formtype() != pdfium_c.FORMTYPE_NONE:
            self._build.unread("form", "what is filled into fields of forms may not be in the text")

    def _label(self, index: int) -> str:
        try:
            return str(self._document.get_page_label(index) or index + 1)
        except (pdfium.PdfiumError, UnicodeError):
            return str(index + 1)

    def _page(self, index: int, last: int) -> None:
        reason = self._build.allowance.begin(index, index, last)
        if reason is not None:
            self._build.unread("page", reason, index)
            return
        try:
            page = self._document[index]
        except pdfium.PdfiumError as error:
            self._failures += 1
            self._build.unread("page", f"the page cannot be opened ({error})", index)
            return
        self._failures = 0
        try:
            self._contents(index, page)
        except (pdfium.PdfiumError, OSError, ValueError) as error:
            self._build.unread("page", f"the page's text cannot be read ({error})", index)
        finally:
            page.close()

    def _contents(self, index: int, page: pdfium.PdfPage) -> None:
        figures = list(self._images(page))
        textpage = page.get_textpage()
        try:
            raw = textpage.get_text_range()
            kept = clean(raw)
            if not kept.strip():
                self._empty(index, page, bool(figures))
            elif _without_meaning(kept):
                self._build.unread(
                    "page", "its fonts do not say which letters they draw, as in a scan", index
                )
                kept = ""
            else:
                self._figures(index, page, figures)
            start = self._build.length
            for entry in self._outline.get(index, ()):
                at = place(entry, raw, textpage) if kept else 0
                self._build.heading(entry.level, entry.title, start + len(clean(raw[:at])))
            self._build.add(kept + "\n")
        finally:
            textpage.close()

    def _empty(self, index: int, page: pdfium.PdfPage, has_figures: bool) -> None:
        if has_figures:
            self._build.unread(
                "page", "it is an image without text, as from a scanner; it needs OCR", index
            )
        elif next(iter(page.get_objects(max_depth=1)), None) is not None:
            self._build.unread("page", "it holds drawings but no text", index)

    def _images(self, page: pdfium.PdfPage) -> Iterator[tuple[float, float]]:
        """Width and height, in points, of the page's images that are not ornaments."""
        objects = page.get_objects(max_depth=_MAX_DEPTH)
        for found in islice(objects, _MAX_OBJECTS):
            if found.type == pdfium_c.FPDF_PAGEOBJ_IMAGE:
                left, bottom, right, top = _bounds(found)
                width, height = right - left, top - bottom
                if min(width, height) >= _MIN_FIGURE_POINTS:
                    yield width, height

    def _figures(
        self, index: int, page: pdfium.PdfPage, figures: list[tuple[float, float]]
    ) -> None:
        page_width, page_height = page.get_size()
        for width, height in figures:
            if width * height < _WHOLE_PAGE * page_width * page_height:
                self._build.unread(
                    "figure", f"an image of {width:.0f} x {height:.0f} points is not read", index
                )


def _bounds(found: Any) -> tuple[float, float, float, float]:
    try:
        left, bottom, right, top = found.get_bounds()
    except pdfium.PdfiumError:
        return 0.0, 0.0, 0.0, 0.0
    return left, bottom, right, top


def _without_meaning(text: str) -> bool:
    letters = sum(not char.isspace() for char in text)
    return len(_MEANINGLESS.findall(text)) > _MOST_MEANINGLESS * letters
