"""A run of `kvasir bench kernels`: the machine's limits, and what the kernels make of them.

Invariant: limits and kernels are measured in one run by the same threads; a share is of the medians
of both. What a case reads lies in memory, not in a cache.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

import kvasir
from kvasir.bench import machine
from kvasir.bench.kernels import KernelOptions, KernelSizes
from kvasir.bench.limit_sampler import LimitSampler
from kvasir.bench.machine_limits import LimitSamples
from kvasir.bench.made_model import SHAPES
from kvasir.bench.made_program import (
    filled_pool,
    made_parts,
    open_program,
)
from kvasir.bench.process import PACKAGE
from kvasir.bench.results import Machine
from kvasir.core.errors import ConfigError
from kvasir.core.geometry import KvGeometry
from kvasir.kernels.native import library
from kvasir.kernels.native.library import Isa
from kvasir.kernels.native.program import Planes, Program
from kvasir.kernels.paging import BlockTable, Span
from kvasir.model.native_forward import layer_bytes, layer_shapes
from kvasir.model.spec import ModelSpec

SCHEMA = "kvasir-bench-kernels/1"
WEIGHTS = ("bf16", "int8", "int4")
KV = ("bf16", "int8")
BLOCK_TOKENS = 64

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one case computes and reads, over ``layers`` layers."""

    rows: int  # of each sequence
    sequences: int
    context: int  # tokens before the rows
    layers: int
    linear_operations: float
    attention_operations: float
    weight_bytes: int
    kv_bytes: int  # of the tokens that rows see

    @property
    def decodes(self) -> bool:
        """Whether memory is its limit, not the arithmetic."""
        return self.rows == 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One case: seconds of each repeat."""

    shape: str
    weights: str
    kv: str
    work: Work
    seconds: tuple[float, ...]

    @property
    def rate(self) -> float:
        """Bytes, or operations, per second."""
        work = self.work
        amount = (
            work.weight_bytes + work.kv_bytes
            if work.decodes
            else work.linear_operations + work.attention_operations
        )
        return amount / statistics.median(self.seconds)


def share_of_limit(found: LimitSamples, case: Case, threads: int) -> float:
    """The least time that ``case`` could take, over the time that it took."""
    work, took = case.work, statistics.median(case.seconds)
    if work.decodes:
        return found.read_s(work.weight_bytes + work.kv_bytes, threads) / took
    linear_s = found.product_s(work.linear_operations, case.weights)
    return (linear_s + found.product_s(work.attention_operations, case.kv)) / took


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelReport:
    """A whole run."""

    schema: str = SCHEMA
    date: str  # ISO 8601, UTC
    command: str
    commit: str
    commit_dirty: bool
    machine: Machine
    versions: Mapping[str, str]
    kernels: str
    threads: int
    limits: LimitSamples
    cases: tuple[Case, ...]
    warnings: tuple[str, ...]

    def to_json(self) -> str:
        """The file that is kept: every sample, and the figures made of them."""
        content = dataclasses.asdict(self)
        for raw, case in zip(content["cases"], self.cases, strict=True):
            raw["unit"] = "B/s" if case.work.decodes else "op/s"
            raw["rate"] = case.rate
            raw["share_of_limit"] = share_of_limit(self.limits, case, self.threads)
        return json.dumps(content, indent=1) + "\n"


def run(options: KernelOptions, say: Say) -> KernelReport:
    """Carry out ``options``, telling ``say`` what is going on."""
    isa = library.best()
    if isa is None:
        raise ConfigError(
            f"there are no native kernels here: {library.missing() or 'the CPU has none of them'}"
        )
    here = machine.describe()
    warnings = [text for text in [machine.busy_warning(here)] if text]
    for text in warnings:
        say(f"WARNING: {text}")
    # packing and filling only; the kernels have threads of their own
    torch.set_num_threads(1)
    sampler = LimitSampler(isa, (1, options.threads), options.sizes.read_buffer_bytes)
    cases: list[Case] = []
    for shape in options.shapes:
        # before each shape, so that a slow spell of the machine is in both
        say("the machine's limits")
        for _ in range(options.repeats):
            sampler.sample()
        cases.extend(measure(shape, SHAPES[shape], isa, options, say))
    commit, dirty = machine.commit_of(PACKAGE)
    return KernelReport(
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=options.command,
        commit=commit,
        commit_dirty=dirty,
        machine=here,
        versions={
            "kvasir": kvasir.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        kernels=isa.name,
        threads=options.threads,
        limits=sampler.samples(),
        cases=tuple(cases),
        warnings=tuple(warnings),
    )


def measure(
    shape: str, spec: ModelSpec, isa: Isa, options: KernelOptions, say: Say
) -> Iterator[Case]:
    """Every case of one shape."""
    for weights in WEIGHTS:
        n_layers = -(-options.sizes.weight_bytes // layer_bytes(spec, weights))
        parts = made_parts(spec, weights, n_layers)
        for kv in KV:
            say(f"{shape}: {n_layers} layers of weights {weights}, KV {kv}")
            program = open_program(replace(parts, int8_kv=kv == "int8"), isa, options.threads)
            for work in works(spec, weights, kv, n_layers, options.sizes):
                seconds = time_work(program, spec, kv, work, options.repeats)
                yield Case(shape=shape, weights=weights, kv=kv, work=work, seconds=seconds)
            program.close()


def works(
    spec: ModelSpec, weights: str, kv: str, n_layers: int, sizes: KernelSizes
) -> Iterator[Work]:
    """The cases of one setting, over as many of its layers as time and memory allow."""
    for context in sizes.prefill_contexts:
        one = work_of(spec, weights, kv, layers=1, rows=sizes.prefill_rows, context=context)
        operations = one.linear_operations + one.attention_operations
        most = min(sizes.prefill_operations // operations, sizes.kv_bytes // one.kv_bytes)
        layers = max(1, min(n_layers, int(most)))
        yield work_of(spec, weights, kv, layers=layers, rows=sizes.prefill_rows, context=context)
    for sequences in sizes.decode_rows:
        for context in sizes.decode_contexts:
            one = work_of(spec, weights, kv, layers=1, sequences=sequences, context=context)
            layers = max(1, min(n_layers, sizes.kv_bytes // one.kv_bytes))
            yield work_of(spec, weights, kv, layers=layers, sequences=sequences, context=context)


def work_of(
    spec: ModelSpec,
    weights: str,
    kv: str,
    *,
    layers: int,
    context: int,
    rows: int = 1,
    sequences: int = 1,
) -> Work:
    """What so many rows behind ``context`` tokens cost."""
    parameters = sum(n_out * n_in for n_out, n_in in layer_shapes(spec))
    seen = sum(range(context + 1, context + rows + 1))  # keys, over all rows of a sequence
    per_key = 4 * spec.n_heads * spec.head_dim  # a product of scores, one of values
    return Work(
        rows=rows,
        sequences=sequences,
        context=context,
        layers=layers,
        linear_operations=2.0 * layers * sequences * rows * parameters,
        attention_operations=float(layers * sequences * seen * per_key),
        weight_bytes=layers * layer_bytes(spec, weights),
        kv_bytes=sequences * (context + rows) * geometry_of(spec, kv, layers, 1).token_bytes,
    )


def geometry_of(spec: ModelSpec, kv: str, layers: int, n_blocks: int) -> KvGeometry:
    """The pool that a case needs."""
    return KvGeometry(
        n_layers=layers,
        n_kv_heads=spec.n_kv_heads,
        head_dim=spec.head_dim,
        dtype="int8" if kv == "int8" else "bfloat16",
        dtype_bytes=1 if kv == "int8" else 2,
        block_tokens=BLOCK_TOKENS,
        n_blocks=n_blocks,
    )


def time_work(
    program: Program, spec: ModelSpec, kv: str, work: Work, repeats: int
) -> tuple[float, ...]:
    """Seconds of each of ``repeats`` steps, after one that does not count."""
    each = -(-(work.context + work.rows) // BLOCK_TOKENS)
    pool = filled_pool(geometry_of(spec, kv, work.layers, each * work.sequences))
    keys, values = pool.all_planes
    planes = Planes(keys=keys, values=values, block_tokens=BLOCK_TOKENS)
    spans = []
    for sequence in range(work.sequences):
        table = BlockTable(BLOCK_TOKENS, torch.device("cpu"))
        table.append([(sequence * each, each)])
        spans.append(Span(row=sequence * work.rows, n=work.rows, start=work.context, table=table))
    tokens = torch.zeros(work.sequences * work.rows, dtype=torch.int64)
    nothing = np.zeros(0, dtype=np.int64)
    seconds = []
    for _ in range(repeats + 1):
        hidden = program.hidden_rows(len(tokens))
        began_s = time.perf_counter()
        program.run(tokens, spans, planes, hidden, nothing, range(work.layers))
        seconds.append(time.perf_counter() - began_s)
    return tuple(seconds[1:])
