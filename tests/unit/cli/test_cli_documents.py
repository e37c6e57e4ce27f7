"""Text files for `kvasir ask`: whole or not at all, and the question last."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from kvasir.cli import documents
from kvasir.cli.documents import Document, prompt_of, read_document
from kvasir.core.errors import RequestError


def _file(folder: Path, data: bytes) -> str:
    path = folder / "text.txt"
    path.write_bytes(data)
    return str(path)


def test_text_is_taken_as_it_is(tmp_path: Path) -> None:
    text = "Тихий Дон\r\n\tend \n"
    assert read_document(_file(tmp_path, text.encode())) == Document("text.txt", text)


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    assert read_document(_file(tmp_path, b"\xef\xbb\xbfHello")).text == "Hello"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"caf\xe9 au lait", "not UTF-8: byte 0xe9 at position 3"),
        (b"PK\x03\x04\x00\x00", "not a text file"),
        (b"%PDF-1.7\n", "is a PDF"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        read_document(_file(tmp_path, data))


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(RequestError, match="cannot read"):
            read_document(str(path))


def test_no_more_is_read_than_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", 4)
    monkeypatch.setattr(documents, "_LIMIT", 5)
    assert read_document(_file(tmp_path, b"1234")).text == "1234"
    with pytest.raises(RequestError, match="larger than"):
        read_document(_file(tmp_path, b"12345"))


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("größer".encode())))
    assert read_document("-").text == "größer"


def test_prompts_on_the_same_documents_begin_alike() -> None:
    texts = [Document("a.txt", "one"), Document("b.txt", "two")]
    first, second = (prompt_of(texts, question) for question in ("Who?", "Where?"))
    assert first.removesuffix("Who?") == second.removesuffix("Where?")
    assert first.index("one") < first.index("two") < first.index("Who?")
