"""`kvasir chat`: a conversation; every turn computes only its new tokens."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from kvasir.cli import options
from kvasir.core.config import load
from kvasir.core.errors import RequestError

_HELP = "/reset begins anew, /quit ends, Ctrl-C ends an answer"


def command(
    model: options.ModelOption = None,
    system: Annotated[
        str | None, typer.Option("--system", help="Instructions for the model.")
    ] = None,
    home: options.HomeOption = None,
    config_file: options.ConfigFileOption = None,
    max_tokens: options.MaxTokensOption = 512,
    temperature: options.TemperatureOption = 0.0,
    seed: options.SeedOption = None,
) -> None:
    """Talk with the model. Without a terminal, one turn per line of standard input.

    /reset begins a new conversation, /quit (or Ctrl-D) ends.
    """
    config = load({"model": model, "home": home}, file=config_file)

    from kvasir.cli import show
    from kvasir.cli.answer import print_answer
    from kvasir.cli.client import Message, ServerError
    from kvasir.cli.connect import connect

    opening: list[Message] = [{"role": "system", "content": system}] if system else []
    history = list(opening)
    wanted = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    with connect(config) as connection:
        show.note(f"{connection.model}: {_HELP}")
        for line in _lines():
            turn = line.strip()
            if turn == "/quit":
                return
            if turn == "/reset":
                history = list(opening)
                show.note("a new conversation")
            elif turn.startswith("/"):
                show.note(f"unknown command {turn.split()[0]}: {_HELP}")
            elif turn:
                asked: Message = {"role": "user", "content": turn}
                try:
                    answer = print_answer(connection, [*history, asked], wanted)
                except (RequestError, ServerError) as error:
                    show.note(f"kvasir: {error}\n  this turn is left out; /reset begins anew")
                except KeyboardInterrupt:
                    show.note("\nthe answer was ended; this turn is left out")
                else:
                    history += [asked, {"role": "assistant", "content": answer}]


def _lines() -> Iterator[str]:
    """What the user types, until the end of input; Ctrl-C at the prompt ends as well."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    import readline  # noqa: F401  (gives input() its editing and history)

    while True:
        try:
            yield input("> ")
        except (EOFError, KeyboardInterrupt):
            print(file=sys.stderr)
            return
