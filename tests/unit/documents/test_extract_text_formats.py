"""Plain text, Markdown, source code and tables: kept as they are, with their headings found."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvasir.core.errors import UnreadableFile, UnsupportedFile
from kvasir.documents.allowance import Allowance
from kvasir.documents.limits import ExtractLimits
from kvasir.documents.reading import read
from kvasir.documents.values import Document, check

LIMITS = ExtractLimits()


def document_of(data: bytes | str, name: str, limits: ExtractLimits = LIMITS) -> Document:
    if isinstance(data, str):
        data = data.encode("utf-8")
    (document,) = read(io.BytesIO(data), name, Allowance(limits, len(data))).documents
    check(document)
    return document


def headings(document: Document) -> list[tuple[int, str]]:
    return [(heading.level, heading.title) for heading in document.headings]


# --- plain text -----------------------------------------------------------------------------------

NOVEL = """\
The Project says hello

BOOK ONE: 1805

CHAPTER I

"Well, Prince," said BOOK TWO of this line.

CHAPTER II. In which
this is a paragraph that begins as a heading does, but goes on

CHAPTER II

More.

FIRST EPILOGUE: 1813 - 20

CHAPTER I

The end.
"""


def test_a_novels_books_and_chapters_are_its_headings() -> None:
    document = document_of(NOVEL, "novel.txt")
    assert document.text == NOVEL
    assert document.media_type == "text/plain"
    assert document.encoding == "utf-8"
    assert headings(document) == [
        (1, "BOOK ONE: 1805"),
        (2, "CHAPTER I"),
        (2, "CHAPTER II. In which"),
        (2, "CHAPTER II"),
        (1, "FIRST EPILOGUE: 1813 - 20"),
        (2, "CHAPTER I"),
    ]
    for heading in document.headings:
        assert document.text.startswith(heading.title, heading.start)


def test_without_books_chapters_are_the_outermost() -> None:
    assert headings(document_of("Preface\n\nx\n\nChapter 1\n\nx\n\nChapter Two\n\nx", "a.txt")) == [
        (1, "Preface"),
        (1, "Chapter 1"),
        (1, "Chapter Two"),
    ]


def test_three_kinds_make_three_levels() -> None:
    text = "PART ONE\n\nBOOK I\n\nCHAPTER 1\n\nx\n\nPART TWO\n\ny"
    assert [level for level, _ in headings(document_of(text, "a.txt"))] == [1, 2, 3, 1]


def test_a_table_of_contents_is_no_list_of_headings() -> None:
    listed = "".join(f"CHAPTER {n}. Title {n}\n\n" for n in range(1, 5))
    told = "".join(f"CHAPTER {n}. Title {n}\n\nText.\n\n" for n in range(1, 5))
    document = document_of(listed + told, "a.txt")
    assert len(document.headings) <= 5  # the last line of the list may be the first of the text
    assert [h.title for h in document.headings][-4:] == [
        f"CHAPTER {n}. Title {n}" for n in (1, 2, 3, 4)
    ]


@pytest.mark.parametrize(
    "line",
    [
        "Part of the plan was this.", "CHAPTER", "Book in hand, he left", "I. went home",
        "Chapter and verse", "PARTLY ONE", "Introduction to the thing that we saw",
    ],
)  # fmt: skip
def test_prose_is_no_heading(line: str) -> None:
    assert headings(document_of(f"x\n\n{line}\n\ny", "a.txt")) == []


def test_form_feeds_end_pages() -> None:
    document = document_of("one\ftwo\n\fthree\n\f", "a.txt")
    assert document.text == "one\ftwo\n\fthree\n\f"
    assert document.paged
    assert [(page.label, page.start, page.end) for page in document.pages] == [
        ("1", 0, 4), ("2", 4, 9), ("3", 9, 16),
    ]  # fmt: skip


def test_too_many_pages_are_told_and_nothing_is_lost() -> None:
    document = document_of("x\f" * 50 + "y", "a.txt", ExtractLimits(pages=10))
    assert len(document.pages) == 10
    assert document.text == "x\f" * 50 + "y"
    assert "10th" in document.unread[0].reason


def test_a_real_novel_has_its_books_epilogues_and_chapters() -> None:
    data = Path(os.environ.get("KVASIR_TEST_DATA", Path(__file__).parents[4] / "shared" / "data"))
    path = data / "books" / "war-and-peace.txt"
    if not path.exists():
        pytest.skip("the novel is not in the folder of test data")
    document = document_of(path.read_bytes(), "war-and-peace.txt")
    assert len(document.text) > 3_200_000
    assert "\r" not in document.text
    assert not document.text.startswith("\ufeff")
    books = [title for level, title in headings(document) if level == 1]
    assert books[0] == "BOOK ONE: 1805"
    assert books[14:] == ["BOOK FIFTEEN: 1812 - 13", "FIRST EPILOGUE: 1813 - 20", "SECOND EPILOGUE"]
    chapters = [title for level, title in headings(document) if level == 2]
    assert len(chapters) == 365
    assert {title.split()[0] for title in chapters} == {"CHAPTER"}


# --- encodings ------------------------------------------------------------------------------------

GERMAN = "Größe und Schönheit der Übungsräume: für jede Straße ein Äquivalent, „süß“.\n" * 20


@pytest.mark.parametrize(
    ("encoding", "found"),
    [
        ("utf-8", "utf-8"), ("utf-8-sig", "utf-8"), ("utf-16", "utf-16-le"),
        ("utf-16-be", "utf-16-be"), ("utf-16-le", "utf-16-le"), ("utf-32", "utf-32-le"),
    ],
)  # fmt: skip
def test_unicode_is_decoded_with_and_without_a_mark(encoding: str, found: str) -> None:
    document = document_of(GERMAN.encode(encoding), "a.txt")
    assert (document.text, document.encoding) == (GERMAN, found)


def test_other_encodings_are_guessed_and_told() -> None:
    document = document_of(GERMAN.encode("cp1252"), "a.txt")
    assert document.text == GERMAN
    assert document.encoding == "cp1252"
    russian = "Все счастливые семьи похожи друг на друга, каждая несчастлива.\n" * 20  # noqa: RUF001
    document = document_of(russian.encode("cp1251"), "a.txt")
    assert document.text == russian
    assert document.encoding not in {None, "utf-8"}


def test_utf8_with_a_damaged_place_stays_utf8_and_says_so() -> None:
    document = document_of(GERMAN.encode() + b"\xff end", "a.txt")
    assert document.text == GERMAN + "\ufffd end"
    assert document.encoding == "utf-8"
    assert [row.what for row in document.unread] == ["characters"]


@given(st.text(st.characters(codec="utf-8"), min_size=1))
@settings(max_examples=100, deadline=None)
def test_utf8_loses_nothing_but_carriage_returns_and_nul(text: str) -> None:
    wanted = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")
    try:
        document = document_of("A plain beginning. " * 20 + text, "a.txt")
    except UnsupportedFile:
        assert text.count("\0") > 3 or sum(c < " " for c in text) > 30
    else:
        assert document.text == "A plain beginning. " * 20 + (
            wanted if text[0] != "\ufeff" else text
        )


def test_what_is_no_text_is_refused_by_its_name() -> None:
    for data, what in (
        (b"\x7fELF\x02\x01", "ELF"),
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (b"\0\0\0\x18ftypmp42", "MP4"),
        (b"MZ\x90\0\x03", "program"),
        (b"\x1f\x8b\x08", "gzip"),
        (bytes(range(256)), "binary"),
        (b"abcdefghijklmnopqrs\0" * 50, "zero bytes"),
        (b"\x01\x02\x03\x04\x05\x06" * 9, "binary"),
    ):
        with pytest.raises(UnsupportedFile, match=what):
            document_of(data, "harmless.txt")


@pytest.mark.parametrize("data", ["", " \n\t\n", "\0\ufeff"[1:]])
def test_a_file_without_text_is_unreadable(data: str) -> None:
    with pytest.raises(UnreadableFile, match="no text"):
        document_of(data, "a.txt")


# --- Markdown -------------------------------------------------------------------------------------

NOTES = """\
---
title: Properties are no heading
---
# Outermost #

