"""One answer on the terminal: a bar while the prompt is read, then the text, then what it took."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence

from kvasir.cli import show
from kvasir.cli.client import AnswerEnd, AnswerText, ChatEvent, Message, ReadProgress
from kvasir.cli.connect import Connection
from kvasir.core.errors import ContextTooLong, RequestError


class PromptTooLong(RequestError):
    """The prompt does not fit the window; ``fact`` says so with the counts."""

    def __init__(self, model: str, error: ContextTooLong) -> None:
        self.fact = (
            f"the text has {error.prompt_tokens:,} tokens with the question; {model} reads at most "
            f"{error.window:,}"
        )
        super().__init__(
            f"{self.fact}\nnothing is ever cut silently, so nothing was read\n"
            "shorten the text, or name a model with a longer window with --model"
        )


def print_answer(
    connection: Connection, messages: Sequence[Message], options: Mapping[str, object]
) -> str:
    """Stream the answer to stdout and its account to stderr; returns the answer's text.

    Raises ``PromptTooLong`` with the counts and the choices where the prompt does not fit. Ends the
    answer on the server when interrupted.
    """
    wanted = {name: value for name, value in options.items() if value is not None}
    try:
        return _print(_events(connection, messages, wanted))
    except ContextTooLong as error:
        room = error.window - error.prompt_tokens
        if room < 1:
            raise PromptTooLong(connection.model, error) from error
        # the prompt fits, only the answer's bound does not: no text is lost by lowering it
        return _print(_events(connection, messages, {**wanted, "max_tokens": room}))


def _events(
    connection: Connection, messages: Sequence[Message], options: Mapping[str, object]
) -> Iterator[ChatEvent]:
    return connection.client.chat(messages, model=connection.model, options=options)


def _print(events: Iterator[ChatEvent]) -> str:
    began_s = time.monotonic()
    first_text_s: float | None = None
    pieces: list[str] = []
    end: AnswerEnd | None = None
    with show.ReadingBar("reading") as bar:
        for event in events:
            match event:
                case ReadProgress():
                    bar.update(event)
                case AnswerText(text):
                    bar.close()
                    first_text_s = first_text_s or time.monotonic() - began_s
                    pieces.append(text)
                    print(show.printable(text), end="", flush=True)
                case AnswerEnd():
                    end = event
    if pieces and not pieces[-1].endswith("\n"):
        print(flush=True)
    sys.stdout.flush()
    if end is not None:
        total_s = time.monotonic() - began_s
        show.note(show.took(end, first_text_s=first_text_s, total_s=total_s))
    return "".join(pieces)
