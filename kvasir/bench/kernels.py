"""`kvasir bench kernels`: its options and its output. Nothing heavy before they are read."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from kvasir.bench.peers import published_command
from kvasir.core.errors import ConfigError
from kvasir.engine.machine import usable_cores

SHAPE_NAMES = ("SmolLM2-135M", "Qwen2.5-0.5B", "Llama-3.1-8B")


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelSizes:
    """How much is computed and read at a time."""

    prefill_rows: int
    prefill_contexts: tuple[int, ...]
    decode_rows: tuple[int, ...]
    decode_contexts: tuple[int, ...]
    weight_bytes: int  # layers are repeated until they take so much
    kv_bytes: int  # layers that read more are left out
    prefill_operations: float  # layers that compute more are left out
    read_buffer_bytes: int


FULL = KernelSizes(
    prefill_rows=512,
    prefill_contexts=(0, 8000),
    decode_rows=(1, 16),
    decode_contexts=(128, 8000),
    weight_bytes=600_000_000,
    kv_bytes=2 * 2**30,
    prefill_operations=100e9,
    read_buffer_bytes=2**30,
)
QUICK = KernelSizes(
    prefill_rows=64,
    prefill_contexts=(0, 512),
    decode_rows=(1, 16),
    decode_contexts=(128, 512),
    weight_bytes=40_000_000,
    kv_bytes=64 * 2**20,
    prefill_operations=4e9,
    read_buffer_bytes=128 * 2**20,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelOptions:
    """What is measured."""

    shapes: tuple[str, ...]
    sizes: KernelSizes
    threads: int
    repeats: int
    out: Path | None
    command: str


def main(argv: Sequence[str]) -> int:
    """Run the measurement as ``argv`` (without the command's name) says: tables to stdout, progress
    to stderr. Raises ``KvasirError`` for what keeps it from running."""
    options = parse(argv)
    from kvasir.bench.kernels_report import show
    from kvasir.bench.kernels_run import run

    progress = Console(stderr=True, highlight=False)
    result = run(options, lambda text: progress.print(text, markup=False, soft_wrap=True))
    show(result, Console(width=None if sys.stdout.isatty() else 160))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(result.to_json(), encoding="utf-8")
        progress.print(f"every sample is in {options.out}", markup=False, soft_wrap=True)
    return 0


def parse(argv: Sequence[str]) -> KernelOptions:
    """The options of a run. Raises ``ConfigError`` for values that do not do."""
    given = _parser().parse_args(list(argv))
    for name, value in (("threads", given.threads), ("repeats", given.repeats)):
        if value < 1:
            raise ConfigError(f"--{name} is {value}; it must be at least 1")
    shapes = tuple(name.strip() for name in given.shapes.split(",") if name.strip())
    if not shapes or set(shapes) - set(SHAPE_NAMES):
        raise ConfigError(
            f"--shapes {given.shapes!r} does not do; choose among {', '.join(SHAPE_NAMES)}"
        )
    return KernelOptions(
        shapes=shapes,
        sizes=QUICK if given.quick else FULL,
        threads=given.threads,
        repeats=given.repeats,
        out=given.json,
        command=published_command(argv, "kernels"),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kvasir bench kernels",
        description="Measure the limits of the machine, and the native kernels as a share of them.",
    )
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--json", type=Path, metavar="FILE.json", help="write all samples there")
    parser.add_argument("--shapes", default=",".join(SHAPE_NAMES), help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=5, help="of everything; default: 5")
    parser.add_argument("--quick", action="store_true", help="small: shows that it works")
    return parser
