"""`kvasir ask FILE… "QUESTION"`: read files and answer a question on them, or ask a context."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from kvasir.cli import options
from kvasir.core.config import load


def command(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILE",
            help="Text, PDF, DOCX, HTML, EPUB, source code, CSV, a zip or a folder; - is standard "
            "input.",
            show_default=False,
        ),
    ] = None,
    question: Annotated[
        str, typer.Argument(metavar="QUESTION", help="What you want to know.", show_default=False)
    ] = "",
    context: Annotated[
        str | None,
        typer.Option("--context", help="Ask this context, by name or id, instead of files."),
    ] = None,
    mode: Annotated[
        Literal["auto", "sweep", "focus"] | None,
        typer.Option(
            "--mode",
            help="Where the text is longer than the window: sweep asks every section, focus the "
            "likeliest; auto sweeps where that takes less than a minute.",
            show_default="auto",
        ),
    ] = None,
    sections: Annotated[
        int | None,
        typer.Option("--sections", min=1, max=64, help="That focus asks.", show_default="4"),
    ] = None,
    model: options.ModelOption = None,
    home: options.HomeOption = None,
    config_file: options.ConfigFileOption = None,
    max_tokens: options.MaxTokensOption = 512,
    temperature: options.TemperatureOption = 0.0,
    seed: options.SeedOption = None,
) -> None:
    """Read FILEs, or take a context, and answer QUESTION.

    The answer goes to standard output, all else to standard error. The next question on the same
    files reads only the question. A text longer than the model's window is asked section by
    section: passages of it come first, the model's answer after them.
    """
    paths = list(files or ())
    if not question and paths:
        question = paths.pop()
    _check(paths, question, context)
    config = load({"model": model, "home": home}, file=config_file)

    from kvasir.cli.asking import Asked, ask_context, ask_files
    from kvasir.cli.connect import connect
    from kvasir.cli.context_client import Contexts
    from kvasir.cli.documents import plain_text
    from kvasir.cli.reading import name_after, sources_of

    wanted = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    asked = Asked(question=question, mode=mode, sections=sections, options=wanted)
    if context is not None:
        with connect(config) as connection:
            found = Contexts(connection.client).find(context)
            ask_context(connection, found, asked)
        return
    with sources_of(paths) as sources:
        # what can be refused is refused before a model is loaded
        texts = [plain_text(source.name, source.path) for source in sources]
        with connect(config) as connection:
            ask_files(connection, sources, texts, name_after(paths), asked)


def _check(paths: list[str], question: str, context: str | None) -> None:
    if not question.strip():
        raise typer.BadParameter("the QUESTION, which comes last, is empty")
    if context is not None and paths:
        raise typer.BadParameter("ask either FILEs or a --context, not both")
    if context is None and not paths:
        raise typer.BadParameter("name a FILE before the QUESTION, or a --context")
    if paths.count("-") > 1:
        raise typer.BadParameter("standard input (-) can be read only once")
