"""How documents and questions become one prompt: the layout, and its token ids piece by piece.

    what the model's template writes before a user's message (instructions are its system message)
    <document name="a.pdf">
    … text …
    </document>
                                          (an empty line)
    <document name="b.txt">
    … text …
    </document>
                                          (an empty line)
    the question, and what the template writes after it

Invariants: every piece is tokenised by itself, so the ids of a prompt with a further document, or
with a question, begin with the ids of the prompt without it; and a document's text is ordinary text
throughout, whatever special tokens are written in it. Layouts are numbered: a change of any rule
here is a new number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kvasir.core.errors import RequestError, TemplateError
from kvasir.text.codec import TextCodec

LAYOUT = 1
Message = Mapping[str, str]  # {"role": …, "content": …}

_MARK = "⟦documents⟧"  # stands for the documents while the template renders


@dataclass(frozen=True, slots=True)
class Piece:
    """One document, or one section of a document, as it stands in a prompt. ``head`` says where a
    section stands in its document; empty for a whole document."""

    name: str
    text: str
    head: str = ""

    def written(self, *, first: bool) -> str:
        """The piece's text in a prompt; an empty line is between two pieces."""
        name = "".join(c if c.isprintable() and c != '"' else "'" for c in self.name)
        head = f"{self.head}\n\n" if self.head else ""
        gap = "" if first else "\n"
        return f'{gap}<document name="{name}">\n{head}{self.text}\n</document>\n'


@dataclass(frozen=True, slots=True)
class Frame:
    """What stands before the documents and after them."""

    before: str
    after: str


def frame(codec: TextCodec, messages: Sequence[Message], *, generation_prompt: bool) -> Frame:
    """The prompt of ``messages`` with the documents at the beginning of the first user's message.

    Raises ``RequestError`` where no message is a user's, ``TemplateError`` where the model has no
    template or its template does not leave a user's text as it is.
    """
    at = next((i for i, m in enumerate(messages) if m["role"] == "user"), None)
    if at is None:
        raise RequestError(
            "A question on a context needs a message of the user: the documents stand before it.",
            param="messages",
        )
    if codec.template is None:
        raise TemplateError(
            "This model has no chat template, so it cannot be asked about documents. Serve an "
            "instruction-tuned model, or send the text to /v1/completions."
        )
    mark = _MARK
    while any(mark in message["content"] for message in messages):
        mark += "⟧"
    asked = dict(messages[at])
    asked["content"] = f"{mark}\n{asked['content']}"
    marked = [*messages[:at], asked, *messages[at + 1 :]]
    rendered = codec.template.render(marked, generation_prompt=generation_prompt)
    before, found, after = rendered.partition(mark)
    if not found or mark in after:
        raise TemplateError(
            "The model's chat template changes or repeats a user's text, so documents cannot be "
            "put into it."
        )
    return Frame(before, after)


def opening(codec: TextCodec, instructions: str | None) -> list[int]:
    """The ids of what stands before the documents."""
    messages = [*_system(instructions), {"role": "user", "content": ""}]
    rendered = frame(codec, messages, generation_prompt=False)
    return codec.tokenizer.encode(rendered.before, bos=False)


def piece_ids(codec: TextCodec, piece: Piece, *, first: bool) -> list[int]:
    """The ids of ``piece``, the ``first`` one of its prompt or a later one."""
    return codec.tokenizer.encode(piece.written(first=first), special=False, bos=False)


def prefix_ids(codec: TextCodec, instructions: str | None, pieces: Sequence[Piece]) -> list[int]:
    """The ids of a context: everything up to the end of its last document."""
    ids = opening(codec, instructions)
    for number, piece in enumerate(pieces):
        ids += piece_ids(codec, piece, first=not number)
    return ids


def with_instructions(
    instructions: str | None, messages: Sequence[Message]
) -> list[dict[str, str]]:
    """``messages`` behind the context's instructions.

    A system message of their own would stand before the documents and make them another text, so
    that nothing of the context could be reused: with instructions it is refused, without it is put
    at the beginning of the question. Raises ``RequestError``.
    """
    system = [m for m in messages if m["role"] == "system"]
    rest = [dict(m) for m in messages if m["role"] != "system"]
    if system and instructions:
        raise RequestError(
            "This context has instructions of its own, which its kept text begins with. A system "
            "message would replace them and have everything read anew. Leave it out, put it into "
            "the question, or fork the context with other instructions.",
            param="messages",
            code="context_has_instructions",
        )
    if system:
        first = next((m for m in rest if m["role"] == "user"), None)
        if first is not None:
            first["content"] = "\n\n".join([*(m["content"] for m in system), first["content"]])
    return [*_system(instructions), *rest]


def _system(instructions: str | None) -> list[dict[str, str]]:
    return [{"role": "system", "content": instructions}] if instructions else []
