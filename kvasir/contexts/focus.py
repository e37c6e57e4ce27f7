"""Which sections of a context a question is about: ranked by their text, their titles and the
model's summaries of them.

Invariant: the ranking is of the text that is kept and of nothing else; it is the same every time.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from kvasir.catalog.values import ContextRow, SectionRow
from kvasir.contexts import summaries
from kvasir.contexts.citations import Citation, citation_at
from kvasir.contexts.definition import Definition
from kvasir.contexts.library import Library
from kvasir.contexts.outline import WHOLE
from kvasir.documents.passages import Passage, passages_of
from kvasir.documents.ranking import PassageIndex, Ranked
from kvasir.documents.sections import Section

_MOST_INDEXES = 8  # of the contexts that were asked last, kept in memory
_SUMMARY_WEIGHT = 0.3  # of a section's summary beside its text, and
_BRANCH_WEIGHT = 0.1  # of the summaries of what it is a part of


@dataclass(frozen=True, slots=True)
class RankedSection:
    """A section, how well it goes with a question (0 where nothing does), and its best passage."""

    section: SectionRow
    score: float
    passage: Citation | None


class _Index:
    """What is made ready of one context."""

    def __init__(self, library: Library, row: ContextRow, definition: Definition) -> None:
        self._definition = definition
        # names need not differ, numbers do
        self._documents = [
            replace(document, name=str(number))
            for number, document in enumerate(definition.documents)
        ]
        self._text = PassageIndex([p for each in self._documents for p in passages_of(each)])
        rows = library.catalog.contexts.sections(row.id)
        self.n_summaries = sum(1 for section in rows if section.summary)
        self._summaries = PassageIndex(
            [self._made(s.index, s.summary or "", s.title_path) for s in rows if s.summary]
        )
        self._branches = summaries.tree(library, row)
        self._over = PassageIndex(
            [self._made(n, b.summary, b.title_path) for n, b in enumerate(self._branches)]
        )

    def rank(self, sections: Sequence[SectionRow], question: str) -> tuple[RankedSection, ...]:
        """All ``sections``, the likeliest first."""
        by_index = {section.index: section for section in sections}
        more = self._more(question)
        ranked = [
            RankedSection(
                by_index[int(found.section.title_path[0])],
                found.score + more.get(int(found.section.title_path[0]), 0.0),
                self._citation(found.passages[0]) if found.passages else None,
            )
            for found in self._text.rank_sections(
                question, [self._section(row) for row in sections if row.document != WHOLE]
            )
        ]
        return tuple(sorted(ranked, key=lambda each: (-each.score, each.section.index)))

    def search(self, question: str, n: int) -> tuple[tuple[Citation, float], ...]:
        """The ``n`` passages that go best with ``question``, with their scores."""
        found = self._text.search(question, n)
        return tuple((self._citation(ranked), ranked.score) for ranked in found)

    def _more(self, question: str) -> dict[int, float]:
        """What summaries add to the score of sections, by index."""
        more: dict[int, float] = {}
        for ranked in self._summaries.search(question, 10**6):
            index = int(ranked.passage.document)
            more[index] = more.get(index, 0.0) + _SUMMARY_WEIGHT * ranked.score
        for ranked in self._over.search(question, 10**6):
            branch = self._branches[int(ranked.passage.document)]
            for index in range(branch.first, branch.last + 1):
                more[index] = more.get(index, 0.0) + _BRANCH_WEIGHT * ranked.score
        return more

    def _section(self, row: SectionRow) -> Section:
        """``row`` as the ranking knows sections; its index goes where the title would."""
        document = self._documents[row.document]
        first, last = document.pages_between(row.start, row.end)
        return Section(
            document=str(row.document),
            index=row.index,
            title_path=(str(row.index),),
            titles=(),
            start=row.start,
            end=row.end,
            n_tokens=row.n_tokens,
            first_page=first,
            last_page=last,
        )

    def _made(self, number: int, text: str, title_path: tuple[str, ...]) -> Passage:
        page = self._documents[0].pages[0]
        return Passage(str(number), 0, 0, len(text), text, page, title_path)

    def _citation(self, ranked: Ranked) -> Citation:
        passage = ranked.passage
        number = int(passage.document)
        document = self._definition.documents[number]
        return citation_at(document, number, passage.start, passage.end, passage.title_path)


class Ranker:
    """Ranks sections and passages of contexts; keeps the indexes of those that were asked last.
    Thread-safe."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._indexes: OrderedDict[str, _Index] = OrderedDict()
        self._lock = threading.Lock()

    def rank(
        self,
        row: ContextRow,
        definition: Definition,
        sections: Sequence[SectionRow],
        question: str,
    ) -> tuple[RankedSection, ...]:
        """All ``sections`` of ``row``, the likeliest to answer ``question`` first."""
        n_summaries = sum(1 for section in sections if section.summary)
        return self._index(row, definition, n_summaries).rank(sections, question)

    def closest(
        self, row: ContextRow, definition: Definition, question: str, n: int
    ) -> tuple[Citation, ...]:
        """The ``n`` passages of ``row`` whose words go best with ``question``."""
        found = self._index(row, definition, None).search(question, n)
        return tuple(passage for passage, _ in found)

    def search(self, row: ContextRow, query: str, n: int) -> tuple[tuple[Citation, float], ...]:
        """The ``n`` passages of ``row`` that go best with ``query``, with their scores."""
        return self._index(row, None, None).search(query, n)

    def _index(
        self, row: ContextRow, definition: Definition | None, n_summaries: int | None
    ) -> _Index:
        with self._lock:
            index = self._indexes.get(row.id)
            if index is not None and n_summaries in (None, index.n_summaries):
                self._indexes.move_to_end(row.id)
                return index
        # made outside the lock: a long text takes seconds, and two at worst make the same one
        index = _Index(self._library, row, definition or self._library.definition(row))
        with self._lock:
            self._indexes[row.id] = index
            while len(self._indexes) > _MOST_INDEXES:
                self._indexes.popitem(last=False)
        return index
