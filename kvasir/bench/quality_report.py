"""What `kvasir bench quality` found, for people: a table for each model."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from kvasir.bench.quality_needles import Found
from kvasir.bench.quality_run import ModelReport, QualityReport, SettingReport


def show(report: QualityReport, console: Console) -> None:
    """Print ``report``."""
    console.print(
        f"kernels {report.kernels}, {report.threads} threads of {report.machine.cpu}, text: "
        f"{report.text}. KL in nats, of float32 against the setting; top-1: how often both find "
        "the same token most likely.",
        highlight=False,
        markup=False,
    )
    for model in report.models:
        console.print(table(model))


def table(model: ModelReport) -> Table:
    """A line for float32 and one for each setting; columns for each stretch."""
    grid = Table(title=f"{model.name}, window of {model.window:,} tokens")
    grid.add_column("weights")
    grid.add_column("KV")
    for first, last in model.stretches.values():
        if model.real:
            grid.add_column(f"perplexity {first:,}-{last:,}", justify="right")
        grid.add_column("KL" if model.real else f"KL {first:,}-{last:,}", justify="right")
        grid.add_column("top-1", justify="right")
    if model.reference_needles is not None:
        grid.add_column(f"of {model.reference_needles.asked} needles", justify="right")
        grid.add_column("digits", justify="right")
    grid.add_row(*_reference(model))
    for setting in model.settings:
        grid.add_row(*_setting(model, setting))
    return grid


def _reference(model: ModelReport) -> list[str]:
    cells = ["float32", "float32"]
    for name in model.stretches:
        if model.real:
            cells.append(f"{model.settings[0].scores[name].reference_perplexity:.3f}")
        cells += ["", ""]
    return cells + _needles(model.reference_needles)


def _setting(model: ModelReport, setting: SettingReport) -> list[str]:
    cells = [setting.weights, setting.kv]
    for name in model.stretches:
        score = setting.scores[name]
        if model.real:
            cells.append(f"{score.perplexity:.3f} {score.change_percent:+.2f} %")
        cells += [f"{score.kl_nats:.5f}", f"{100 * score.top1_agreement:.1f} %"]
    return cells + _needles(setting.needles)


def _needles(found: Found | None) -> list[str]:
    if found is None:
        return []
    return [f"{100 * found.exact_share:.1f} %", f"{100 * found.digit_share:.1f} %"]
