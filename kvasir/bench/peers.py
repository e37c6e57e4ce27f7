"""`kvasir bench peers`: its options and its output. Nothing heavy before they are read."""

from __future__ import annotations

import argparse
import datetime
import math
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from kvasir.bench import report
from kvasir.bench.options import CHOICES, FORMATS, Options
from kvasir.bench.workload import FULL, QUICK, find_text
from kvasir.core.config import load as load_config
from kvasir.core.errors import ConfigError
from kvasir.engine.machine import usable_cores

LLAMA_PYTHON = "KVASIR_BENCH_LLAMA_PYTHON"
VLLM_PYTHON = "KVASIR_BENCH_VLLM_PYTHON"
TEST_DATA = "KVASIR_TEST_DATA"


def main(argv: Sequence[str]) -> int:
    """Run the benchmark as ``argv`` (without the command's name) says.

    Prints the table to stdout, progress to stderr, and writes the JSON file. 0 if every engine that
    took part answered everything, 1 if one of them failed. Raises ``KvasirError`` for what keeps
    the benchmark from running at all.
    """
    options = parse(argv, os.environ)
    from kvasir.bench.run import run

    progress = Console(stderr=True, highlight=False)
    result = run(options, lambda text: progress.print(text, markup=False, soft_wrap=True))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(result.to_json(), encoding="utf-8")
    report.show(result, Console(width=None if sys.stdout.isatty() else 160))
    progress.print(f"every sample is in {options.out}", markup=False, soft_wrap=True)
    return 1 if any(arm.failures for arm in result.arms) else 0


def parse(argv: Sequence[str], env: Mapping[str, str]) -> Options:
    """The options of a run. Raises ``ConfigError`` for values that do not do."""
    given = _parser(env).parse_args(list(argv))
    engines = tuple(name.strip() for name in given.engines.split(",") if name.strip())
    unknown = sorted(set(engines) - set(CHOICES))
    if unknown or not engines:
        raise ConfigError(
            f"--engines {given.engines!r} does not do; choose among {', '.join(CHOICES)}"
        )
    repeats = given.repeats if given.repeats is not None else 1 if given.quick else 3
    for name, value in (
        ("repeats", repeats),
        ("threads", given.threads),
        ("timeout", given.timeout),
    ):
        if not 1 <= value < math.inf:
            raise ConfigError(f"--{name} is {value}; it must be a number of at least 1")
    if not 0 <= given.kv_gib < math.inf:
        raise ConfigError(f"--kv-gib is {given.kv_gib}; it must not be negative")
    formats = tuple(tuple(pair.strip().split("/")) for pair in given.formats.split(",") if pair)
    if set(formats) - set(FORMATS):
        names = ", ".join("/".join(pair) for pair in FORMATS)
        raise ConfigError(f"--formats {given.formats!r} does not do; choose among {names}")
    config = load_config({"model": given.model, "home": given.home})
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    return Options(
        engines=engines,
        repeats=repeats,
        sizes=QUICK if given.quick else FULL,
        model=config.model,
        home=config.home,
        out=given.out or config.home / "bench" / f"peers-{stamp}.json",
        text=given.text,
        seed=given.seed,
        dtype=given.dtype,
        threads=given.threads,
        kv_gib=given.kv_gib,
        llama_python=given.llama_python,
        vllm_python=given.vllm_python,
        formats=tuple(pair for pair in FORMATS if pair in formats),
        flash_attention={"off": (False,), "on": (True,), "both": (False, True)}[
            given.llama_flash_attention
        ],
        timeout_s=given.timeout,
        command=published_command(argv),
    )


def _parser(env: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kvasir bench peers",
        description="Compare the speed of Kvasir with that of other engines on the same weights.",
    )
    data = env.get(TEST_DATA)
    parser.add_argument("--model", help="as for kvasir serve; the demonstration model if none")
    parser.add_argument("--engines", default=",".join(CHOICES), help="default: %(default)s")
    parser.add_argument("--repeats", type=int, help="of everything; default 3, with --quick 1")
    parser.add_argument("--quick", action="store_true", help="tiny prompts: shows that it works")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="default: in the home folder")
    parser.add_argument(
        "--text",
        type=Path,
        default=find_text(Path(data)) if data else None,
        help=f"a long UTF-8 text; default: the first book of {TEST_DATA}, else a made one",
    )
    parser.add_argument("--seed", type=int, default=1, help="of a made text")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument(
        "--kv-gib",
        type=float,
        default=0.0,
        help="the KV pool of Kvasir and of vLLM; default: for this workload",
    )
    parser.add_argument("--home", type=Path, help="where the peers' weights are kept")
    parser.add_argument(
        "--formats",
        default="",
        metavar="WEIGHTS/KV,...",
        help="more columns of Kvasir, as int8/int8,int4/int8; default: none",
    )
    parser.add_argument(
        "--llama-python",
        default=env.get(LLAMA_PYTHON) or sys.executable,
        help=f"an interpreter that has llama_cpp; default: {LLAMA_PYTHON}, else this one",
    )
    parser.add_argument(
        "--vllm-python",
        default=env.get(VLLM_PYTHON) or sys.executable,
        help=f"an interpreter that has vllm; default: {VLLM_PYTHON}, else this one",
    )
    parser.add_argument(
        "--llama-flash-attention",
        choices=("off", "on", "both"),
        default="both",
        help="llama.cpp's switch; both are columns of their own; default: %(default)s",
    )
    parser.add_argument(
        "--timeout", type=float, default=1800.0, help="seconds for a single answer of a worker"
    )
    return parser


def published_command(argv: Sequence[str], name: str = "peers") -> str:
    """The command as it may be published: of a path, the last part only."""
    words = []
    for word in argv:
        option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        words.append(option + equals + (Path(value).name if os.sep in value else value))
    return shlex.join(["kvasir", "bench", name, *words])
