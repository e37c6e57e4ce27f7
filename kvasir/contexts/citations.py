"""Passages of a context: quotes that were found in its text, with file, page and offsets.

Invariant: a passage that is called verified stands in the document at that place, as
``documents.quotes`` compares it; what was not found there is never called so.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvasir.catalog.values import SectionRow
from kvasir.contexts.definition import Definition
from kvasir.contexts.outline import WHOLE
from kvasir.documents.quotes import QuoteIndex, extract_quotes
from kvasir.documents.values import Document


@dataclass(frozen=True, slots=True, kw_only=True)
class Citation:
    """Text that an answer points to. ``document`` counts from 0; offsets are characters of its
    text; where it is not ``verified`` they are those of the section that was asked."""

    text: str
    verified: bool
    document: int
    name: str
    start: int
    end: int
    page: int
    page_label: str | None  # None where the document has no pages of its own
    title_path: tuple[str, ...] = ()


def place(definition: Definition, section: SectionRow) -> list[tuple[int, int, int]]:
    """What of which document a part holds: (document, start, end)."""
    if section.document != WHOLE:
        return [(section.document, section.start, section.end)]
    return [(number, 0, len(d.text)) for number, d in enumerate(definition.documents)]


def citations_in(definition: Definition, section: SectionRow, answer: str) -> tuple[Citation, ...]:
    """What ``answer``, given on ``section``, quotes; each quote is looked for in that section. An
    answer that quotes nothing verbatim between marks is looked for line by line."""
    found: list[Citation] = []
    indexes = [
        (number, start, QuoteIndex(definition.documents[number].text[start:end]))
        for number, start, end in place(definition, section)
    ]
    quotes = extract_quotes(answer) or tuple(filter(None, map(str.strip, answer.splitlines())))[:3]
    for quote in quotes:
        passage = _verified(definition, section, quote, indexes)
        found.append(passage or _unverified(definition, section, quote))
    return tuple(found)


def citation_at(
    document: Document, number: int, start: int, end: int, title_path: tuple[str, ...] = ()
) -> Citation:
    """The passage between two offsets of document ``number``."""
    page = document.page_at(start)
    return Citation(
        text=document.text[start:end],
        verified=True,
        document=number,
        name=document.name,
        start=start,
        end=end,
        page=page.index,
        page_label=page.label if document.paged else None,
        title_path=title_path,
    )


def _verified(
    definition: Definition,
    section: SectionRow,
    quote: str,
    indexes: list[tuple[int, int, QuoteIndex]],
) -> Citation | None:
    for number, offset, index in indexes:
        span = index.find(quote)
        if span is not None:
            document = definition.documents[number]
            return citation_at(
                document, number, offset + span.start, offset + span.end, section.title_path
            )
    return None


def _unverified(definition: Definition, section: SectionRow, quote: str) -> Citation:
    number, start, end = place(definition, section)[0]
    document = definition.documents[number]
    page = document.page_at(start)
    return Citation(
        text=quote,
        verified=False,
        document=number,
        name=document.name,
        start=start,
        end=end,
        page=page.index,
        page_label=page.label if document.paged else None,
        title_path=section.title_path,
    )
