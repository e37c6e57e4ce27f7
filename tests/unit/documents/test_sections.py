"""Sections: they cover the text, fit the budget, keep to the document's borders, and stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_documents import document_of, prose, real, words_counted

from kvasir.documents.sections import SMALL, Section, cut, header_of
from kvasir.documents.values import Document, Heading

_PIECES = st.sampled_from(
    ["word ", "a", "\n", "\n\n", ". ", "Kalor mentis. ", "\u00e9\u4e2d", "!? ", "  ", "x" * 30]
)


@st.composite
def documents(draw: st.DrawFn) -> Document:
    text = "".join(draw(st.lists(_PIECES, max_size=60)))
    places = st.integers(0, len(text))
    headings = draw(st.lists(st.tuples(st.integers(1, 5), places), max_size=8))
    pages = draw(st.lists(places, max_size=5))
    return document_of(text, sorted(headings, key=lambda h: h[1]), pages)


def characters(texts: Sequence[str]) -> list[int]:
    return [len(text) for text in texts]


def uneven(texts: Sequence[str]) -> list[int]:
    """Counts that do not add up: tokenizers may give a whole more tokens than its parts."""
    return [len(text) + (len(text) > 1) + text.count(". ") for text in texts]


@settings(max_examples=300, deadline=None)
@given(documents(), st.integers(3, 60), st.sampled_from([characters, uneven]))
def test_sections_cover_the_text_in_order_and_each_fits(
    document: Document, budget: int, count: object
) -> None:
    sections = cut(document, budget, count)  # type: ignore[arg-type]
    assert "".join(document.text[s.start : s.end] for s in sections) == document.text
    assert [s.index for s in sections] == list(range(len(sections)))
    for section in sections:
        text = document.text[section.start : section.end]
        assert text
        assert section.n_tokens == count([text])[0] <= budget  # type: ignore[operator]
        assert section.first_page == document.page_at(section.start)
        assert section.last_page == document.page_at(section.end - 1)
    assert cut(document, budget, count) == sections  # type: ignore[arg-type]


@settings(max_examples=300, deadline=None)
@given(documents(), st.integers(8, 60))
def test_of_two_neighbouring_sections_one_is_not_small(document: Document, budget: int) -> None:
    sections = cut(document, budget, characters)
    assert not any(max(a.n_tokens, b.n_tokens) <= budget // SMALL for a, b in pairwise(sections))
    assert len(sections) <= 2 * SMALL * len(document.text) / budget + 1


@settings(max_examples=300, deadline=None)
@given(documents(), st.integers(3, 60), st.integers(0, 400))
def test_text_that_is_added_changes_the_last_two_sections_at_most(
    document: Document, budget: int, at: int
) -> None:
    at = min(at, len(document.text))
    shorter = replace(
        document,
        text=document.text[:at],
        pages=tuple(
            replace(page, end=min(page.end, at)) for page in document.pages if page.start <= at
        ),
        headings=tuple(h for h in document.headings if h.start < at),
    )
    before, after = cut(shorter, budget, characters), cut(document, budget, characters)
    kept = before[:-2]
    assert [(s.start, s.end) for s in after[: len(kept)]] == [(s.start, s.end) for s in kept]
    if len(before) > 1 and before[-2].n_tokens > budget // SMALL:
        assert (after[len(kept)].start, after[len(kept)].end) == (before[-2].start, before[-2].end)


def chapters(*lengths: int, level: int = 1) -> Document:
    """Chapters of so many words each, the title counted."""
    text, headings = "", []
    for number, n_words in enumerate(lengths):
        headings.append(Heading(level, f"Chapter {number + 1}", len(text)))
        text += f"Chapter {number + 1}\n" + "kalor " * (n_words - 2) + "\n\n"
    return replace(document_of(text), headings=tuple(headings))


def spans(document: Document, sections: Sequence[Section]) -> list[str]:
    """Which chapters each section touches."""
    starts = [h.start for h in document.headings] + [len(document.text)]
    return [
        "".join(
            str(i + 1)
            for i, (a, b) in enumerate(pairwise(starts))
            if a < section.end and b > section.start
        )
        for section in sections
    ]


def test_whole_chapters_are_packed_and_a_long_one_is_by_itself() -> None:
    document = chapters(30, 30, 30, 250, 30, 30)
    sections = cut(document, 100, words_counted)
    assert spans(document, sections) == ["123", "4", "4", "4", "56"]
    assert sections[0].title_path == ()
    assert sections[0].titles == ("Chapter 1", "Chapter 3")
    assert sections[1].title_path == ("Chapter 4",)


def test_the_small_end_of_a_chapter_goes_with_a_small_next_one() -> None:
    document = chapters(205, 8, 90)
    sections = cut(document, 100, words_counted)
    assert spans(document, sections) == ["1", "1", "12", "3"]
    assert header_of(sections[2], document) == "made.txt, section 3\nChapter 1 \u2026 Chapter 2"


def test_a_large_section_does_not_go_over_the_border_of_a_divided_chapter() -> None:
    """The middle of the road: neither side of chapter 2's end is small, though both would fit."""
    document = chapters(40, 130, 40, 130)
    assert spans(document, cut(document, 100, words_counted)) == ["1", "2", "2", "3", "4", "4"]
    document = chapters(206, 8, 8, 8, 8)  # the small end takes small ones until it is not small
    assert spans(document, cut(document, 100, words_counted)) == ["1", "1", "12", "345"]


