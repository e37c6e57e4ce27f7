"""`kvasir bench quality`: its options and its output. Nothing heavy before they are read."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from kvasir.bench.peers import TEST_DATA, published_command
from kvasir.bench.workload import find_text
from kvasir.core.config import load as load_config
from kvasir.core.errors import ConfigError
from kvasir.engine.machine import usable_cores

LEAST_WINDOW = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityOptions:
    """What is measured, and on what."""

    model: str
    home: Path
    text: Path
    window: int  # tokens; 0: the model's
    needles: int
    threads: int
    seed: int
    out: Path | None
    command: str


def main(argv: Sequence[str]) -> int:
    """Run the measurement as ``argv`` (without the command's name) says: tables to stdout, progress
    to stderr. Raises ``KvasirError`` for what keeps it from running."""
    options = parse(argv, os.environ)
    from kvasir.bench.quality_report import show
    from kvasir.bench.quality_run import run

    progress = Console(stderr=True, highlight=False)
    result = run(options, lambda text: progress.print(text, markup=False, soft_wrap=True))
    show(result, Console(width=None if sys.stdout.isatty() else 160))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(result.to_json(), encoding="utf-8")
        progress.print(f"every figure is in {options.out}", markup=False, soft_wrap=True)
    return 0


def parse(argv: Sequence[str], env: Mapping[str, str]) -> QualityOptions:
    """The options of a run. Raises ``ConfigError`` for values that do not do."""
    given = _parser().parse_args(list(argv))
    for name, value, least in (
        ("threads", given.threads, 1),
        ("needles", given.needles, 0),
        ("window", given.window or LEAST_WINDOW, LEAST_WINDOW),
    ):
        if value < least:
            raise ConfigError(f"--{name} is {value}; it must be at least {least}")
    data = env.get(TEST_DATA)
    text = given.text or (find_text(Path(data)) if data else None)
    if text is None:
        raise ConfigError(
            "there is no text to measure on\nquality on made sentences says little of real ones\n"
            f"give a book in UTF-8 with --text FILE, or a folder with books/*.txt in {TEST_DATA}"
        )
    config = load_config({"model": given.model, "home": given.home})
    return QualityOptions(
        model=config.model,
        home=config.home,
        text=text,
        window=given.window,
        needles=given.needles,
        threads=given.threads,
        seed=given.seed,
        out=given.json,
        command=published_command(argv, "quality"),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kvasir bench quality",
        description="Compare what native kernels predict, for each format of weights and of KV, "
        "with a computation in float32.",
    )
    parser.add_argument("--model", help="as for kvasir serve; the demonstration model if none")
    parser.add_argument(
        "--text", type=Path, help=f"a book in UTF-8; default: the first one of {TEST_DATA}"
    )
    parser.add_argument("--json", type=Path, metavar="FILE.json", help="write all figures there")
    parser.add_argument(
        "--window", type=int, default=0, help="tokens of the text; default: the model's window"
    )
    parser.add_argument("--needles", type=int, default=40, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--seed", type=int, default=1, help="of needles and made weights")
    parser.add_argument("--home", type=Path, help="where the model is")
    return parser