Setext of
two lines
=========

```sh
# a comment in code
```

~~~
```
# still code
~~~

Second
---

- a list
---

####### seven are none
#none either
    # code by its indent
### Third
> quoted
===
"""


def test_markdown_headings_outside_of_code() -> None:
    document = document_of(NOTES, "notes.md")
    assert document.text == NOTES
    assert headings(document) == [
        (1, "Outermost"), (1, "Setext of two lines"), (2, "Second"), (3, "Third"),
    ]  # fmt: skip
    starts = [document.text[heading.start :].split("\n")[0] for heading in document.headings]
    assert starts == ["# Outermost #", "Setext of", "Second", "### Third"]


# --- source code and tables -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "code", "titles"),
    [
        ("a.py", "import x\nclass A(B):\n    def f(self): ...\nasync def g():\n",
         ["class A(B)", "async def g()"]),
        ("a.ts", "export interface A {\n}\nconst f = (x) => 1\nreturn f(\n",
         ["export interface A", "const f = (x) => 1"]),
        ("a.go", "package a\nfunc (t *T) Do() {\n}\ntype T struct {\n",
         ["func (t *T) Do()", "type T struct"]),
        ("a.rs", "use x;\npub(crate) fn f() {\n}\nimpl A for B {\n",
         ["pub(crate) fn f()", "impl A for B"]),
        ("a.c", "#include <a.h>\nstatic int f(int a)\n{\n  return g(a);\n}\nint g(int);\n",
         ["static int f(int a)"]),
        ("a.java", "package a;\npublic final class A {\n  void f() {}\n}\n",
         ["public final class A"]),
    ],
)  # fmt: skip
def test_definitions_are_headings(name: str, code: str, titles: list[str]) -> None:
    document = document_of(code, name)
    assert document.text == code
    assert [heading.title for heading in document.headings] == titles


def test_a_table_is_kept_and_its_columns_are_known() -> None:
    table = 'name;"size, in m";age\nAnn;1,70;30\n'
    document = document_of(table, "people.csv")
    assert document.text == table
    assert headings(document) == [(1, "name, size, in m, age")]
    assert headings(document_of("1,2,3\n4,5,6\n", "numbers.csv")) == []
    assert headings(document_of("a\tb\n1\t2\n", "t.tsv")) == [(1, "a, b")]


def test_more_text_than_allowed_is_refused_with_the_number() -> None:
    limits = ExtractLimits(text_bytes=2**20, expansion_floor_bytes=2**20)
    with pytest.raises(UnreadableFile, match="1 MiB"):
        document_of("x" * (2**20 + 1), "a.txt", limits)
    assert document_of("x" * 2**20, "a.txt", limits)
