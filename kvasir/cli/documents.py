"""Text files for `kvasir ask`: read, checked, and laid out so that a second question reuses them.

Invariant: a text reaches the model whole or not at all.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kvasir.core.errors import RequestError

MAX_DOCUMENT_BYTES = 32 * 2**20  # beyond any window; keeps a mistaken path from filling memory
STDIN = "-"


@dataclass(frozen=True, slots=True)
class Document:
    """A text and the name under which the model sees it."""

    name: str
    text: str


def read_document(path: str) -> Document:
    """The text of the file at ``path``, or of standard input for ``-``.

    Raises ``RequestError`` for what is missing, too large, binary or not UTF-8.
    """
    if path == STDIN:
        return Document("standard input", _decoded(sys.stdin.buffer.read(_LIMIT), path))
    file = Path(path)
    try:
        with file.open("rb") as stream:
            data = stream.read(_LIMIT)
    except OSError as error:
        raise RequestError(
            f"cannot read {path}: {error.strerror}\n"
            "the arguments are files, and the question last\n"
            'for example: kvasir ask report.txt "Who wrote this?"'
        ) from error
    # The name alone: the same file by another way is the same prompt, and so is reused.
    return Document(file.name, _decoded(data, path))


_LIMIT = MAX_DOCUMENT_BYTES + 1


def _decoded(data: bytes, path: str) -> str:
    if len(data) > MAX_DOCUMENT_BYTES:
        raise RequestError(
            f"{path} is larger than {MAX_DOCUMENT_BYTES // 2**20} MiB\n"
            "no model's window holds that much text\nask about a part of it"
        )
    if data.startswith(b"%PDF-") or b"\0" in data:
        raise RequestError(
            f"{path} is not a text file\n"
            f"it {'is a PDF' if data.startswith(b'%PDF-') else 'has zero bytes in it'}, "
            "and only plain text can be read\nconvert it to UTF-8 text first"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{path} is not UTF-8: byte 0x{data[error.start]:02x} at position {error.start:,}\n"
            "it is binary or in another encoding\n"
            f"convert it first, for example: iconv -f latin1 -t utf-8 {path}"
        ) from error


def prompt_of(documents: Sequence[Document], question: str) -> str:
    """The documents first and the question last, so that the next question on the same documents
    begins with the same tokens and computes only itself."""
    parts = [f'<document name="{d.name}">\n{d.text}\n</document>\n' for d in documents]
    return "\n".join([*parts, question])
