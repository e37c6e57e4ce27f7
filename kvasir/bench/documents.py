"""`kvasir bench documents`: its options and its output.

Is the right passage found, are altered quotes told apart, and what does a book that is longer than
the window cost to read and to sweep?
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

import kvasir
from kvasir.bench import focus, machine
from kvasir.bench.book import BookOptions, BookReport, measure
from kvasir.bench.peers import TEST_DATA, published_command
from kvasir.bench.planted import MOST
from kvasir.bench.process import PACKAGE
from kvasir.core.config import Config
from kvasir.core.config import load as load_config
from kvasir.core.errors import ConfigError
from kvasir.engine.survey import survey
from kvasir.model.source import resolve

_GIB = 2**30
PARTS = ("focus", "book")


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentsOptions:
    """What is measured, and on what."""

    data: Path
    text: Path
    parts: tuple[str, ...]
    n_facts: int
    n_sweeps: int
    seed: int
    kv_dtype: str
    disk_gib: float
    summaries: bool
    model: str
    home: Path  # where the model is
    work: Path | None  # where the book's home is made
    out: Path | None
    command: str


def main(argv: Sequence[str]) -> int:
    """Run the measurement as ``argv`` (without the command's name) says: tables to stdout, progress
    to stderr. Raises ``KvasirError`` for what keeps it from running."""
    options = parse(argv, os.environ)
    progress = Console(stderr=True, highlight=False)

    def say(text: str) -> None:
        progress.print(text, markup=False, soft_wrap=True)

    here = machine.describe()
    if warning := machine.busy_warning(here):
        say(warning)
    commit, changed = machine.commit_of(PACKAGE)
    result: dict[str, Any] = {
        "command": options.command,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "kvasir": kvasir.__version__,
        "commit": commit + (" with changes" if changed else ""),
        "machine": asdict(here),
    }
    print(f"{options.command}\n{here.cpu}, {here.cores} cores; commit {result['commit'][:12]}\n")
    if "focus" in options.parts:
        report = focus.run(options.data)
        print("\n".join(report.lines()), "\n", sep="")
        result["focus"] = report.lines()
    if "book" in options.parts:
        book, weights = _book(options, say)
        print("\n".join(_lines(book, weights, result["date"])))
        result["book"] = {"weights": weights, **book.to_json()}
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        say(f"every figure is in {options.out}")
    return 0


def parse(argv: Sequence[str], env: Mapping[str, str]) -> DocumentsOptions:
    """The options of a run. Raises ``ConfigError`` for values that do not do."""
    given = _parser().parse_args(list(argv))
    if not 1 <= given.facts <= MOST or not 0 <= given.sweeps <= given.facts:
        raise ConfigError(
            f"--facts is {given.facts} and --sweeps {given.sweeps}; there may be 1 to {MOST} facts "
            "and as many sweeps as facts"
        )
    data = env.get(TEST_DATA)
    folder = given.data or (Path(data) if data else None)
    if folder is None:
        raise ConfigError(
            "there is nothing to measure on\nit needs a folder with documents/debian-policy.pdf "
            f"and books/war-and-peace.txt\nname it with --data FOLDER or in {TEST_DATA}"
        )
    config = load_config({"model": given.model, "home": given.home})
    return DocumentsOptions(
        data=folder,
        text=given.text or folder / "books" / "war-and-peace.txt",
        parts=tuple(given.parts.split(",")),
        n_facts=given.facts,
        n_sweeps=given.sweeps,
        seed=given.seed,
        kv_dtype=given.kv_dtype,
        disk_gib=given.disk_gib,
        summaries=given.summaries,
        model=config.model,
        home=config.home,
        work=given.work,
        out=given.json,
        command=published_command(argv, "documents"),
    )


def _book(options: DocumentsOptions, say: Any) -> tuple[BookReport, str]:
    """The book's figures, and the weights that answered, as the realm names them."""
    config = Config(model=options.model, home=options.home, kv_dtype=options.kv_dtype)
    path = resolve(options.model, options.home / "models", say)
    weights = survey(config, path, options.home / "models").card.realm.weights
    home = Path(tempfile.mkdtemp(prefix="kvasir-book-", dir=options.work))
    try:
        settings = {
            "model": str(path),
            "kv_dtype": options.kv_dtype,
            "disk_gib": f"{options.disk_gib:g}",
        }
        book = BookOptions(
            text=options.text,
            n_facts=options.n_facts,
            n_sweeps=options.n_sweeps,
            seed=options.seed,
            python=sys.executable,
            home=home,
            settings=settings,
            env=dict(os.environ),
            timeout_s=120.0,
            summaries=options.summaries,
        )
        return measure(book, say), weights
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _lines(book: BookReport, weights: str, date: str) -> list[str]:
    """The book's figures for people."""
    n = len(book.facts)
    lines = [
        f"{book.name}: {book.chars:,} characters, {book.tokens:,} tokens in {book.sections} "
        f"sections, {book.kv_bytes / _GIB:.2f} GiB of KV",
        f"  upload and extraction {book.upload_s:.1f} s, planning {book.plan_s:.1f} s",
        f"  read in {book.read_s:.0f} s, {book.tokens / book.read_s:,.0f} tokens/s"
        + (f"; summaries {book.summaries_s:.0f} s" if book.summaries_s else ""),
    ]
    lines += [
        f"  a sweep in {sweep.seconds:.1f} s ({sweep.ask_s:.1f} asking, {sweep.join_s:.1f} "
        f"joining; predicted {sweep.predicted_s:.1f}; loading alone {sweep.load_s:.1f}): "
        f"{sweep.disk_tokens:,} tokens from disk, {sweep.memory_tokens:,} from memory, "
        f"{sweep.computed_tokens:,} computed, {sweep.completion_tokens:,} answered; "
        f"{sweep.found} found, {sweep.unverified} unverified, {sweep.empty} empty, "
        f"{sweep.failed} failed"
        for sweep in book.sweeps
    ]
    lines += [
        f"  planted facts missed by {mode}: {book.missed(mode)} of {n}"
        for mode in ("sweep", "focus")
    ]
    first = sum(fact.rank <= 4 for fact in book.facts)
    lines.append(f"  the fact's section is among focus's first four: {first} of {n}")
    lines.append(f"  alone and in the whole sweep the same: {book.agree} of {len(book.sweeps)}")
    rates = {
        mode: {"n_facts": n, "n_missed": book.missed(mode), "measured_on": date}
        for mode in ("sweep", "focus")
    }
    lines.append(f"  for contexts/miss_rates.json: {json.dumps({weights: rates})}")
    return lines


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kvasir bench documents",
        description="Rank labelled questions, check altered quotes, and read, sweep and focus a "
        "book with planted facts through the real server.",
    )
    parser.add_argument("--data", type=Path, help=f"default: the folder in {TEST_DATA}")
    parser.add_argument("--text", type=Path, help="a book; default: that of the data folder")
    parser.add_argument("--parts", default=",".join(PARTS), help="default: %(default)s")
    parser.add_argument("--facts", type=int, default=50, help="default: %(default)s")
    parser.add_argument("--sweeps", type=int, default=3, help="of all sections; default: 3")
    parser.add_argument("--seed", type=int, default=5, help="of facts and places")
    parser.add_argument("--kv-dtype", default="int8", help="default: %(default)s, half of bf16's")
    parser.add_argument("--disk-gib", type=float, default=14.0, help="default: %(default)s")
    parser.add_argument("--summaries", action="store_true", help="have sections summarised too")
    parser.add_argument("--model", help="as for kvasir serve; the demonstration model if none")
    parser.add_argument("--home", type=Path, help="where the model is")
    parser.add_argument("--work", type=Path, help="a folder with room for the book's KV")
    parser.add_argument("--json", type=Path, metavar="FILE.json", help="write all figures there")
    return parser
