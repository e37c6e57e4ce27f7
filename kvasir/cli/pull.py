"""`kvasir pull [MODEL]`: obtain a model once, so that later commands work offline."""

from __future__ import annotations

from typing import Annotated

import typer

from kvasir.cli import options
from kvasir.core.config import load


def command(
    model: options.ModelArgument = None,
    home: options.HomeOption = None,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Ask the hub again for what is there.")
    ] = False,
    config_file: options.ConfigFileOption = None,
) -> None:
    """Obtain MODEL into the home folder and print where it lies."""
    config = load({"model": model, "home": home}, file=config_file)

    from kvasir.cli import show
    from kvasir.cli.home import open_home
    from kvasir.model.source import resolve

    cache = open_home(config.home).cache
    print(resolve(config.model, cache, show.note, refresh=refresh))
