"""One answer from many passages: in levels that grow smaller, of prompts that fit, with every
passage in one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from context_library import Made, opened
from hypothesis import given
from hypothesis import strategies as st

from kvasir.catalog.values import ContextRow, SectionRow
from kvasir.contexts import joining
from kvasir.contexts.batch import Cancelled
from kvasir.contexts.citations import Citation
from kvasir.contexts.summaries import fitting, groups
from kvasir.core.errors import RequestError
from kvasir.core.requests import Request


def passage(number: int, length: int = 40) -> Citation:
    return Citation(
        text=f"[{number}] " + "x" * length,
        verified=True,
        document=0,
        name="a.txt",
        start=0,
        end=1,
        page=0,
        page_label=None,
    )


@pytest.fixture(scope="module", params=[512, 768, 4096])
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Made]:
    with opened(tmp_path_factory.mktemp("home"), window=request.param) as one:
        yield one


@pytest.fixture(scope="module")
def row(made: Made) -> ContextRow:
    return made.create("Asked about. ", keep="text")


@pytest.fixture
def prompts(made: Made, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Request, str]]:
    """Every request that is made, with its prompt as text."""
    found: list[tuple[Request, str]] = []
    submit: Callable[..., None] = made.client.submit

    def recorded(request: Request, deliver: object) -> None:
        found.append((request, made.library.codec.tokenizer.decode(request.tokens)))
        submit(request, deliver)

    monkeypatch.setattr(made.client, "submit", recorded)
    return found


def join(made: Made, row: ContextRow, passages: list[Citation], question: str = "When?") -> str:
    return joining.join(made.library, row, question, passages, unwanted=lambda: False)


@pytest.mark.parametrize("n", [1, 2, 9, 40])
def test_every_passage_is_in_one_prompt_of_the_first_level(
    made: Made, row: ContextRow, prompts: list[tuple[Request, str]], n: int
) -> None:
    """And all prompts fit, and it ends, also where a window has room for two answers at most."""
    assert join(made, row, [passage(number) for number in range(n)])
    for number in range(n):
        holding = [text for _, text in prompts if f"[{number}] " + "x" * 40 in text]
        assert len(holding) == 1, f"passage {number} is in {len(holding)} prompts"
    window = made.library.card.window
    assert all(len(request.tokens) + request.max_tokens <= window for request, _ in prompts)
    assert all(text.count("When?") == 1 for _, text in prompts)
    if window == 4096 and n < 40:
        assert len(prompts) == 1
    assert all(request.transient for request, _ in prompts)


def test_a_passage_that_no_window_holds_is_shortened_and_says_so(
    made: Made, row: ContextRow, prompts: list[tuple[Request, str]]
) -> None:
    assert join(made, row, [passage(1, 10_000), passage(2)])
    (text,) = [text for _, text in prompts if "[1] " in text]
    assert "x …" in text
    assert "[2] " + "x" * 40 in "".join(text for _, text in prompts)


def test_without_passages_nobody_is_asked(
    made: Made, row: ContextRow, prompts: list[tuple[Request, str]]
) -> None:
    assert join(made, row, []) == ""
    assert not prompts


def test_a_question_that_leaves_no_room_is_refused(made: Made, row: ContextRow) -> None:
    with pytest.raises(RequestError, match="Ask a shorter one"):
        join(made, row, [passage(1)], "Why? " * made.library.card.window)


def test_it_ends_when_nobody_wants_it(made: Made, row: ContextRow) -> None:
    with pytest.raises(Cancelled):
        joining.join(made.library, row, "When?", [passage(1)], unwanted=lambda: True)


def test_a_passage_is_one_line_of_a_prompt() -> None:
    assert joining.written(passage(1, 3)) == "- [1] xxx"
    there = Citation(
        text="One\n  two", verified=True, document=0, name="a.pdf", start=0, end=1, page=3,
        page_label="iv", title_path=("Part I", "Birds"),
    )  # fmt: skip
    assert joining.written(there) == "- One two"


@given(lengths=st.lists(st.integers(0, 30), max_size=30), most=st.integers(1, 40))
def test_groups_keep_order_and_bounds(lengths: list[int], most: int) -> None:
    items = [str(number) for number in range(len(lengths))]
    found = list(fitting(items, lengths, most))
    assert [item for group in found for item in group] == items
    for group in found:
        assert len(group) == 1 or sum(lengths[int(item)] for item in group) <= most
    for one, other in pairwise(found):
        together = sum(lengths[int(item)] for item in (*one, other[0]))
        assert together > most, "one more had room"


def section(index: int, *titles: str, document: int = 0) -> SectionRow:
    return SectionRow(index=index, document=document, title_path=titles, start=0, end=1)


def test_sections_are_grouped_by_their_titles_from_the_inside() -> None:
    sections = [
        section(0, "I", "A"),
        section(1, "I", "A"),
        section(2, "I", "B"),
        section(3, "II"),
        section(4, "I", "A"),  # of the same name, but elsewhere
        section(5, "I", document=1),
    ]
    found = [(path, [s.index for s in members]) for path, members in groups(sections)]
    assert found == [(("I", "A"), [0, 1]), (("I",), [0, 1, 2])]
    assert list(groups([])) == []
    assert list(groups([section(0), section(1)])) == []


def test_the_tree_of_summaries_is_made_once_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    text = "\n\n".join(f"# Part {n}\n\n" + "The raven came in May. " * 40 for n in range(3))
    with opened(tmp_path, window=1024) as made:
        cut = made.create(text, summaries=True, read=False)
        assert cut.definition["summaries"]
        sections = made.library.sections(cut)
        made.library.catalog.contexts.set_summary(cut.id, 0, "Made before.")
        made.reader.take(cut)
        row = made.ended(cut)
        assert row.status == "completed"
        told = [each.summary for each in made.library.sections(row)]
        assert told[0] == "Made before.", "a summary was made twice"
        assert all(told)
        assert len(told) == len(sections)
        assert made.library.store.has_tree(row.id)