def test_a_sixth_of_the_budget_is_not_small() -> None:
    document = chapters(216, 16, 90)
    assert spans(document, cut(document, 100, words_counted)) == ["1", "1", "1", "2", "3"]


def test_the_title_of_a_part_goes_with_what_follows() -> None:
    text = "PART ONE\n\nChapter 1\n" + "kalor " * 60 + "\n\nmen " + "kalor " * 60
    document = replace(
        document_of(text),
        headings=(Heading(1, "PART ONE", 0), Heading(2, "Chapter 1", text.index("Chapter"))),
    )
    sections = cut(document, 80, words_counted)
    assert [text[s.start : s.start + 8] for s in sections] == ["PART ONE", "men kalo"]
    assert sections[0].title_path == ("PART ONE", "Chapter 1")
    assert sections[1].title_path == ("PART ONE", "Chapter 1")


def test_a_text_without_headings_is_cut_at_pages_then_paragraphs_then_sentences() -> None:
    page = "Kalor men ti su rad.\n\n" * 4  # 24 words
    document = document_of(page * 3, pages=[len(page), 2 * len(page)])
    assert [s.first_page.index for s in cut(document, 30, words_counted)] == [0, 1, 2]
    assert {document.text[s.start : s.end] for s in cut(document, 12, words_counted)} == {
        "Kalor men ti su rad.\n\n" * 2
    }
    one = document_of("Kalor men. Ti su rad ven? Pol ina.")
    assert [one.text[s.start : s.end] for s in cut(one, 6, words_counted)] == [
        "Kalor men. ",
        "Ti su rad ven? ",
        "Pol ina.",
    ]


def test_a_word_that_does_not_fit_is_cut_between_characters() -> None:
    document = document_of("\u4e2d\u00e9x" * 40)
    sections = cut(document, 7, lambda texts: [len(t.encode()) for t in texts])
    assert all(s.n_tokens <= 7 for s in sections)
    with pytest.raises(ValueError, match="3 tokens, a section only 2"):
        cut(document, 2, lambda texts: [len(t.encode()) for t in texts])


@pytest.mark.parametrize("budget", [0, -1])
def test_a_budget_of_nothing_is_refused_and_an_empty_text_has_no_sections(budget: int) -> None:
    with pytest.raises(ValueError, match="give 1 or more"):
        cut(document_of("a"), budget, characters)
    assert cut(document_of(""), 5, characters) == ()


def test_headings_nested_without_end_do_no_harm() -> None:
    text = "kalor men\n" * 3000
    document = document_of(text, [(level + 1, 10 * level) for level in range(3000)])
    sections = cut(document, 50, words_counted)
    assert "".join(text[s.start : s.end] for s in sections) == text
    assert len(sections) < 1000


def test_headers_are_of_two_lines_whatever_a_file_calls_itself() -> None:
    document = replace(
        chapters(20, 20), name="a\nb\u2028" + "c" * 500, headings=(Heading(1, "x\n\ny", 0),)
    )
    (section,) = cut(document, 100, words_counted)
    header = header_of(section, document)
    assert len(header.splitlines()) == 2
    assert len(header) < 500


def test_counting_is_asked_for_many_texts_at_once_and_twice_over_the_text() -> None:
    document = chapters(*[300] * 365)
    calls: list[int] = []

    def count(texts: Sequence[str]) -> list[int]:
        calls.append(sum(map(len, texts)))
        return words_counted(texts)

    cut(document, 2000, count)
    assert len(calls) == 2
    assert sum(calls) == 2 * len(document.text)


def test_a_real_book_is_cut_at_its_chapters() -> None:
    document = real("books/war-and-peace.txt")
    sections = cut(document, 8000, words_counted)
    starts = {heading.start for heading in document.headings}
    assert "".join(document.text[s.start : s.end] for s in sections) == document.text
    assert max(s.n_tokens for s in sections) <= 8000
    assert sum(s.start in starts for s in sections) >= 0.95 * len(sections)
    assert len(sections) <= 1.5 * sum(s.n_tokens for s in sections) / 8000
    assert header_of(sections[1], document).startswith("war-and-peace.txt, section 2\nBOOK ONE")


def test_a_real_manual_names_titles_and_printed_pages() -> None:
    document = real("documents/debian-policy.pdf")
    sections = cut(document, 3000, words_counted)
    headers = [header_of(section, document) for section in sections]
    assert any("Shared libraries > " in h and "pages 67-" in h for h in headers)
    assert len(sections) <= 2 * sum(s.n_tokens for s in sections) / 3000


def test_made_prose_is_cut_the_same_by_every_run() -> None:
    document = document_of(prose(1, 400))
    budgets = {b: [s.end for s in cut(document, b, words_counted)] for b in (40, 400, 4000)}
    assert [len(ends) for ends in budgets.values()] == sorted(map(len, budgets.values()))[::-1]
