"""What a benchmark run found: every raw sample, and what it was measured on. Frozen values.

Invariant: a report holds samples only, never summaries; medians and ratios are computed from the
samples when they are shown, so a recorded JSON file can always be summarised anew.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from kvasir.bench.machine_limits import Demand, LimitSamples
from kvasir.bench.restore_sizes import RestoreSizes
from kvasir.bench.workload import Sizes

SCHEMA = "kvasir-bench/1"


class Better(StrEnum):
    """Which way a figure improves."""

    HIGHER = "higher"
    LOWER = "lower"


@dataclass(frozen=True, slots=True)
class Figure:
    """One row of the table: what was measured, in which unit, and which way is better."""

    key: str  # "prefill@2048"
    title: str
    unit: str  # "tok/s", "s", "MiB", "x"
    better: Better


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One measurement. ``facts`` are what it was computed from: seconds, token counts and ids."""

    arm: str
    repeat: int
    figure: str
    value: float
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmReport:
    """One column: an engine with its weights and settings, and how it was run."""

    name: str
    settings: Mapping[str, Any]
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()
    skipped: str = ""  # why the engine did not take part
    demands: Mapping[str, Demand] = field(default_factory=dict)  # by figure, where known


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What the run stood on."""

    cpu: str
    cores: int  # that this process may use
    flags: tuple[str, ...]  # the instruction sets that matter to the engines
    memory_bytes: int
    kernel: str
    python: str
    load_average: tuple[float, float, float]  # over 1, 5 and 15 min, before the run
    busy_percent: float  # of all cores, over one second before the run


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A whole run."""

    schema: str = SCHEMA
    date: str  # ISO 8601, UTC
    command: str
    commit: str  # of the Kvasir that ran; "" where it is not a git checkout
    commit_dirty: bool
    model: str
    dtype: str
    threads: int
    repeats: int
    text: str  # where the prompts' text came from
    sizes: Sizes | RestoreSizes
    machine: Machine
    figures: tuple[Figure, ...]
    arms: tuple[ArmReport, ...]
    samples: tuple[Sample, ...]
    warnings: tuple[str, ...] = ()
    limits: LimitSamples | None = None  # of the machine, in the same run

    def to_json(self) -> str:
        """The report as indented JSON."""
        return json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False) + "\n"


def median(samples: Iterable[Sample], arm: str, figure: str) -> float | None:
    """The median of an arm's samples of ``figure``; None where there is none."""
    values = [s.value for s in samples if s.arm == arm and s.figure == figure]
    return statistics.median(values) if values else None


def advantage(ours: float, theirs: float, better: Better) -> float | None:
    """How many times better ``ours`` is than ``theirs``: above 1 is in our favour either way.

    None where the worse of the two is zero, so that no ratio exists.
    """
    over, under = (ours, theirs) if better is Better.HIGHER else (theirs, ours)
    return over / under if under > 0 else None
