"""Limits are measured, work is counted right, and shares are of the least time possible."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kvasir.bench import kernels, kernels_run
from kvasir.bench.kernels_run import Case, share_of_limit, time_work, work_of, works
from kvasir.bench.machine_limits import LimitSamples
from kvasir.bench.made_model import SHAPES, random_tensors
from kvasir.bench.made_program import filled_pool, made_parts, open_program
from kvasir.core.errors import ConfigError
from kvasir.kernels.native import library, limits
from kvasir.kernels.native.program import Planes
from kvasir.kernels.paging import BlockTable, Span
from kvasir.model.native_forward import layer_bytes

needs_native = pytest.mark.skipif(library.best() is None, reason="no native kernels here")

SMALL = replace(
    SHAPES["SmolLM2-135M"],
    hidden=64,
    n_heads=4,
    n_kv_heads=2,
    head_dim=32,
    intermediate=96,
    vocab_size=64,
)
TINY = kernels.KernelSizes(
    prefill_rows=8,
    prefill_contexts=(0, 70),
    decode_rows=(1, 3),
    decode_contexts=(5, 70),
    weight_bytes=200_000,
    kv_bytes=300_000,
    prefill_operations=2e6,
    read_buffer_bytes=2**22,
)


# --- options --------------------------------------------------------------------------------------


def test_defaults_are_every_shape_in_full() -> None:
    options = kernels.parse([])
    assert options.shapes == kernels.SHAPE_NAMES == tuple(SHAPES)
    assert (options.sizes, options.repeats, options.out) == (kernels.FULL, 5, None)
    assert kernels.parse(["--quick"]).sizes is kernels.QUICK


@pytest.mark.parametrize(
    "argv", [("--threads", "0"), ("--repeats", "0"), ("--shapes", "GPT-9"), ("--shapes", ",")]
)
def test_values_that_do_not_do_are_refused_by_name(argv: tuple[str, str]) -> None:
    with pytest.raises(ConfigError, match=argv[0]):
        kernels.parse(argv)


def test_without_native_kernels_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "best", lambda: None)
    with pytest.raises(ConfigError, match="no native kernels here"):
        kernels_run.run(kernels.parse([]), lambda _: None)


# --- made models ----------------------------------------------------------------------------------


def test_made_tensors_depend_on_name_and_seed_and_keep_what_passes_in_size() -> None:
    take, again = random_tensors(SMALL, 1), random_tensors(SMALL, 1)
    name = "model.layers.1.mlp.down_proj.weight"
    again("model.layers.0.mlp.down_proj.weight", torch.float32)
    assert torch.equal(take(name, torch.float32), again(name, torch.float32))
    assert not torch.equal(take(name, torch.float32), random_tensors(SMALL, 2)(name, torch.float32))
    assert float(take(name, torch.float32).std()) == pytest.approx(96**-0.5, rel=0.05)
    assert torch.equal(take("model.norm.weight", torch.bfloat16), torch.ones(64).bfloat16())


@needs_native
@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("kv", ["bf16", "int8"])
def test_made_programs_compute_numbers(weights: str, kv: str) -> None:
    isa = library.best()
    assert isa is not None
    parts = replace(made_parts(SMALL, weights, 2), int8_kv=kv == "int8")
    pointers = {layer.down.struct.weight for layer in parts.layers}
    assert len(pointers) == 2  # memory of its own
    assert sum(x.weight.nbytes for x in _projections(parts.layers[0])) == layer_bytes(
        SMALL, weights
    )
    program = open_program(parts, isa, 1)
    pool = filled_pool(kernels_run.geometry_of(SMALL, kv, 2, 2))
    keys, values = pool.all_planes
    table = BlockTable(kernels_run.BLOCK_TOKENS, torch.device("cpu"))
    table.append([(0, 2)])
    hidden = program.hidden_rows(3)
    program.run(
        torch.zeros(3, dtype=torch.int64),
        [Span(row=0, n=3, start=70, table=table)],
        Planes(keys=keys, values=values, block_tokens=kernels_run.BLOCK_TOKENS),
        hidden,
        np.zeros(0, dtype=np.int64),
        range(2),
    )
    program.close()
    assert hidden.isfinite().all()
    assert 0.1 < float(hidden.std()) < 100


def _projections(layer: object) -> list[object]:
    return [getattr(layer, name) for name in ("qkv", "output", "gate_up", "down")]


# --- what is counted ------------------------------------------------------------------------------


@needs_native
def test_work_is_counted_by_hand() -> None:
    parameters = 64 * (128 + 128) + 64 * 128 + 3 * 64 * 96
    read = work_of(SMALL, "bf16", "bf16", layers=2, rows=3, context=10)
    assert read.linear_operations == 2 * 2 * 3 * parameters
    assert read.attention_operations == 2 * (11 + 12 + 13) * 4 * 32 * 4
    assert not read.decodes
    wrote = work_of(SMALL, "bf16", "int8", layers=2, sequences=16, context=10)
    assert wrote.decodes
    assert wrote.weight_bytes == 2 * 2 * parameters
    assert wrote.kv_bytes == 16 * 11 * 2 * 2 * (2 * 32 + 2 * 2)


@needs_native
def test_works_that_take_too_much_run_over_fewer_layers() -> None:
    found = list(works(SMALL, "bf16", "bf16", 4, TINY))
    assert [(w.rows, w.sequences, w.context) for w in found] == [
        (8, 1, 0), (8, 1, 70), (1, 1, 5), (1, 1, 70), (1, 3, 5), (1, 3, 70)
    ]  # fmt: skip
    for work in found:
        assert 1 <= work.layers <= 4
        if work.layers > 1:
            assert work.kv_bytes <= TINY.kv_bytes
    assert found[2].layers == 4
    assert found[0].layers == 2  # 8 rows of 42,000 parameters are 0.7 million operations a layer


@needs_native
def test_a_share_is_the_least_time_over_the_time_taken() -> None:
    found = LimitSamples(
        read_bytes_per_s={1: (5e9,), 2: (9e9, 10e9, 99e9)},
        peak_operations_per_s={"bf16": (1e9, 1e9, 1e9), "int8": (4e9,)},
    )
    read = replace(
        work_of(SMALL, "bf16", "bf16", layers=1, rows=3, context=0),
        linear_operations=2e9,
        attention_operations=1e9,
    )
    wrote = replace(
        work_of(SMALL, "bf16", "bf16", layers=1, context=0),
        weight_bytes=10**9,
        kv_bytes=10**9,
    )
    case = Case(shape="s", weights="bf16", kv="bf16", work=read, seconds=(7.0, 6.0, 5.0))
    assert share_of_limit(found, case, 2) == pytest.approx(0.5)
    assert case.rate == pytest.approx(0.5e9)
    # two products of bytes each, at four times the rate: half the time
    assert share_of_limit(found, replace(case, weights="int4"), 2) == pytest.approx(2 / 6)
    assert share_of_limit(found, replace(case, kv="int8"), 2) == pytest.approx(2.5 / 6)
    case = replace(case, work=wrote, seconds=(0.4,))
    assert share_of_limit(found, case, 2) == pytest.approx(0.5)
    assert share_of_limit(found, case, 1) == pytest.approx(1.0)
    assert case.rate == pytest.approx(5e9)


# --- the machine ----------------------------------------------------------------------------------


@needs_native
def test_limits_are_measured() -> None:
    assert limits.read_rate(2, 2**22) > 1e8
    isa = library.best()
    assert isa is not None
    for kind in limits.KINDS:
        assert limits.peak_rate(isa, kind, 1) > 1e9
    with pytest.raises(ValueError, match="threads"):
        limits.read_rate(0, 2**22)


@needs_native
def test_steps_are_timed_without_the_first() -> None:
    isa = library.best()
    assert isa is not None
    program = open_program(made_parts(SMALL, "bf16", 2), isa, 1)
    work = work_of(SMALL, "bf16", "bf16", layers=1, sequences=3, context=70)
    seconds = time_work(program, SMALL, "bf16", work, 4)
    program.close()
    assert len(seconds) == 4
    assert min(seconds) > 0


@needs_native
def test_the_command_prints_tables_and_writes_every_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SHAPES, "SmolLM2-135M", SMALL)
    monkeypatch.setattr(kernels, "QUICK", TINY)
    out = tmp_path / "new" / "k.json"
    argv = ["--quick", "--shapes", "SmolLM2-135M", "--repeats", "2", "--threads", "1"]
    assert kernels.main([*argv, "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "memory is read at" in printed
    assert "decode 3 at 70" in printed
    data = json.loads(out.read_text())
    assert len(data["cases"]) == 6 * 6
    assert {case["unit"] for case in data["cases"]} == {"B/s", "op/s"}
    assert all(len(case["seconds"]) == 2 and case["share_of_limit"] > 0 for case in data["cases"])
    assert data["command"].endswith("--json k.json")
