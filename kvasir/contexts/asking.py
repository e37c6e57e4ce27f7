"""A question on a context as a prompt: the part's kept ids, and behind them what is new.

Invariant: the prompt begins with exactly the ids that were read, so nothing of the context is
computed again; what the model has answered in a conversation is continued by the ids that it said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvasir.catalog.values import ContextRow
from kvasir.contexts import layout
from kvasir.contexts.layout import Message
from kvasir.contexts.library import Library
from kvasir.contexts.outline import unpacked
from kvasir.core.errors import RequestError

QUEUED = ("queued", "in_progress")


class NotReady(RequestError):
    """The context is still being read."""

    def __init__(self, row: ContextRow, eta_s: float | None) -> None:
        super().__init__(
            f"The context {row.name or row.id} is still being read: {row.read_tokens:,} of "
            f"{row.tokens:,} tokens are kept. Ask again when it is completed; its events tell how "
            "far it is.",
            param="context",
            code="context_not_ready",
        )
        self.eta_s = eta_s


class NotUsable(RequestError):
    """The context cannot be asked: it was not read to its end, or belongs to another model."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids of a question on one part; ``tail`` is the text behind the first ``n_context`` of
    them, made of ``messages``, which a transcript remembers it by."""

    ids: list[int]
    n_context: int
    tail: str
    messages: tuple[Message, ...]


def check_usable(library: Library, row: ContextRow, eta_s: float | None = None) -> None:
    """Raise ``NotReady`` or ``NotUsable`` unless ``row`` can be asked."""
    if row.status != "expired" and not is_of_this_model(library, row):
        raise NotUsable(
            f"The context {row.name or row.id} was made for {row.model} "
            f"({row.definition.get('realm')}), and this server runs {library.card.name} "
            f"({realm_name(library)}). Serve that model as it was, or create the context again: "
            "its text is kept.",
            param="context",
            code="context_model_mismatch",
        )
    if row.status in QUEUED:
        raise NotReady(row, eta_s)
    if row.status != "completed":
        why = f": {row.error}" if row.error else ""
        raise NotUsable(
            f"The context {row.name or row.id} is {row.status}{why}. Create it again with the same "
            "content: what was read of it is kept and the rest goes on from there.",
            param="context",
            code=f"context_{row.status}",
        )


def is_of_this_model(library: Library, row: ContextRow) -> bool:
    """Whether ``row`` was made for the model that is served, as it is served."""
    return bool(row.definition.get("realm") == realm_name(library))


def realm_name(library: Library) -> str:
    """The realm's fingerprint in short, for people."""
    return library.card.realm.tag.hex()[:16]


def instructions_of(row: ContextRow) -> str | None:
    """The context's instructions."""
    value = row.definition.get("instructions")
    return value if isinstance(value, str) and value else None


def turns_of(row: ContextRow) -> tuple[Message, ...]:
    """The messages behind the context's documents."""
    turns: Sequence[Mapping[str, Any]] = row.definition.get("turns") or ()
    return tuple({"role": str(t["role"]), "content": str(t["content"])} for t in turns)


def prompt_on_whole(library: Library, row: ContextRow, asked: Sequence[Message]) -> Prompt:
    """The prompt of the messages ``asked`` on a context that is one part.

    Raises ``RequestError`` where they do not go with it, ``TemplateError``.
    """
    codec, instructions, turns = library.codec, instructions_of(row), turns_of(row)
    # a system message is judged by itself, also where turns are in front of the question
    asked = layout.with_instructions(instructions, asked)
    asked = [message for message in asked if message["role"] != "system"]
    if not any(message["role"] == "user" for message in asked):
        raise RequestError("A question needs a message of the user.", param="messages")
    messages = layout.with_instructions(instructions, [*turns, *asked])
    tail = layout.frame(codec, messages, generation_prompt=True).after
    if turns:
        before = layout.with_instructions(instructions, turns)
        said = layout.frame(codec, before, generation_prompt=False).after
        if not tail.startswith(said):
            raise RequestError(
                "The model's chat template writes earlier turns otherwise once others follow, so "
                "this branch cannot be continued. Ask on the context that it was forked from.",
                param="messages",
            )
        tail = tail[len(said) :]
    context = unpacked(library.tokens(row)[0])
    remembered = (_marker(row), *messages)
    rest = codec.transcripts.encode(
        library.namespace_of(row.tenant), remembered, tail, codec.tokenizer
    )
    return Prompt([*context, *rest], len(context), tail, remembered)


def tail_ids(library: Library, row: ContextRow, question: str) -> list[int]:
    """The ids of ``question`` behind any section of ``row``, and of the answer's beginning."""
    messages = layout.with_instructions(
        instructions_of(row), [{"role": "user", "content": question}]
    )
    tail = layout.frame(library.codec, messages, generation_prompt=True).after
    return library.codec.tokenizer.encode(tail, bos=False)


def plain_ids(library: Library, question: str) -> list[int]:
    """The ids of a question without documents."""
    template = library.codec.template
    if template is None:
        raise NotUsable("This model has no chat template.", param="context")
    rendered = template.render([{"role": "user", "content": question}])
    return library.codec.tokenizer.encode(rendered, bos=False)


def _marker(row: ContextRow) -> Message:
    """What keeps the transcripts of a context apart from those of plain conversations."""
    return {"role": "context", "content": row.fingerprint}
