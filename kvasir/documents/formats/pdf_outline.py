"""The outline of a PDF: its entries, and where in a page's text each of them begins.

Invariant: an entry is placed on the page that the file names; within it, where its title stands
nearest to the height that the file names, else at the first line below that height.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pypdfium2 as pdfium
import pypdfium2.raw as pdfium_c

_MAX_LEVELS = 15
_MAX_ENTRIES = 100_000  # looked at, of an outline that may run in circles
_SLACK_POINTS = 4.0  # a line's letters may stand a little above its named height
_TOP_OF_VIEW = {  # where in a view's numbers its upper edge is
    pdfium_c.PDFDEST_VIEW_XYZ: 1,
    pdfium_c.PDFDEST_VIEW_FITH: 0,
    pdfium_c.PDFDEST_VIEW_FITBH: 0,
    pdfium_c.PDFDEST_VIEW_FITR: 3,
}
_MAX_TITLE_CHARS = 500
_MAX_NUMBER_CHARS = 40  # "CHAPTER ONE", "1.2.3": what is printed before a title and begins it
_MAX_FOUND = 20  # places of a title on its page


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the outline: where it leads, and how high on that page, if that is told."""

    level: int
    title: str
    page: int
    top: float | None


def entries(document: pdfium.PdfDocument) -> Iterator[Entry]:
    """The entries of the outline that lead to a page, in its order."""
    for bookmark in islice(document.get_toc(max_depth=_MAX_LEVELS), _MAX_ENTRIES):
        try:
            title = str(bookmark.get_title())
            target = bookmark.get_dest()
            page = None if target is None else target.get_index()
            if page is not None and page >= 0:
                yield Entry(bookmark.level + 1, title, page, _top(target))
        except (pdfium.PdfiumError, UnicodeError, ValueError):
            continue  # an entry that leads nowhere names nothing


def _top(target: Any) -> float | None:
    mode, numbers = target.get_view()
    at = _TOP_OF_VIEW.get(mode)
    if at is None or at >= len(numbers) or not math.isfinite(numbers[at]):
        return None
    return float(numbers[at])


def place(entry: Entry, text: str, textpage: pdfium.PdfTextPage) -> int:
    """The index in ``text``, the page's as pdfium gives it, where ``entry`` begins."""
    found = _title_places(entry.title, text)
    top = entry.top
    if top is None:
        return found[0] if found else 0
    line = _first_below(top, text, textpage)
    if not found:
        return line
    at = min(found, key=lambda at: abs(_char_top(at, textpage, math.inf) - top))
    return line if 0 <= at - line <= _MAX_NUMBER_CHARS else at


def _title_places(title: str, text: str) -> list[int]:
    words = title.split()
    if not words or len(title) > _MAX_TITLE_CHARS:
        return []
    for flags in (re.NOFLAG, re.IGNORECASE):  # titles of chapters may be printed in capitals
        pattern = r"\s+".join(re.escape(word) for word in words)
        found = [m.start() for m in islice(re.finditer(pattern, text, flags), _MAX_FOUND)]
        if found:
            return found
    return []


def _char_top(at: int, textpage: pdfium.PdfTextPage, otherwise: float) -> float:
    """How high the character at ``at`` of the page's text reaches."""
    index = pdfium_c.FPDFText_GetCharIndexFromTextIndex(textpage, at)
    if index < 0:
        return otherwise
    try:
        return float(textpage.get_charbox(index)[3])
    except pdfium.PdfiumError:
        return otherwise


def _first_below(top: float, text: str, textpage: pdfium.PdfTextPage) -> int:
    """The beginning of the first line that does not stand above ``top``."""
    at = 0
    for line in islice(text.split("\n"), 2000):
        if line.strip() and _char_top(at, textpage, math.inf) <= top + _SLACK_POINTS:
            return at
        at += len(line) + 1
    return 0
