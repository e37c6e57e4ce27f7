"""A document's headings as nested spans, and the titles that stand over a place in the text.

Invariant: the leaves of the outline, in order, cover the text without gaps or overlaps, and none of
them holds the beginning of a heading except at its own start.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from kvasir.documents.values import Document, Heading

DEEPEST = 32  # headings nested deeper than any book does are taken as siblings: hostile files exist
TITLE_CHARS = 200  # of a title that is shown; a "title" may be anything in a hostile file


@dataclass(frozen=True, slots=True)
class Stretch:
    """Part of a text and the parts that it consists of; no parts is a leaf. ``opening`` says that
    it is what stands between a heading and the first heading below it."""

    start: int
    end: int
    parts: tuple[Stretch, ...] = ()
    opening: bool = False

    def leaves(self) -> list[Stretch]:
        """The leaves under this span, in order; itself where it is one."""
        if not self.parts:
            return [self]
        return [leaf for part in self.parts for leaf in part.leaves()]


def spans_of(document: Document) -> Stretch:
    """The whole document, divided at its headings by level."""
    headings = list(_nested(document.headings))
    return _divide(headings, 0, len(headings), 0, len(document.text))


class Titles:
    """The titles over any place of one document. Remembers them, so that asking is cheap."""

    def __init__(self, document: Document) -> None:
        self._starts: list[int] = []
        self._paths: list[tuple[int, ...]] = []  # indices of headings, outermost first
        self._titles = tuple(shown(heading.title) for heading in document.headings)
        open_: list[tuple[int, int]] = []  # (level, index)
        for index, (level, heading) in enumerate(_nested(document.headings)):
            while open_ and open_[-1][0] >= level:
                open_.pop()
            open_.append((level, index))
            self._starts.append(heading.start)
            self._paths.append(tuple(i for _, i in open_))

    def at(self, offset: int) -> tuple[str, ...]:
        """The titles over the character at ``offset``, outermost first."""
        return tuple(self._titles[i] for i in self._path(offset))

    def over(self, start: int, end: int) -> tuple[str, ...]:
        """The titles over all characters ``start`` … ``end - 1``."""
        last = set(self._path(max(start, end - 1)))
        return tuple(self._titles[i] for i in self._path(start) if i in last)

    def _path(self, offset: int) -> tuple[int, ...]:
        at = bisect_right(self._starts, offset) - 1
        return self._paths[at] if at >= 0 else ()


def shown(title: str) -> str:
    """``title`` on one line, of at most ``TITLE_CHARS`` characters."""
    line = " ".join(title.split())
    return line if len(line) <= TITLE_CHARS else line[: TITLE_CHARS - 1] + "…"


def _nested(headings: tuple[Heading, ...]) -> list[tuple[int, Heading]]:
    """Every heading with how deep it is nested, 1 … ``DEEPEST``: files skip levels as they like."""
    open_: list[int] = []
    found = []
    for heading in headings:
        while open_ and open_[-1] >= heading.level:
            open_.pop()
        if len(open_) < DEEPEST:
            open_.append(heading.level)
        found.append((len(open_), heading))
    return found


def _divide(
    headings: list[tuple[int, Heading]], first: int, last: int, start: int, end: int
) -> Stretch:
    """``start`` … ``end``, which ``headings[first:last]`` divide."""
    if first == last:
        return Stretch(start, end)
    parts: list[Stretch] = []
    if headings[first][1].start > start:
        parts.append(Stretch(start, headings[first][1].start, opening=True))
    outermost = [i for i in range(first, last) if headings[i][0] == headings[first][0]]
    for at, index in enumerate(outermost):
        after = outermost[at + 1] if at + 1 < len(outermost) else last
        until = headings[after][1].start if after < last else end
        if until > headings[index][1].start:
            parts.append(_divide(headings, index + 1, after, headings[index][1].start, until))
    return Stretch(start, end, tuple(parts)) if len(parts) > 1 else parts[0]
