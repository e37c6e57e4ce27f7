"""`kvasir read FILE…`: read documents once and keep them, as a context that can be asked."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any, Literal

import typer

from kvasir.cli import options
from kvasir.core.config import load


def command(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE",
            help="PDF, DOCX, HTML, EPUB, Markdown, text, source code, CSV, a zip or a folder of "
            "them; - is standard input.",
        ),
    ],
    name: Annotated[
        str | None,
        typer.Option("--name", help="What to call it.", show_default="after the first file"),
    ] = None,
    instructions: Annotated[
        str | None,
        typer.Option("--instructions", help="A system message in front of it all."),
    ] = None,
    ttl: options.TtlOption = None,
    pin: Annotated[bool, typer.Option("--pin", help="Keep it until it is unpinned.")] = False,
    keep: Annotated[
        Literal["kv", "text"],
        typer.Option("--keep", help="text keeps no KV: questions compute what they need."),
    ] = "kv",
    section_tokens: Annotated[
        int | None,
        typer.Option(
            "--section-tokens",
            min=256,
            help="Size of sections, where it does not fit the window.",
            show_default="from the window",
        ),
    ] = None,
    no_summaries: Annotated[
        bool,
        typer.Option("--no-summaries", help="Have no summaries of sections made; reads sooner."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what it would take.")
    ] = False,
    model: options.ModelOption = None,
    home: options.HomeOption = None,
    config_file: options.ConfigFileOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Read FILEs once and keep them as one context.

    Ctrl-C stops; what was read is kept, and the same command goes on from there. `kvasir ask
    --context NAME` asks it.
    """
    options.check_ttl(ttl)
    if files.count("-") > 1:
        raise typer.BadParameter("standard input (-) can be read only once")
    config = load({"model": model, "home": home}, file=config_file)

    from kvasir.cli import show
    from kvasir.cli.connect import connect
    from kvasir.cli.context_client import Contexts
    from kvasir.cli.reading import create, follow, name_after, named, sources_of, uploaded
    from kvasir.cli.receipts import forecast_text, receipt_text

    wishes: dict[str, Any] = {
        "name": name,
        "instructions": instructions,
        "ttl": ttl,
        "pinned": pin or None,
        "keep": keep,
        "section_tokens": section_tokens,
        "summaries": not no_summaries,
    }
    wanted = {field: value for field, value in wishes.items() if value is not None}
    with sources_of(files) as sources, connect(config) as connection:
        contexts = Contexts(connection.client)
        with uploaded(contexts, sources) as ids:
            wanted["file_ids"] = ids
            began = int(time.time())
            with show.working("counting tokens"):
                if dry_run:
                    forecast = contexts.forecast(wanted)
                else:
                    made = create(contexts, wanted)
                    context = named(contexts, made, name_after(files))
        if dry_run:
            title = name or name_after(files)
            print(json.dumps(dict(forecast.raw)) if as_json else forecast_text(title, forecast))
            return
        if made.status != "completed" and (made.created_at < began or made.processed):
            show.note(f"{context.called} was begun before; its reading goes on")
        context = follow(contexts, context)
    existed = made.status == "completed"  # what is new is not read yet
    print(json.dumps(dict(context.raw)) if as_json else receipt_text(context, existed=existed))
