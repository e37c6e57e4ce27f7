"""What an answer points to, and what a section is said to have answered: a passage is verified
where it stands in the text that was asked, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from context_library import Made, document, opened
from hypothesis import given, settings
from hypothesis import strategies as st

from kvasir.catalog.values import SectionRow
from kvasir.contexts.answering import _quoted
from kvasir.contexts.batch import Done
from kvasir.contexts.citations import Citation, citation_at, citations_in, place
from kvasir.contexts.definition import Definition
from kvasir.contexts.outline import WHOLE
from kvasir.contexts.sweep import _judged
from kvasir.core.events import Usage
from kvasir.core.requests import Request
from kvasir.core.tiers import Tier
from kvasir.documents.values import Page

FIRST = "The raven sat upon the roof of the house. It was the third day of May in that year."
SECOND = "Nobody had ever seen the cat come down from there. Everybody had heard of it though."
ONE = document(
    FIRST + SECOND, "a.pdf", paged=True,
    pages=(Page(0, "iv", 0, len(FIRST)), Page(1, "v", len(FIRST), len(FIRST + SECOND))),
)  # fmt: skip
OTHER = document("Quite another matter is told of in this second document here.", "b.txt")
MADE = Definition(documents=(ONE, OTHER), section_tokens=512)
EARLY = SectionRow(index=0, document=0, start=0, end=len(FIRST), title_path=("I",))
LATE = SectionRow(index=1, document=0, start=len(FIRST), end=len(FIRST + SECOND))
ALL = SectionRow(index=0, document=WHOLE, start=0, end=len(FIRST + SECOND + OTHER.text))


def test_a_quote_is_found_where_it_stands() -> None:
    (found,) = citations_in(MADE, EARLY, 'It says: "It was the third day of May in that year."')
    assert found.verified
    assert FIRST[found.start : found.end] == found.text
    assert (found.name, found.page, found.page_label) == ("a.pdf", 0, "iv")
    assert found.title_path == ("I",)


def test_offsets_are_those_of_the_document_not_of_the_section() -> None:
    (found,) = citations_in(MADE, LATE, '"Nobody had ever seen the cat come down from there."')
    assert found.verified
    assert (found.start, found.page_label) == (len(FIRST), "v")
    assert ONE.text[found.start : found.end] == found.text


def test_what_stands_in_another_section_is_not_verified_in_this_one() -> None:
    (found,) = citations_in(MADE, EARLY, '"Nobody had ever seen the cat come down from there."')
    assert not found.verified
    assert (found.start, found.end) == (EARLY.start, EARLY.end)
    assert found.text == "Nobody had ever seen the cat come down from there."


def test_a_part_that_holds_all_documents_is_looked_through() -> None:
    answer = '"Quite another matter is told of" and "The raven sat upon the roof of the house."'
    found = citations_in(MADE, ALL, answer)
    assert [(one.document, one.verified) for one in found] == [(1, True), (0, True)]
    assert found[0].page_label is None, "it has no pages of its own"
    assert place(MADE, ALL) == [(0, 0, len(ONE.text)), (1, 0, len(OTHER.text))]


@settings(max_examples=100)
@given(at=st.integers(0, len(FIRST) - 1), letter=st.sampled_from("qxz7"))
def test_an_altered_quote_is_never_called_verified(at: int, letter: str) -> None:
    altered = FIRST[:at] + letter + FIRST[at + 1 :]
    if FIRST[at].isalnum():
        for one in citations_in(MADE, EARLY, f'"{altered}"'):
            assert not one.verified


def test_a_passage_knows_its_page() -> None:
    found = citation_at(ONE, 0, len(FIRST) - 5, len(FIRST) + 5, ("T",))
    assert (found.page, found.page_label, found.title_path) == (0, "iv", ("T",))
    assert found.text == ONE.text[len(FIRST) - 5 : len(FIRST) + 5]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    with opened(tmp_path_factory.mktemp("home"), on_disk=False) as one:
        yield one


@pytest.mark.parametrize(
    ("answer", "outcome", "n_passages"),
    [
        ("", "empty", 0),
        ("  \n", "empty", 0),
        ("nothing here", "empty", 0),
        ('"Nothing here."', "empty", 0),
        ("*Nothing here*, I fear: the raven is not named.", "empty", 0),
        ('"It was the third day of May in that year."', "found", 1),
        ('"It was the fourth day of May in that year."', "unverified", 1),
        (
            '"It was the fourth day of May in that year." '
            '"The raven sat upon the roof of the house."',
            "found",
            2,
        ),
        ("It was in May, I am sure of it.", "unverified", 1),
    ],
)
def test_a_section_has_found_what_it_can_show(
    made: Made, answer: str, outcome: str, n_passages: int
) -> None:
    tokens = tuple(made.library.codec.tokenizer.encode(answer))
    usage = Usage(prompt_tokens=50, reused_tokens=40, reused_by_tier={Tier.DISK: 30})
    done = Done(Request(id="r", namespace=b"a", tokens=[1], max_tokens=1), tokens, usage)
    told = _judged(made.library, MADE, EARLY, done)
    assert told.outcome == outcome
    assert len(told.passages) == n_passages
    assert told.answer == answer.strip()
    assert (told.computed_tokens, told.memory_tokens, told.disk_tokens) == (10, 10, 30)
    failed = _judged(made.library, MADE, EARLY, replace(done, problem="too long"))
    assert (failed.outcome, failed.problem, failed.passages) == ("failed", "too long", ())


def test_what_a_whole_answer_quotes_falsely_is_shown_and_what_it_says_is_not() -> None:
    def passage(text: str, verified: bool) -> Citation:
        return Citation(
            text=text, verified=verified, document=0, name="a", start=0, end=1, page=0,
            page_label=None,
        )  # fmt: skip

    answer = 'It says "never in May". It was May.'
    false, true = passage("never in May", False), passage("It was May.", True)
    assert _quoted([false, true], answer) == (true, false)
    assert _quoted([passage("It was June.", False)], "It was June.") == ()
