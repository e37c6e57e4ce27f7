"""`kvasir bench NAME …`: hand over to the measurement ``kvasir.bench.<name>``."""

from __future__ import annotations

import importlib
from typing import Annotated

import typer

TYPER_SETTINGS = {
    "context_settings": {
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "allow_interspersed_args": False,  # what follows NAME is the measurement's
    }
}
MEASUREMENTS = (
    "peers",
    "restore",
    "planning",
    "layout",
    "storage",
    "quality",
    "kernels",
    "documents",
)


def command(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="What to measure.")] = "peers",
) -> None:
    """Measure speed: `peers` compares with other engines on the same weights, `restore` shows what
    a question costs on a text that is kept, `planning` what a step costs to plan over short and
    long texts, `layout` how KV is best arranged in memory, `storage` how on a disk, `kernels` how
    near the native kernels come to the machine's limits; and quality: `quality` compares each
    format of weights and KV with float32, `documents` shows whether passages are found and what a
    long book costs.

    What follows NAME goes to the measurement; `kvasir bench NAME --help` lists it.
    """
    if name not in MEASUREMENTS:
        raise typer.BadParameter(f"choose one of {', '.join(MEASUREMENTS)}, not {name!r}")
    module = importlib.import_module(f"kvasir.bench.{name}")
    raise typer.Exit(module.main(context.args) or 0)
