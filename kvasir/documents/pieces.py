"""Where a text without headings may be cut: pages, paragraphs, lines, sentences, words, characters.

Invariant: pieces cover what they are pieces of without gaps or overlaps; what separates two pieces
(blank lines, spaces) belongs to the one before. Appending to a text moves no border before its end.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from kvasir.documents.values import Document

# each finds the end of a piece
_BORDERS = (
    re.compile(r"\n[^\S\n]*(?:\n[^\S\n]*)+"),  # blank lines
    re.compile(r"\n(?:[^\S\n]*\n)*"),  # lines
    # the ends of sentences, with closing quotation marks and brackets; those of Chinese, Japanese
    re.compile("[.!?\u2026][\"'\u201d\u2019\u00bb)\\]]*\\s+|[\u3002\uff01\uff1f]"),
    re.compile(r"\s+"),
)
KINDS = 1 + len(_BORDERS)  # pages, and those; beyond them a text is cut between characters


def pieces(document: Document, start: int, end: int, kind: int) -> tuple[list[int], int]:
    """The ends of the pieces of ``start`` … ``end``, by the coarsest kind from ``kind`` on that
    gives more than one, and the kind that comes next. One end, and ``KINDS``, where none does."""
    for at in range(kind, KINDS):
        if at == 0:
            ends = _page_ends(document, start, end) if document.paged else []
        else:
            ends = [match.end() for match in _BORDERS[at - 1].finditer(document.text, start, end)]
        ends = _within(ends, start, end)
        if len(ends) > 1:
            return ends, at + 1
    return [end], KINDS


def _page_ends(document: Document, start: int, end: int) -> list[int]:
    first, last = document.pages_between(start, end)
    return [page.end for page in document.pages[first.index : last.index + 1]]


def _within(ends: Iterable[int], start: int, end: int) -> list[int]:
    """Ends in ascending order, each once, and the last is ``end``."""
    kept = []
    before = start
    for at in ends:
        if before < at < end:
            kept.append(at)
            before = at
    return [*kept, end]
