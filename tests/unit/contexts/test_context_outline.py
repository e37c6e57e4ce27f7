"""From a definition to prompts: one where it fits, else sections that cover all of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from context_library import definition, document
from hypothesis import given, settings
from hypothesis import strategies as st
from virtual_server import TEMPLATE, byte_tokenizer

from kvasir.contexts import layout
from kvasir.contexts.definition import Definition
from kvasir.contexts.layout import Piece
from kvasir.contexts.outline import (
    WHOLE,
    default_section_tokens,
    outline,
    packed,
    room_tokens,
    unpacked,
)
from kvasir.core.errors import ContextTooLong, RequestError
from kvasir.documents.values import Heading, Page
from kvasir.text.codec import TextCodec
from kvasir.text.template import ChatTemplate
from kvasir.text.transcript import Transcripts

WINDOW = 2048
LONG = "\n\n".join(f"Chapter {n}\n\n" + f"The raven came in {1700 + n}. " * 15 for n in range(20))


@pytest.fixture(scope="module")
def codec() -> Iterator[TextCodec]:
    template = ChatTemplate(TEMPLATE)
    yield TextCodec(byte_tokenizer(), template, Transcripts(1000))
    template.close()


def test_what_fits_is_one_part_with_the_ids_of_the_layout(codec: TextCodec) -> None:
    made = outline(codec, definition("One.", "Two.", instructions="Be brief."), WINDOW)
    (part,) = made.parts
    pieces = [Piece("0.txt", "One."), Piece("1.txt", "Two.")]
    assert unpacked(part.ids) == layout.prefix_ids(codec, "Be brief.", pieces)
    assert (part.row.document, part.row.start, part.row.end) == (WHOLE, 0, 8)
    assert (part.row.first_page, part.row.last_page) == (0, 1)
    assert made.tokens == part.row.n_tokens == len(unpacked(part.ids))
    assert not made.sectioned


def test_one_token_more_than_fits_is_sections(codec: TextCodec) -> None:
    most = WINDOW - room_tokens(WINDOW)
    beside = outline(codec, definition("x"), WINDOW).tokens - 1
    fits = outline(codec, definition("x " * ((most - beside) // 2)), WINDOW)
    assert not fits.sectioned
    assert most - 2 < fits.tokens <= most
    assert outline(codec, definition("x " * ((most - beside) // 2 + 1)), WINDOW).sectioned


@settings(max_examples=25, deadline=None)
@given(
    lines=st.lists(st.text(st.characters(codec="ascii"), max_size=90), min_size=30, max_size=90),
    section_tokens=st.integers(400, 2000),
)
def test_sections_cover_the_text_and_leave_room_for_a_question(
    codec: TextCodec, lines: list[str], section_tokens: int
) -> None:
    text = "\n".join(lines) + "x" * WINDOW
    made = outline(codec, definition(text, section_tokens=section_tokens), WINDOW)
    assert made.sectioned
    at = 0
    for number, part in enumerate(made.parts):
        assert (part.row.index, part.row.document) == (number, 0)
        assert part.row.start == at
        at = part.row.end
        ids = unpacked(part.ids)
        assert part.row.n_tokens == len(ids) <= min(section_tokens, WINDOW - room_tokens(WINDOW))
        assert text[part.row.start : part.row.end] in codec.tokenizer.decode(ids)
    assert at == len(text)
    again = outline(codec, definition(text, section_tokens=section_tokens), WINDOW)
    assert again == made


def test_sections_say_where_they_stand(codec: TextCodec) -> None:
    half = len(LONG) // 2
    source = document(
        LONG,
        "book.pdf",
        pages=(Page(0, "iv", 0, half), Page(1, "v", half, len(LONG))),
        headings=tuple(Heading(1, f"Chapter {n}", LONG.index(f"Chapter {n}\n")) for n in range(20)),
        paged=True,
    )
    empty = document(" \n", "empty.txt")
    last = document(LONG, "last.txt")
    made = outline(codec, Definition(documents=(source, empty, last), section_tokens=600), WINDOW)
    assert {part.row.document for part in made.parts} == {0, 2}, "an empty one has no sections"
    first = made.parts[0]
    text = codec.tokenizer.decode(unpacked(first.ids))
    assert text.startswith('<|im_start|>user\n<document name="book.pdf">\nbook.pdf, section 1\n')
    assert "page iv" in text
    assert first.row.title_path == ("Chapter 0",)
    assert [part.row.index for part in made.parts] == list(range(len(made.parts)))
    assert {part.row.last_page for part in made.parts if part.row.document == 0} == {0, 1}


def test_sections_begin_alike_and_with_the_instructions(codec: TextCodec) -> None:
    made = outline(codec, definition(LONG, instructions="Be brief.", section_tokens=600), WINDOW)
    opening = layout.opening(codec, "Be brief.")
    for part in made.parts:
        assert unpacked(part.ids)[: len(opening)] == opening


def test_turns_stand_behind_documents_and_never_behind_sections(codec: TextCodec) -> None:
    turns = ({"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"})
    made = outline(codec, definition("One.", turns=turns), WINDOW)
    text = codec.tokenizer.decode(unpacked(made.parts[0].ids))
    assert text.endswith("\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n")
    before = outline(codec, definition("One."), WINDOW)
    assert unpacked(made.parts[0].ids)[: before.tokens] == unpacked(before.parts[0].ids)
    with pytest.raises(RequestError, match="turns can only follow"):
        outline(codec, definition(LONG, turns=turns), WINDOW)
    long = ({"role": "user", "content": "Q" * WINDOW},)
    with pytest.raises(ContextTooLong):
        outline(codec, definition("One.", turns=long), WINDOW)


def test_sections_without_room_are_refused_with_the_size_that_has_it(codec: TextCodec) -> None:
    with pytest.raises(RequestError, match="at least") as refused:
        outline(codec, definition(LONG, instructions="Rule. " * 60, section_tokens=400), WINDOW)
    assert refused.value.param == "section_tokens"
    least = int(str(refused.value).rsplit(" ", 1)[1].rstrip("."))
    assert outline(
        codec, definition(LONG, instructions="Rule. " * 60, section_tokens=least), WINDOW
    ).sectioned


def test_a_text_of_nothing_is_refused_unless_there_are_turns(codec: TextCodec) -> None:
    with pytest.raises(RequestError, match="nothing to read"):
        outline(codec, definition(" \n"), WINDOW)
    turns = ({"role": "user", "content": "Q"},)
    assert outline(codec, definition(turns=turns), WINDOW).tokens > 0


@given(ids=st.lists(st.integers(0, 2**32 - 1), max_size=50))
def test_ids_are_packed_and_unpacked(ids: list[int]) -> None:
    assert unpacked(packed(ids)) == ids
    assert len(packed(ids)) == 4 * len(ids)
    assert packed([1, 256]) == b"\x01\0\0\0\0\x01\0\0"


@pytest.mark.parametrize("window", [256, 512, 2048, 8192, 131_072, 2**20])
def test_defaults_fit_every_window(window: int) -> None:
    assert 0 < room_tokens(window) <= window // 4
    assert 0 < default_section_tokens(window) <= window - room_tokens(window)
