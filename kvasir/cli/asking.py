"""A question to files or to a context, in whichever way suits them.

Plain texts that fit the window are one prompt with the question. Other formats, and texts that do
not fit, become a context first, which is kept like any other and found again by the next question.
Invariant: a context that is there already is asked as it is: neither its name nor its keeping
changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvasir.cli import show
from kvasir.cli.answer import PromptTooLong, print_answer
from kvasir.cli.connect import Connection
from kvasir.cli.context_client import ENDED, Context, Contexts
from kvasir.cli.documents import PlainText, prompt_of
from kvasir.cli.reading import NoRoom, Source, create, follow, named, uploaded
from kvasir.cli.receipts import short_receipt
from kvasir.cli.section_answer import print_section_answer

_MOST_CHARS_PER_TOKEN = 16  # longer texts are not sent only to hear that they do not fit


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A question; ``mode`` and ``sections`` are for contexts of sections, None where nobody has
    said it, ``options`` for answers that are generated from one prompt."""

    question: str
    mode: str | None = None
    sections: int | None = None
    options: Mapping[str, object] = field(default_factory=dict)


def ask_files(
    connection: Connection,
    sources: Sequence[Source],
    texts: Sequence[PlainText | None],
    name: str,
    asked: Asked,
) -> None:
    """Answer about files; ``texts`` are those of plain text. ``name`` is for the context that they
    become, where they become one. Raises ``KvasirError``."""
    plain = [text for text in texts if text is not None]
    if len(plain) == len(sources) and _may_fit(connection, plain):
        message = {"role": "user", "content": prompt_of(plain, asked.question)}
        try:
            print_answer(connection, [message], asked.options)
        except PromptTooLong as error:
            show.note(f"{error.fact}; it is read in sections")
        else:
            return
    ask_context(connection, _made(connection, sources, name), asked)


def ask_context(connection: Connection, context: Context, asked: Asked) -> None:
    """Answer from ``context``, once it is read. Raises ``KvasirError``."""
    contexts = Contexts(connection.client)
    if context.status not in ENDED:
        context = follow(contexts, context)
    if not context.sectioned:
        if asked.mode or asked.sections:
            show.note("the model reads all of it at once: --mode and --sections change nothing")
        message = {"role": "user", "content": asked.question}
        print_answer(connection, [message], {**asked.options, "context": context.id})
        return
    wishes = {"question": asked.question, "mode": asked.mode, "sections": asked.sections}
    question = {key: value for key, value in wishes.items() if value is not None}
    print_section_answer(contexts, context, question)


def _may_fit(connection: Connection, texts: Sequence[PlainText]) -> bool:
    most = connection.client.window() * _MOST_CHARS_PER_TOKEN
    return sum(len(text.text) for text in texts) <= most


def _made(connection: Connection, sources: Sequence[Source], name: str) -> Context:
    """The context of ``sources``, read: the one that is there, or a new one that expires."""
    contexts = Contexts(connection.client)
    with uploaded(contexts, sources) as ids, show.working("counting tokens"):
        existing = contexts.forecast({"file_ids": ids}).existing
        context = contexts.find(existing) if existing is not None else None
        if context is not None and context.status == "completed":
            return context
        if context is None or context.status in ENDED:
            keep = "kv" if context is None else str(context.raw["keep"])
            context = named(contexts, _created(contexts, {"file_ids": ids, "keep": keep}), name)
    context = follow(contexts, context)
    show.note(short_receipt(context))
    return context


def _created(contexts: Contexts, wanted: Mapping[str, Any]) -> Context:
    """A new context; of its text alone where there is no room for its KV, which is told."""
    try:
        return create(contexts, wanted)
    except NoRoom as error:
        fact = str(error).splitlines()[0]
        show.note(f"{fact}\n  so its text alone is kept; `kvasir read --dry-run` has the choices")
        return create(contexts, {**wanted, "keep": "text"})
