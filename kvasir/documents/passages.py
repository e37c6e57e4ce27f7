"""Passages: pieces of a text of a few hundred characters, small enough to be shown and ranked.

Invariant: passages are in the order of the text and do not overlap; none goes over a heading or the
border of a page, so each has one page and one title path. Left out are blank lines, page numbers
and running titles: what stands first or last on several pages, but for its digits.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from kvasir.documents.outline import Titles
from kvasir.documents.values import Document, Page

TARGET_CHARS = 900
MOST_CHARS = 1200
_LEAST_CHARS = 250
_RUNNING_PAGES = 3  # that begin or end with the same line: it is a running title

_NUMBERS = re.compile(r"\d+|\b[ivxlc]+\b")
_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_SENTENCE = re.compile("[^.!?\u3002\uff01\uff1f]*[.!?\u3002\uff01\uff1f]*\\s*")
_ENDS_WELL = re.compile("[.!?:;\u3002\uff01\uff1f][\"'\u201d\u2019\u00bb)\\]]*\\s*\\Z")
_BEGINS_ITEM = re.compile("\\s*(?:[\u2022\u2013*-]|\\(?[0-9a-zA-Z]{1,3}[.)])\\s")


@dataclass(frozen=True, slots=True)
class Passage:
    """The characters ``start`` … ``end - 1`` of a document, and where they stand."""

    document: str  # its name
    index: int  # of the passage within the document, from 0
    start: int
    end: int
    text: str
    page: Page
    title_path: tuple[str, ...]


def passages_of(document: Document, target_chars: int = TARGET_CHARS) -> tuple[Passage, ...]:
    """The passages of ``document``, of about ``target_chars`` and at most ``MOST_CHARS``."""
    titles = Titles(document)
    found: list[Passage] = []
    for start, end in _ranges(document):
        path = titles.at(start)
        page = document.page_at(start)
        for first, last in _cut(document.text, start, end, target_chars):
            text = document.text[first:last]
            if text.strip():
                found.append(Passage(document.name, len(found), first, last, text, page, path))
    return tuple(found)


def _ranges(document: Document) -> list[tuple[int, int]]:
    """What passages may cover: each page without its running titles, divided at headings."""
    pages = [(page.start, page.end) for page in document.pages]
    if document.paged:
        lines = [_edges(document.text, start, end) for start, end in pages]
        running = Counter(key for page in lines for key in {_key(document.text, at) for at in page})
        pages = [
            _without(document.text, page, edges, running)
            for page, edges in zip(pages, lines, strict=True)
        ]
    borders = sorted({heading.start for heading in document.headings})
    ranges: list[tuple[int, int]] = []
    for start, end in pages:
        inner = borders[bisect_right(borders, start) : bisect_left(borders, end)]
        ranges += pairwise([start, *inner, end])
    return ranges


def _edges(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """The first and the last line of a page that is not blank."""
    page = text[start:end]
    first, last = len(page) - len(page.lstrip()), len(page.rstrip())
    if first >= last:
        return []
    stop = page.find("\n", first, last)
    begin = page.rfind("\n", first, last) + 1
    return [
        (start + first, start + (last if stop < 0 else stop)),
        (start + max(begin, first), start + last),
    ]


def _key(text: str, line: tuple[int, int]) -> str:
    """A line without its digits and roman numerals: the same on every page if it is running."""
    return _NUMBERS.sub("", text[line[0] : line[1]]).strip()


def _without(
    text: str, page: tuple[int, int], edges: list[tuple[int, int]], running: Counter[str]
) -> tuple[int, int]:
    """``page`` without the edges that are running titles or page numbers."""
    start, end = page
    if len(edges) < 2:
        return page
    first, last = edges
    if first == last:  # a page of one line
        return page
    if running[_key(text, first)] >= _RUNNING_PAGES:
        start = first[1]
    if running[_key(text, last)] >= _RUNNING_PAGES:
        end = last[0]
    return start, end


def _cut(text: str, start: int, end: int, target_chars: int) -> Iterator[tuple[int, int]]:
    """``start`` … ``end`` in passages: at the end of a paragraph or a sentence near the target,
    else of a line."""
    first = good = start
    for begin, stop in _units(text, start, end):
        if stop - first > target_chars and first < begin:
            at = good if good - first >= _LEAST_CHARS else first
            if stop - at > MOST_CHARS or (at == first and stop - first > MOST_CHARS):
                at = begin
            if at > first:
                yield first, at
                first = at
        if _ENDS_WELL.search(text, begin, stop) or _BEGINS_ITEM.match(text, stop, end):
            good = stop
    if first < end:
        yield first, end


def _units(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Lines; of a long one its sentences; of a long sentence runs of ``TARGET_CHARS``."""
    for line in _LINE.finditer(text, start, end):
        if len(line.group()) <= TARGET_CHARS:
            yield line.span()
            continue
        for sentence in _SENTENCE.finditer(text, line.start(), line.end()):
            for at in range(sentence.start(), sentence.end(), TARGET_CHARS):
                yield at, min(at + TARGET_CHARS, sentence.end())
