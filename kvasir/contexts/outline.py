"""From a definition to its prompts: one where the documents fit the window, else one per section.

Invariants: a part's ids are what ``layout`` makes of it and nothing else; each part leaves room in
the window for a question and an answer; the same definition on the same model has the same parts.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace

from kvasir.catalog.values import SectionRow
from kvasir.contexts import layout
from kvasir.contexts.definition import Definition
from kvasir.contexts.layout import Piece
from kvasir.core.errors import ContextTooLong, RequestError
from kvasir.documents.sections import cut, header_of
from kvasir.text.codec import TextCodec

WHOLE = -1  # the document of a part that holds all documents
_MOST_CHARS_PER_TOKEN = 16  # longer texts are not tokenised only to see that they do not fit
_HEAD_TOKENS = 160  # for what is written around a section's text
_HEAD_CHARS = 160  # no character is more than a few tokens; most tokens have several
_LEAST_SECTION_TOKENS = 256
_MOST_SECTION_TOKENS = 16_384


@dataclass(frozen=True, slots=True)
class Part:
    """One prompt of a context: where it stands, and its token ids as unsigned 32-bit numbers."""

    row: SectionRow
    ids: bytes


@dataclass(frozen=True, slots=True)
class Outline:
    """All prompts of a context. ``sectioned`` says that they are sections of what does not fit."""

    parts: tuple[Part, ...]
    sectioned: bool
    replaced: int  # characters for which the model has no token: it reads spaces

    @property
    def tokens(self) -> int:
        """Tokens of all parts."""
        return sum(part.row.n_tokens for part in self.parts)


def packed(ids: Sequence[int]) -> bytes:
    """Token ids as bytes, four each, little-endian on all machines that are served."""
    return array("I", ids).tobytes()


def unpacked(data: bytes) -> list[int]:
    """The ids that ``packed`` wrote."""
    ids = array("I")
    ids.frombytes(data)
    return ids.tolist()


def room_tokens(window: int) -> int:
    """What is left of a window of that many tokens for a question and its answer."""
    return min(window // 4, max(512, window // 8))


def default_section_tokens(window: int) -> int:
    """How long sections are where nobody has said it: short enough that a small model finds
    something in one, long enough that a question costs little beside it."""
    most = window - room_tokens(window)
    return min(most, max(1024, min(window // 4, _MOST_SECTION_TOKENS)))


def outline(codec: TextCodec, definition: Definition, window: int) -> Outline:
    """The parts of ``definition`` for a model with that window, in tokens.

    Raises ``RequestError`` where there is no text, where sections have no room, or where turns
    follow documents that do not fit; ``ContextTooLong`` where the turns alone are too long.
    """
    if not any(d.text.strip() for d in definition.documents) and not definition.turns:
        raise RequestError("There is no text in it, so there is nothing to read.", param="input")
    texts = [codec.tokenizer.writable(d.text) for d in definition.documents]
    replaced = sum(count for _, count in texts)
    readable = [text for text, _ in texts]
    most = window - room_tokens(window)
    part = _whole(codec, definition, readable, most)
    if part is not None:
        return Outline((part,), False, replaced)
    if definition.turns:
        raise RequestError(
            f"The documents do not fit the window of {window} tokens with the turns behind them, "
            "so they would be read as sections, and turns can only follow a text that is read "
            "whole. Leave the turns out, or use a model with a longer window.",
            param="input",
        )
    return Outline(_sections(codec, definition, readable, most), True, replaced)


def turns_text(codec: TextCodec, definition: Definition) -> str:
    """What the template writes of the turns behind the documents."""
    if not definition.turns:
        return ""
    messages = layout.with_instructions(definition.instructions, definition.turns)
    return layout.frame(codec, messages, generation_prompt=False).after


def _whole(
    codec: TextCodec, definition: Definition, texts: Sequence[str], most: int
) -> Part | None:
    """All documents as one part; None where that is longer than ``most`` tokens."""
    n_chars = sum(len(text) for text in texts)
    if n_chars > most * _MOST_CHARS_PER_TOKEN:
        return None
    pieces = [Piece(d.name, t) for d, t in zip(definition.documents, texts, strict=True)]
    ids = layout.prefix_ids(codec, definition.instructions, pieces)
    turns = codec.tokenizer.encode(turns_text(codec, definition), bos=False)
    if len(turns) > most:
        raise ContextTooLong(window=most, prompt_tokens=len(turns), max_tokens=0)
    ids += turns
    if len(ids) > most:
        return None
    pages = sum(len(document.pages) for document in definition.documents)
    row = SectionRow(
        index=0,
        document=WHOLE,
        title_path=(),
        start=0,
        end=n_chars,
        first_page=0,
        last_page=max(0, pages - 1),
        n_tokens=len(ids),
        read=False,
        summary=None,
    )
    return Part(row, packed(ids))


def _sections(
    codec: TextCodec, definition: Definition, texts: Sequence[str], most: int
) -> tuple[Part, ...]:
    opening = layout.opening(codec, definition.instructions)
    wanted = min(definition.section_tokens, most)
    budget = wanted - len(opening) - _HEAD_TOKENS
    if budget < _LEAST_SECTION_TOKENS // 2:
        raise RequestError(
            f"Sections of {wanted} tokens leave {max(0, budget)} for the text beside the "
            f"instructions ({len(opening)} tokens). Shorten the instructions or set section_tokens "
            f"to at least {_LEAST_SECTION_TOKENS + len(opening) + _HEAD_TOKENS}.",
            param="section_tokens",
        )

    def count(pieces: Sequence[str]) -> Sequence[int]:
        return codec.tokenizer.count(pieces)

    parts: list[Part] = []
    for number, (original, text) in enumerate(zip(definition.documents, texts, strict=True)):
        if not text.strip():
            continue
        document = replace(original, text=text)
        for section in cut(document, budget, count):
            head = header_of(section, document)[:_HEAD_CHARS]
            piece = Piece(document.name, text[section.start : section.end], head)
            ids = [*opening, *layout.piece_ids(codec, piece, first=True)]
            below = [" … ".join(section.titles)] if section.titles else []
            titles = (*section.title_path, *below)
            if len(ids) > most:
                raise ContextTooLong(window=most, prompt_tokens=len(ids), max_tokens=0)
            row = SectionRow(
                index=len(parts),
                document=number,
                title_path=titles,
                start=section.start,
                end=section.end,
                first_page=section.first_page.index,
                last_page=section.last_page.index,
                n_tokens=len(ids),
                read=False,
                summary=None,
            )
            parts.append(Part(row, packed(ids)))
    return tuple(parts)
