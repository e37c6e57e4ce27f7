"""Plain texts for `kvasir ask`: read, and laid out so that a second question reuses them.

What is plain text and fits the window is asked as it is; everything else becomes a context first
(``asking``). Invariant: a text reaches the model whole or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kvasir.core.errors import RequestError, UnreadableFile, UnsupportedFile
from kvasir.documents import media
from kvasir.documents.building import normalised

MOST_PLAIN_BYTES = 8 * 2**20  # beyond the window of nearly all models


@dataclass(frozen=True, slots=True)
class PlainText:
    """A text and the name under which the model sees it."""

    name: str
    text: str


def plain_text(name: str, path: Path) -> PlainText | None:
    """The text of the file at ``path`` where it is plain text in UTF-8 and of moderate size; None
    where it is another format that may be read as a document.

    Raises ``RequestError`` for what no text can be had of.
    """
    with path.open("rb") as stream:
        data = stream.read(MOST_PLAIN_BYTES + 1)
    media_type = media_type_of(name, data)
    if len(data) > MOST_PLAIN_BYTES or media_type not in media.TEXTUAL - {media.HTML}:
        return None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None  # another encoding, which the reading of documents finds out
    # As the reading of documents has it, so that a context of the same file is reused; and the name
    # alone: the same file by another way is the same prompt.
    return PlainText(name, normalised(text))


def media_type_of(name: str, data: bytes) -> str:
    """The media type of the file called ``name`` that begins with ``data``. Raises ``RequestError``
    for what no text can be had of."""
    try:
        return media.media_type_of(name, data)
    except (UnsupportedFile, UnreadableFile) as error:
        cause, _, advice = str(error).partition("; ")
        raise RequestError(
            f"{name} cannot be read\n{cause}\n{advice or media.WHAT_IS_TAKEN}", code=error.code
        ) from error


def prompt_of(documents: Sequence[PlainText], question: str) -> str:
    """The documents first and the question last, so that the next question on the same documents
    begins with the same tokens and computes only itself."""
    parts = [f'<document name="{d.name}">\n{d.text}\n</document>\n' for d in documents]
    return "\n".join([*parts, question])
