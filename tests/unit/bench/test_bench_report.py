"""Reports: medians, ratios, the JSON file, the table, and what stands below it."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from kvasir.bench import machine
from kvasir.bench.machine_limits import Demand, LimitSamples
from kvasir.bench.report import number, remarks, show
from kvasir.bench.results import (
    ArmReport,
    Better,
    Figure,
    Machine,
    Report,
    Sample,
    advantage,
    median,
)
from kvasir.bench.workload import QUICK
from kvasir.engine.machine import RELEVANT_FLAGS

MACHINE = Machine(
    cpu="A CPU",
    cores=2,
    flags=("avx2",),
    memory_bytes=2**34,
    kernel="Linux 6",
    python="3.11",
    load_average=(0.1, 0.2, 0.3),
    busy_percent=1.0,
)


def samples(arm: str, figure: str, *values: float) -> list[Sample]:
    return [
        Sample(arm=arm, repeat=i, figure=figure, value=v, facts={"tokens": [1, 2, 3]})
        for i, v in enumerate(values)
    ]


REPORT = Report(
    date="2026-01-01T00:00:00+00:00",
    command="kvasir bench peers",
    commit="c0ffee",
    commit_dirty=False,
    model="small",
    dtype="bfloat16",
    threads=2,
    repeats=3,
    text="made",
    sizes=QUICK,
    machine=MACHINE,
    figures=(
        Figure("speed", "speed of it", "tok/s", Better.HIGHER),
        Figure("wait", "wait for it", "s", Better.LOWER),
        Figure("unseen", "never measured", "s", Better.LOWER),
    ),
    arms=(
        ArmReport(name="kvasir", settings={}, versions={"kvasir": "1"}, notes=("in process",)),
        ArmReport(name="transformers", settings={}, versions={"transformers": "5"}),
        ArmReport(name="llama.cpp", settings={}, skipped="not installed"),
    ),
    samples=(
        *samples("kvasir", "speed", 3000, 1000, 2500),
        *samples("transformers", "speed", 500),
        *samples("kvasir", "wait", 0.5),
        *samples("transformers", "wait", 0.25),
    ),
)


def text_of(report: Report) -> str:
    out = io.StringIO()
    show(report, Console(file=out, width=200))
    return out.getvalue()


def test_medians_are_per_arm_and_figure() -> None:
    assert median(REPORT.samples, "kvasir", "speed") == 2500
    assert median(REPORT.samples, "transformers", "wait") == 0.25
    assert median(REPORT.samples, "llama.cpp", "wait") is None


def test_an_advantage_is_above_one_when_ours_is_better() -> None:
    assert advantage(200, 100, Better.HIGHER) == 2
    assert advantage(100, 200, Better.LOWER) == 2
    assert advantage(100, 200, Better.HIGHER) == 0.5
    assert advantage(1, 0, Better.HIGHER) is None


def test_the_table_has_medians_and_oriented_ratios() -> None:
    lines = text_of(REPORT).splitlines()
    speed = next(line for line in lines if "speed of it" in line)
    assert "2,500" in speed
    assert "500  x5.00" in speed
    wait = next(line for line in lines if "wait for it" in line)
    assert "0.25  x0.50" in wait
    assert not any("never measured" in line for line in lines)


def test_a_figure_is_shown_as_a_share_of_the_limit_measured_beside_it() -> None:
    found = LimitSamples(
        read_bytes_per_s={2: (1e9, 2e9, 4e9)},
        peak_operations_per_s={"bf16": (1e9,), "int8": (3e9,)},
    )
    reads = Demand(weights="bf16", kv="bf16", read_bytes=1e7)
    ours = median(REPORT.samples, "kvasir", "speed")
    assert ours is not None
    kvasir, *others = REPORT.arms
    report = replace(
        REPORT, arms=(replace(kvasir, demands={"speed": reads}), *others), limits=found
    )
    assert f"{number(ours)}  {100 * ours / 200:.0f} %" in text_of(report)
    assert "memory is read at 2.0 GB/s by 2 thread(s)" in remarks(report)
    multiplies = Demand(weights="int8", kv="bf16", linear_operations=3e9, attention_operations=1e9)
    assert multiplies.least_s(found, 2) == 3  # two products of bytes each
    assert "%" not in text_of(REPORT)


def test_remarks_name_warnings_failures_skips_and_spread() -> None:
    arms = (*REPORT.arms[:1], replace(REPORT.arms[1], failures=("it [died]",)), REPORT.arms[2])
    report = replace(REPORT, arms=arms, warnings=("busy",))
    lines = remarks(report)
    assert lines[0] == "WARNING: busy"
    assert "transformers: FAILED, it [died]" in lines
    assert "llama.cpp: skipped, not installed" in lines
    assert "kvasir: in process" in lines
    assert "spread of speed of it, kvasir: 1,000 to 3,000" in lines
    assert not any("spread of wait" in line for line in lines)
    assert "it [died]" in text_of(report)  # brackets are no markup


def test_remarks_say_how_far_texts_agree() -> None:
    other = [replace(s, facts={"tokens": [1, 2, 9]}) for s in REPORT.samples if s.arm == "kvasir"]
    report = replace(REPORT, samples=(*other, *samples("transformers", "speed", 500)))
    assert "speed: the first 2 of 3 tokens of kvasir are those of transformers" in remarks(report)
    assert any("the first 3 of 3 tokens" in line for line in remarks(REPORT))


def test_the_json_file_holds_every_sample_and_what_it_was_measured_on() -> None:
    data = json.loads(REPORT.to_json())
    assert data["schema"] == "kvasir-bench/1"
    assert [s["value"] for s in data["samples"]] == [3000, 1000, 2500, 500, 0.5, 0.25]
    assert data["samples"][0]["facts"] == {"tokens": [1, 2, 3]}
    assert data["figures"][1]["better"] == "lower"
    assert data["machine"]["load_average"] == [0.1, 0.2, 0.3]
    assert data["sizes"]["read"] == [128]


@pytest.mark.parametrize(
    ("value", "text"), [(12345.6, "12,346"), (99.96, "100.0"), (12.34, "12.3"), (0.01234, "0.0123")]
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text


# --- the machine ----------------------------------------------------------------------------------


def test_this_machine_is_described() -> None:
    here = machine.describe()
    assert here.cores >= 1
    assert here.memory_bytes > 2**28
    assert here.cpu
    assert set(here.flags) <= set(RELEVANT_FLAGS)


def test_a_busy_machine_is_warned_about() -> None:
    assert machine.busy_warning(MACHINE) is None
    loaded = machine.busy_warning(replace(MACHINE, load_average=(1.5, 0, 0)))
    assert loaded is not None
    assert "load average 1.50 on 2 cores" in loaded
    assert machine.busy_warning(replace(MACHINE, busy_percent=40.0)) is not None
