"""`kvasir bench restore`: its options and its output. Nothing heavy before they are read."""

from __future__ import annotations

import argparse
import datetime
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from kvasir.bench.peers import LLAMA_PYTHON, TEST_DATA, published_command
from kvasir.bench.restore_sizes import FULL, QUICK
from kvasir.bench.workload import find_text
from kvasir.core.config import load as load_config
from kvasir.core.errors import ConfigError
from kvasir.engine.machine import usable_cores

if TYPE_CHECKING:
    from kvasir.bench.restore_run import RestoreOptions

PARTS = ("restore", "conversations")


def main(argv: Sequence[str]) -> int:
    """Run the measurement as ``argv`` (without the command's name) says.

    Prints Markdown to stdout, progress to stderr, and writes the JSON file. 0 if nothing failed to
    answer, whether or not everything was reached that is to be; else 1. Raises ``KvasirError`` for
    what keeps the measurement from running at all.
    """
    options = parse(argv, os.environ)
    from kvasir.bench.restore_report import markdown
    from kvasir.bench.restore_run import run

    progress = Console(stderr=True, highlight=False)
    result = run(
        options, os.environ, lambda text: progress.print(text, markup=False, soft_wrap=True)
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(result.to_json(), encoding="utf-8")
    sys.stdout.write(markdown(result))
    progress.print(f"every sample is in {options.out}", markup=False, soft_wrap=True)
    return 1 if any(arm.failures for arm in result.arms) else 0


def parse(argv: Sequence[str], env: Mapping[str, str]) -> RestoreOptions:
    """The options of a run. Raises ``ConfigError`` for values that do not do."""
    from kvasir.bench.restore_run import RestoreOptions

    if not hasattr(os, "posix_fadvise"):
        raise ConfigError(
            "this system cannot be told to drop a file from memory (posix_fadvise)\n"
            "without that a cold read cannot be told from a warm one\nmeasure on Linux"
        )
    given = _parser(env).parse_args(list(argv))
    repeats = given.repeats if given.repeats is not None else 1 if given.quick else 3
    for name, value in (
        ("repeats", repeats),
        ("threads", given.threads),
        ("timeout", given.timeout),
    ):
        if not 1 <= value < math.inf:
            raise ConfigError(f"--{name} is {value}; it must be a number of at least 1")
    config = load_config({"model": given.model, "home": given.home})
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    return RestoreOptions(
        llama=not given.no_llama,
        parts=_parts(given.parts),
        repeats=repeats,
        sizes=QUICK if given.quick else FULL,
        model=config.model,
        home=config.home,
        out=given.out or config.home / "bench" / f"restore-{stamp}.json",
        text=given.text,
        traces=given.traces,
        seed=given.seed,
        dtype=given.dtype,
        threads=given.threads,
        llama_python=given.llama_python,
        flash_attention=given.llama_flash_attention == "on",
        timeout_s=given.timeout,
        command=published_command(argv, "restore"),
    )


def _parts(given: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in given.split(",") if name.strip())
    if not names or set(names) - set(PARTS):
        raise ConfigError(f"--parts {given!r} does not do; choose among {', '.join(PARTS)}")
    return names


def _parser(env: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kvasir bench restore",
        description="Measure what KV that was kept on disk is worth, after an eviction and a "
        "restart, beside llama.cpp's saved states and the disk's own speed.",
    )
    data = Path(env[TEST_DATA]) if env.get(TEST_DATA) else None
    parser.add_argument("--model", help="as for kvasir serve; the demonstration model if none")
    parser.add_argument("--no-llama", action="store_true", help="without llama.cpp beside it")
    parser.add_argument("--parts", default=",".join(PARTS), help="default: %(default)s")
    parser.add_argument("--repeats", type=int, help="of all but the conversations; default 3")
    parser.add_argument("--quick", action="store_true", help="short texts: shows that it works")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="default: in the home folder")
    parser.add_argument(
        "--text",
        type=Path,
        default=find_text(data) if data else None,
        help=f"a long UTF-8 text; default: the first book of {TEST_DATA}, else a made one",
    )
    parser.add_argument(
        "--traces",
        type=Path,
        metavar="FOLDER",
        default=data / "traces" if data else None,
        help=f"where recorded coding sessions lie; default: that of {TEST_DATA}, else none is held",
    )
    parser.add_argument("--seed", type=int, default=1, help="of a made text")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument(
        "--home",
        type=Path,
        help="where the model is, and on whose disk homes for the runs are made",
    )
    parser.add_argument(
        "--llama-python",
        default=env.get(LLAMA_PYTHON) or sys.executable,
        help=f"an interpreter that has llama_cpp; default: {LLAMA_PYTHON}, else this one",
    )
    parser.add_argument(
        "--llama-flash-attention",
        choices=("off", "on"),
        default="off",
        help="llama.cpp's switch; default: %(default)s",
    )
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds for a single answer")
    return parser
