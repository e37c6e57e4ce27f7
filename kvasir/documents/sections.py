"""A text that does not fit a window, cut into sections that do, at the document's own borders.

Invariants: sections follow each other without gaps and cover the text; each has at most the given
number of tokens; the same document, budget and counts give the same sections.

How: headings divide the text into nested spans (``outline``), and a span without headings into
pages, paragraphs, lines, sentences, words (``pieces``). From left to right, a span that fits the
budget stays whole and joins its neighbours under the same parent while they fit together; one that
does not is divided further. A section goes over the border of a divided span only

- where both sides are small (at most ``1 / SMALL`` of the budget),
- with the small opening of a chapter, its title say, in front of what follows in that chapter, or
- with a small rest of a page or paragraph in front of the next, between two headings.

So a large section with a whole chapter in it holds no part of another one, and of two neighbouring
sections at least one is not small: there are at most ``2 * SMALL * tokens / budget + 1`` of them.

What is decided depends on what stands before, and on how far the span at hand reaches. Text that is
added at the end lengthens only the spans that end there. Hence all sections but the last two stay
as they are: the last one because it grows, the one before it only where it is small.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kvasir.documents.outline import Stretch, Titles, shown, spans_of
from kvasir.documents.pieces import KINDS, pieces
from kvasir.documents.values import Document, Page

SMALL = 8  # a section of at most an eighth of the budget is small

Count = Callable[[Sequence[str]], Sequence[int]]
"""The numbers of tokens of many texts, in one call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of a document that fits the window. Offsets count characters of its text."""

    document: str  # its name
    index: int  # of the section within the document, from 0
    title_path: tuple[str, ...]  # titles over all of it, outermost first
    titles: tuple[str, ...]  # the first and the last title below those, where it has several
    start: int
    end: int
    n_tokens: int  # of its text alone, without a header
    first_page: Page
    last_page: Page


def cut(document: Document, budget_tokens: int, count: Count) -> tuple[Section, ...]:
    """The sections of ``document``, each of at most ``budget_tokens`` as ``count`` counts them.

    An empty text has none. Every text is counted twice, by leaves and by sections, and what must be
    divided below its headings once more for each kind of border. Raises ``ValueError`` where
    ``budget_tokens`` is less than 1, or than a single character has.
    """
    if budget_tokens < 1:
        raise ValueError(f"a section of {budget_tokens} tokens holds nothing: give 1 or more")
    if not document.text:
        return ()
    root = spans_of(document)
    cutter = _Cutter(document, budget_tokens, count, root.leaves())
    cutter.walk(root)
    cutter.close()
    titles = Titles(document)
    return tuple(
        _section(document, titles, index, start, end, n_tokens)
        for index, (start, end, n_tokens) in enumerate(cutter.checked())
    )


def header_of(section: Section, document: Document) -> str:
    """Two lines that say where ``section`` of ``document`` stands: name and number; titles and
    pages as printed. They depend on nothing that comes after the section."""
    where = [*section.title_path, *([" \u2026 ".join(section.titles)] if section.titles else [])]
    if document.paged:
        one = section.first_page.index == section.last_page.index
        first_label, last_label = section.first_page.label, section.last_page.label
        where.append(f"page {first_label}" if one else f"pages {first_label}-{last_label}")
    name = f"{shown(section.document)}, section {section.index + 1}"
    return f"{name}\n{' > '.join(where)}" if where else name


def _section(
    document: Document, titles: Titles, index: int, start: int, end: int, n_tokens: int
) -> Section:
    first, last = document.pages_between(start, end)
    behind = _behind_titles(document, start, end)
    path = titles.over(behind, end)
    below = [titles.at(offset)[len(path) :][:1] for offset in (behind, end - 1)]
    return Section(
        document=document.name,
        index=index,
        title_path=path,
        titles=tuple(dict.fromkeys(title for found in below for title in found)),
        start=start,
        end=end,
        n_tokens=n_tokens,
        first_page=first,
        last_page=last,
    )


def _behind_titles(document: Document, start: int, end: int) -> int:
    """Where the text under the titles at ``start`` begins: a section that opens with the title of
    a part and that of its only chapter stands under both."""
    at = start
    begin = bisect_left(document.headings, start, key=lambda heading: heading.start)
    title = ""
    for heading in document.headings[begin:]:
        between = document.text[at : heading.start]
        if heading.start >= end or "".join(between.split()) != "".join(title.split()):
            break
        at, title = heading.start, heading.title
    return at


@dataclass(slots=True)
class _Open:
    """The section that is being filled."""

    leaves: list[tuple[int, int, int]] = field(default_factory=list)  # start, end, tokens
    n_tokens: int = 0
    parent: object = None  # the span that all of it are parts of; None where it has gone over
    opening: bool = True  # nothing in it but openings
    between: int | None = None  # the start of the span between two headings that all of it is in


class _Cutter:
    """One walk over one document, from left to right."""

    def __init__(
        self, document: Document, budget_tokens: int, count: Count, leaves: Sequence[Stretch]
    ) -> None:
        self._document = document
        self._budget = budget_tokens
        self._small = budget_tokens // SMALL
        self._count = count
        counts = self._counts([(leaf.start, leaf.end) for leaf in leaves])
        self._starts = [leaf.start for leaf in leaves]
        self._leaves = [(s.start, s.end, n) for s, n in zip(leaves, counts, strict=True)]
        self._open = _Open()
        self._closed: list[_Open] = []
        self._between: int | None = None  # as in ``_Open``, of what is being divided

    def walk(self, span: Stretch) -> None:
        """Put all of ``span`` into sections."""
        if not span.parts:
            self._leaf(span)
            return
        for part in span.parts:
            leaves = self._leaves_of(part)
            if sum(n for _, _, n in leaves) <= self._budget:
                self._whole(leaves, span, opening=part.opening)
            else:
                self.walk(part)

    def close(self) -> None:
        """End the open section, if there is anything in it."""
        if self._open.leaves:
            self._closed.append(self._open)
        self._open = _Open()

    def checked(self) -> list[tuple[int, int, int]]:
        """Start, end and tokens of every section, counted as a whole: tokens across a border may
        be more than on both its sides. One that is too long after all is halved at a leaf."""
        found: list[tuple[int, int, int]] = []
        todo = [section.leaves for section in self._closed]
        while todo:
            counts = self._counts([(leaves[0][0], leaves[-1][1]) for leaves in todo])
            again: list[list[tuple[int, int, int]]] = []
            for leaves, n_tokens in zip(todo, counts, strict=True):
                if n_tokens <= self._budget or len(leaves) == 1:
                    found.append((leaves[0][0], leaves[-1][1], n_tokens))
                else:
                    again += [leaves[: len(leaves) // 2], leaves[len(leaves) // 2 :]]
            todo = again
        return sorted(found)

    def _leaf(self, span: Stretch) -> None:
        leaves = self._leaves_of(span)
        if leaves[0][2] <= self._budget:
            self._whole(leaves, span)
            return
        self._between = span.start
        self._divide(span.start, span.end, 0)
        self._between = None

    def _leaves_of(self, span: Stretch) -> list[tuple[int, int, int]]:
        first, last = bisect_left(self._starts, span.start), bisect_left(self._starts, span.end)
        return self._leaves[first:last]

    def _whole(
        self, leaves: list[tuple[int, int, int]], parent: object, *, opening: bool = False
    ) -> None:
        """Put a span that fits into the open section where it may go there, else into the next."""
        n_tokens = sum(n for _, _, n in leaves)
        now = self._open
        if now.leaves:
            siblings = now.parent is parent
            near = now.opening or (now.between is not None and now.between == self._between)
            led = near and now.n_tokens <= self._small
            both_small = max(now.n_tokens, n_tokens) <= self._small
            if now.n_tokens + n_tokens > self._budget or not (siblings or led or both_small):
                self.close()
                now = self._open
            elif not siblings and not led:
                parent = None
        now.between = self._between if not now.leaves or now.between == self._between else None
        now.leaves += leaves
        now.n_tokens += n_tokens
        now.parent = parent
        now.opening = now.opening and opening

    def _divide(self, start: int, end: int, kind: int) -> None:
        """Put ``start`` … ``end``, which has no headings and does not fit, into sections."""
        if kind >= KINDS:
            self._characters(start, end)
            return
        ends, after = pieces(self._document, start, end, kind)
        if len(ends) == 1:
            self._divide(start, end, KINDS)
            return
        ranges = list(zip([start, *ends[:-1]], ends, strict=True))
        parent = object()
        for (first, last), n_tokens in zip(ranges, self._counts(ranges), strict=True):
            if n_tokens <= self._budget:
                self._whole([(first, last, n_tokens)], parent)
            else:
                self._divide(first, last, after)

    def _characters(self, start: int, end: int) -> None:
        """A word that does not fit, in runs of characters that do."""
        parent = object()
        size = self._budget  # a token is hardly ever less than a character
        todo = [(at, min(at + size, end)) for at in range(start, end, size)]
        fitting: list[tuple[int, int, int]] = []
        while todo:
            again: list[tuple[int, int]] = []
            for (first, last), n_tokens in zip(todo, self._counts(todo), strict=True):
                if n_tokens <= self._budget:
                    fitting.append((first, last, n_tokens))
                elif last - first == 1:
                    raise ValueError(
                        f"the character at {first} of {self._document.name!r} has {n_tokens} "
                        f"tokens, a section only {self._budget}: give a larger budget"
                    )
                else:
                    middle = (first + last) // 2
                    again += [(first, middle), (middle, last)]
            todo = again
        for piece in sorted(fitting):
            self._whole([piece], parent)

    def _counts(self, ranges: Sequence[tuple[int, int]]) -> Sequence[int]:
        return self._count([self._document.text[start:end] for start, end in ranges])
