"""What `kvasir bench kernels` found, for people: the limits, and a table for each shape."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from kvasir.bench.kernels_run import Case, KernelReport, Work, share_of_limit
from kvasir.bench.machine_limits import limit_lines
from kvasir.bench.options import FORMATS


def show(report: KernelReport, console: Console) -> None:
    """Print ``report``."""
    console.print(
        f"kernels {report.kernels}, {report.threads} threads of {report.machine.cpu}",
        highlight=False,
        markup=False,
    )
    for line in limit_lines(report.limits):
        console.print(line, highlight=False, markup=False)
    for shape in dict.fromkeys(case.shape for case in report.cases):
        console.print(table(report, shape))
    console.print(
        "Medians. Behind each, prefill as a share of the peak and decode as one of memory's speed: "
        "the least time that the products, or the bytes of weights and KV, could take over the "
        "time taken.",
        highlight=False,
    )
    for text in report.warnings:
        console.print(f"WARNING: {text}", highlight=False, markup=False)


def table(report: KernelReport, shape: str) -> Table:
    """A line for each kind of step, a column for each setting."""
    grid = Table(title=f"{shape}: prefill in GFLOP/s, decode in GB/s")
    grid.add_column("weights\nKV")
    for weights, kv in FORMATS:
        grid.add_column(f"{weights}\n{kv}", justify="right")
    cases = [case for case in report.cases if case.shape == shape]
    for title in dict.fromkeys(title_of(case.work) for case in cases):
        grid.add_row(title, *(_cell(report, cases, title, *setting) for setting in FORMATS))
    return grid


def title_of(work: Work) -> str:
    """What a step does, in words."""
    if work.decodes:
        return f"decode {work.sequences} at {work.context:,}"
    return f"prefill {work.rows} at {work.context:,}"


def _cell(report: KernelReport, cases: Sequence[Case], title: str, weights: str, kv: str) -> str:
    for case in cases:
        if (title_of(case.work), case.weights, case.kv) == (title, weights, kv):
            share = share_of_limit(report.limits, case, report.threads)
            return f"{case.rate / 1e9:.1f}  {100 * share:.0f} %"
    return ""
