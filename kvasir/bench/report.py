"""A report for people: medians, ratios, and what to know before believing them."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from kvasir.bench.machine_limits import limit_lines
from kvasir.bench.results import ArmReport, Figure, Report, Sample, advantage, median

OURS = "kvasir"
AGREEMENT_WITH = "transformers"
NOISY = 1.25  # largest over smallest sample; beyond it the spread is shown


def show(report: Report, console: Console) -> None:
    """Print ``report``."""
    machine = report.machine
    console.print(
        f"{report.model} in {report.dtype}, {report.threads} threads of {machine.cpu} "
        f"({machine.cores} cores), {report.repeats} repeats, text: {report.text}",
        highlight=False,
        markup=False,
    )
    console.print(table(report))
    console.print(
        "Medians. The number after x says how many times better Kvasir is than that engine: above "
        "1 is in Kvasir's favour, whichever way the figure improves.",
        highlight=False,
    )
    for line in remarks(report):
        console.print(line, highlight=False, markup=False)


def table(report: Report) -> Table:
    """One row per figure that was measured, one column per engine that took part."""
    arms = [arm.name for arm in report.arms if not arm.skipped]
    grid = Table()
    grid.add_column("")
    grid.add_column("unit")
    for arm in arms:
        grid.add_column(arm, justify="right", no_wrap=True)
    for figure in report.figures:
        cells = [_cell(report, figure, arm) for arm in arms]
        if any(cells):
            grid.add_row(figure.title, figure.unit, *cells)
    return grid


def _cell(report: Report, figure: Figure, arm: str) -> str:
    value = median(report.samples, arm, figure.key)
    if value is None:
        return ""
    text = number(value)
    ours = median(report.samples, OURS, figure.key)
    share = _share(report, figure, arm)
    if share is not None:
        text = f"{text}  {100 * share:.0f} %"
    if arm.split(maxsplit=1)[0] == OURS or ours is None:
        return text
    ratio = advantage(ours, value, figure.better)
    return text if ratio is None else f"{text}  x{ratio:.2f}"


def _share(report: Report, figure: Figure, arm: str) -> float | None:
    """Of the machine's limit: the least time of a token over that which it took."""
    demand = next(a.demands.get(figure.key) for a in report.arms if a.name == arm)
    rate = median(report.samples, arm, figure.key)
    if demand is None or report.limits is None or rate is None:
        return None
    return demand.least_s(report.limits, report.threads) * rate


def number(value: float) -> str:
    """Three significant digits, or all before the point."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def remarks(report: Report) -> list[str]:
    """What stands below the table: warnings first, then how each engine was run."""
    lines = [f"WARNING: {warning}" for warning in report.warnings]
    if report.limits is not None:
        lines += limit_lines(report.limits)
        lines.append(
            "% behind a figure of Kvasir: of the limit, products for prefill and memory for decode"
        )
    for arm in report.arms:
        lines += [f"{arm.name}: FAILED, {failure}" for failure in arm.failures]
        if arm.skipped:
            lines.append(f"{arm.name}: skipped, {arm.skipped}")
        else:
            lines += _about(arm)
    lines += [
        f"spread of {figure.title}, {arm.name}: {number(low)} to {number(high)}"
        for figure in report.figures
        for arm in report.arms
        for low, high in [_range(report.samples, arm.name, figure)]
        if low > 0 and high / low > NOISY
    ]
    lines += _agreement(report)
    return lines


def _about(arm: ArmReport) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in arm.versions.items())
    return [f"{arm.name}: {line}" for line in (versions, *arm.notes) if line]


def _range(samples: tuple[Sample, ...], arm: str, figure: Figure) -> tuple[float, float]:
    values = [s.value for s in samples if s.arm == arm and s.figure == figure.key]
    return (min(values), max(values)) if values else (0.0, 0.0)


def _agreement(report: Report) -> list[str]:
    """How far the greedy texts agree: a check that all engines run the same model."""
    texts = {
        (sample.figure, sample.arm): sample.facts["tokens"]
        for sample in report.samples
        if "tokens" in sample.facts
    }
    lines = []
    for (figure, arm), tokens in texts.items():
        other = texts.get((figure, AGREEMENT_WITH))
        if other is None or arm == AGREEMENT_WITH:
            continue
        same = next(
            (i for i, (a, b) in enumerate(zip(tokens, other, strict=False)) if a != b), None
        )
        count = min(len(tokens), len(other)) if same is None else same
        lines.append(
            f"{figure}: the first {count} of {len(tokens)} tokens of {arm} are those of "
            f"{AGREEMENT_WITH}"
        )
    return lines
