"""Plain texts for `kvasir ask`: whole or not at all, the question last; other formats are left to
the reading of documents."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvasir.cli import documents
from kvasir.cli.documents import PlainText, plain_text, prompt_of
from kvasir.core.errors import RequestError


def _read(folder: Path, data: bytes, name: str = "text.txt") -> PlainText | None:
    path = folder / "somewhere"
    path.write_bytes(data)
    return plain_text(name, path)


def test_text_is_taken_as_documents_have_it(tmp_path: Path) -> None:
    """So that a context of the same file and a question to the file share their KV."""
    text = _read(tmp_path, "Тихий Дон\r\n\tend \n".encode())
    assert text == PlainText("text.txt", "Тихий Дон\n\tend \n")


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    assert _read(tmp_path, b"\xef\xbb\xbfHello") == PlainText("text.txt", "Hello")


def test_source_code_and_markdown_are_plain(tmp_path: Path) -> None:
    for name in ("a.py", "a.md", "README", "table.csv"):
        assert _read(tmp_path, b"x = 1\n", name) == PlainText(name, "x = 1\n")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("latin.txt", b"caf\xe9 au lait"),
        ("a.docx", b"PK\x03\x04\x00\x00"),
        ("a.txt", b"%PDF-1.7\n"),
        ("a.html", b"<p>Hello"),
        ("page", b"<!DOCTYPE html><p>Hello"),
        ("wide.txt", b"\xff\xfeH\0i\0"),
    ],
)
def test_other_formats_become_documents(tmp_path: Path, name: str, data: bytes) -> None:
    assert _read(tmp_path, data, name) is None


def test_what_gives_no_text_is_refused_in_three_lines(tmp_path: Path) -> None:
    for data in (b"\x7fELF" + bytes(64), b"\x89PNG\r\n\x1a\n", bytes(400)):
        with pytest.raises(RequestError, match="cannot be read") as caught:
            _read(tmp_path, data)
        assert len(str(caught.value).splitlines()) == 3


def test_no_more_is_read_than_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MOST_PLAIN_BYTES", 4)
    assert _read(tmp_path, b"1234") == PlainText("text.txt", "1234")
    assert _read(tmp_path, b"12345") is None


def test_prompts_on_the_same_documents_begin_alike() -> None:
    texts = [PlainText("a.txt", "one"), PlainText("b.txt", "two")]
    first, second = (prompt_of(texts, question) for question in ("Who?", "Where?"))
    assert first.removesuffix("Who?") == second.removesuffix("Where?")
    assert first.index("one") < first.index("two") < first.index("Who?")
