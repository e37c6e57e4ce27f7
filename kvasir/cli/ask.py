"""`kvasir ask FILE… "QUESTION"`: read text files and answer one question about them."""

from __future__ import annotations

from typing import Annotated

import typer

from kvasir.cli import options
from kvasir.core.config import load


def command(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE", help="Text in UTF-8; - is standard input."),
    ],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What you want to know.")],
    model: options.ModelOption = None,
    home: options.HomeOption = None,
    config_file: options.ConfigFileOption = None,
    max_tokens: options.MaxTokensOption = 512,
    temperature: options.TemperatureOption = 0.0,
    seed: options.SeedOption = None,
) -> None:
    """Read FILEs and answer QUESTION.

    The answer goes to standard output, all else to standard error. While `kvasir serve` runs on
    the same home, the next question on the same files reads only the question.
    """
    if not question.strip():
        raise typer.BadParameter("the QUESTION, which comes last, is empty")
    if files.count("-") > 1:
        raise typer.BadParameter("standard input (-) can be read only once")
    config = load({"model": model, "home": home}, file=config_file)

    from kvasir.cli.documents import prompt_of, read_document

    prompt = prompt_of([read_document(path) for path in files], question)

    from kvasir.cli.answer import print_answer
    from kvasir.cli.connect import connect

    with connect(config) as connection:
        print_answer(
            connection,
            [{"role": "user", "content": prompt}],
            {"max_tokens": max_tokens, "temperature": temperature, "seed": seed},
        )
