"""What a context is made of: JSON and back, and an identity that covers it and nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from realms import realm

from kvasir.contexts.definition import Definition
from kvasir.documents.values import Document, Heading, Page, Unread

REALM = realm()
TEXT = st.text(max_size=40)


@st.composite
def documents(draw: st.DrawFn) -> Document:
    """As extraction makes them: pages cover the text, headings lie within it."""
    text = draw(TEXT)
    at = draw(st.integers(0, len(text)))
    pages = (Page(0, draw(TEXT), 0, at), Page(1, "2", at, len(text)))
    return Document(
        name=draw(TEXT),
        media_type="application/pdf",
        text=text,
        pages=pages,
        headings=(Heading(1, draw(TEXT), draw(st.integers(0, len(text)))),),
        unread=(Unread(1, "page", draw(TEXT)),),
        paged=draw(st.booleans()),
        encoding=draw(st.none() | st.just("utf-8")),
    )


@st.composite
def definitions(draw: st.DrawFn) -> Definition:
    turns = draw(st.lists(TEXT, max_size=3))
    return Definition(
        documents=tuple(draw(st.lists(documents(), max_size=3))),
        instructions=draw(st.none() | TEXT),
        turns=tuple(
            {"role": ("user", "assistant")[n % 2], "content": turn} for n, turn in enumerate(turns)
        ),
        section_tokens=draw(st.integers(1, 10**6)),
    )


@settings(max_examples=100)
@given(made=definitions())
def test_json_and_back_is_the_same_definition(made: Definition) -> None:
    told = json.dumps(made.to_json())
    again = Definition.from_json(json.loads(told))
    assert again == made
    assert again.fingerprint(REALM) == made.fingerprint(REALM)


@settings(max_examples=100)
@given(one=definitions(), other=definitions())
def test_different_content_has_another_fingerprint(one: Definition, other: Definition) -> None:
    assert (one.fingerprint(REALM) == other.fingerprint(REALM)) == (bare(one) == bare(other))


def bare(made: Definition) -> Definition:
    """Without what the prompt does not depend on."""
    return replace(
        made,
        documents=tuple(
            replace(d, media_type="", unread=(), encoding=None) for d in made.documents
        ),
    )


PAGES = (Page(0, "i", 0, 3), Page(1, "ii", 3, 8))
DOCUMENT = Document(
    name="a.pdf",
    media_type="application/pdf",
    text="One. Two",
    pages=PAGES,
    headings=(Heading(1, "One", 0),),
    paged=True,
)
MADE = Definition(
    documents=(DOCUMENT, replace(DOCUMENT, name="b.pdf")),
    instructions="Be brief.",
    turns=({"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}),
    section_tokens=512,
)

PAGE = {"index": 0, "label": "1", "start": 0, "end": 8}
HEADING = {"level": 1, "title": "One", "start": 0}
UNREAD = {"page": 1, "what": "page", "reason": "It is a picture."}


def of(**fields: Any) -> Definition:
    return replace(MADE, documents=(replace(DOCUMENT, **fields), *MADE.documents[1:]))


@pytest.mark.parametrize(
    "changed",
    [
        of(name="c.pdf"),
        of(text="One. Twe"),
        of(pages=(Page(0, "i", 0, 4), Page(1, "ii", 4, 8))),
        of(pages=(Page(0, "i", 0, 3), Page(1, "2", 3, 8))),
        of(paged=False),
        of(headings=()),
        of(headings=(Heading(2, "One", 0),)),
        of(headings=(Heading(1, "Two", 0),)),
        of(headings=(Heading(1, "One", 5),)),
        replace(MADE, documents=MADE.documents[:1]),
        replace(MADE, documents=MADE.documents[::-1]),
        replace(MADE, instructions=None),
        replace(MADE, instructions="Be brief"),
        replace(MADE, turns=MADE.turns[:1]),
        replace(MADE, turns=({"role": "user", "content": "QA"},)),
        replace(MADE, section_tokens=513),
    ],
    ids=str,
)
def test_every_field_that_matters_changes_the_fingerprint(changed: Definition) -> None:
    assert changed.fingerprint(REALM) != MADE.fingerprint(REALM)


@pytest.mark.parametrize(
    "changed",
    [
        of(media_type="text/plain"),
        of(unread=(Unread(0, "figure", "It is one."),)),
        of(encoding="cp1252"),
    ],
    ids=str,
)
def test_nothing_else_does(changed: Definition) -> None:
    assert changed.fingerprint(REALM) == MADE.fingerprint(REALM)


@pytest.mark.parametrize("part", ["weights", "numerics", "adapter", "tokenizer", "layout"])
def test_another_model_is_another_context(part: str) -> None:
    assert MADE.fingerprint(realm(**{part: "other"})) != MADE.fingerprint(REALM)


def test_borders_between_fields_are_part_of_it() -> None:
    """ "ab" + "c" is not "a" + "bc", in names, texts and from one document to the next."""
    one = of(name="a.pdfO", text="ne. Twox")
    assert one.fingerprint(REALM) != MADE.fingerprint(REALM)


@pytest.mark.parametrize(
    "change",
    [
        {"layout": 2},
        {"documents": None},
        {"documents": [{"name": "x"}]},
        {"documents": [{**DOCUMENT.to_json(), "pages": []}]},
        {"documents": [{**DOCUMENT.to_json(), "pages": [{"index": 0, "label": "1", "start": 0}]}]},
        {
            "documents": [
                {
                    **DOCUMENT.to_json(),
                    "pages": [{"index": 0, "label": "1", "start": -5, "end": 10**9}],
                }
            ]
        },
        {
            "documents": [
                {**DOCUMENT.to_json(), "headings": [{"level": 1, "title": "x", "start": 99}]}
            ]
        },
        {"documents": [{**DOCUMENT.to_json(), "text": "One\ud800" + DOCUMENT.text[4:]}]},
        {"documents": [{**DOCUMENT.to_json(), "name": "\udfff"}]},
        {"documents": [{**DOCUMENT.to_json(), "encoding": 8}]},
        {"documents": [{**DOCUMENT.to_json(), "unread": [UNREAD | {"page": "1"}]}]},
        {"documents": [{**DOCUMENT.to_json(), "unread": [UNREAD | {"reason": None}]}]},
        {"documents": [{**DOCUMENT.to_json(), "pages": [PAGE | {"label": 1}]}]},
        {"documents": [{**DOCUMENT.to_json(), "pages": [PAGE | {"start": 0.0}]}]},
        {"documents": [{**DOCUMENT.to_json(), "headings": [HEADING | {"title": ["a"]}]}]},
        {"documents": [{**DOCUMENT.to_json(), "headings": [HEADING | {"level": True}]}]},
        {"instructions": "\ud800"},
        {"instructions": []},
        {"instructions": ["a"]},
        {"turns": [{"role": "system", "content": "x"}]},
        {"turns": [{"role": "assistant", "content": "x"}]},
        {"turns": [{"role": "user", "content": 5}]},
        {"turns": [{"role": "user", "content": "\udc00"}]},
        {"turns": ["x"]},
        {"turns": 7},
        {"section_tokens": float("inf")},
        {"section_tokens": "512"},
        {"section_tokens": 0},
        {"section_tokens": True},
    ],
    ids=str,
)
def test_what_no_definition_says_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        Definition.from_json({**MADE.to_json(), **change})


def test_a_field_that_is_missing_is_refused() -> None:
    told = MADE.to_json()
    for name in told:
        less = {key: value for key, value in told.items() if key != name}
        with pytest.raises(ValueError, match="not the definition"):
            Definition.from_json(less)
