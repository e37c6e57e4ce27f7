"""A run of the benchmark: engines take turns, each in a process of its own, and are measured.

Invariant: no two engines run at the same time, and one that fails costs only its own figures.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from kvasir.bench import http, machine, measure, workload
from kvasir.bench.arms import Arm, Plan, arms
from kvasir.bench.checkpoint import cache_folder, make_checkpoint
from kvasir.bench.limit_sampler import LimitSampler
from kvasir.bench.options import Options
from kvasir.bench.process import PACKAGE, Worker, WorkerFailed, environment, only_kvasir
from kvasir.bench.results import ArmReport, Machine, Report, Sample
from kvasir.bench.workload import Workload
from kvasir.core.errors import DoesNotFit
from kvasir.kernels.native import library
from kvasir.model.files import ModelFiles, open_model
from kvasir.model.source import model_name, resolve
from kvasir.text.tokenizer import tokenizer_from_folder

Say = Callable[[str], None]

_READ_BYTES = 2**30  # many times the caches of most machines


@dataclass(slots=True)
class _Column:
    """What an arm's turns have given so far."""

    arm: Arm
    versions: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    failures: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    def report(self) -> ArmReport:
        return ArmReport(
            name=self.arm.name,
            settings=self.arm.settings,
            versions=self.versions,
            notes=self.notes,
            failures=tuple(self.failures),
            skipped=self.arm.skipped,
            demands=self.arm.demands,
        )


def run(options: Options, say: Say) -> Report:
    """Carry out ``options``, telling ``say`` what is going on."""
    began = machine.describe()  # before anything of ours keeps the machine busy
    warnings = [text for text in [machine.busy_warning(began)] if text]
    for text in warnings:
        say(f"WARNING: {text}")
    options.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    files = open_model(resolve(options.model, options.home / "models", say))
    cache = cache_folder(options.home / "bench", files)
    say("making the peers' weights, where they are not there yet")
    checkpoint = make_checkpoint(files, cache / "checkpoint")
    prompts, text = _workload(options, files, checkpoint)
    plan = Plan(
        files=files,
        cache=cache,
        checkpoint=checkpoint,
        workload=prompts,
        dtype=options.dtype,
        threads=options.threads,
        llama_python=options.llama_python,
        vllm_python=options.vllm_python,
        formats=options.formats,
        flash_attention=options.flash_attention,
        kv_gib=options.kv_gib,
    )
    columns = [_Column(arm) for arm in arms(plan, options.engines)]
    isa = library.best()
    compared = isa is not None and any(column.arm.demands for column in columns)
    sampler = LimitSampler(isa, (options.threads,), _READ_BYTES) if isa and compared else None
    _take_turns(columns, prompts, options, sampler, say)
    return _report(options, began, columns, prompts, text, sampler, warnings)


def _workload(options: Options, files: ModelFiles, checkpoint: Path) -> tuple[Workload, str]:
    """The prompts, and in words where their text came from."""
    sizes = options.sizes.fitted(files.spec.window)
    n_tokens = workload.tokens_needed(sizes)
    if options.text is not None:
        text, source = workload.load_text(options.text, n_tokens), options.text.name
    else:
        text, source = workload.make_text(n_tokens, options.seed), f"made, seed {options.seed}"
    tokenizer = tokenizer_from_folder(checkpoint)
    first, second = (tokenizer.encode(q, special=False) for q in workload.QUESTIONS)
    tokens = tokenizer.encode(text, special=False)
    return workload.make(tokens, (first, second), sizes), source


def _take_turns(
    columns: list[_Column],
    prompts: Workload,
    options: Options,
    sampler: LimitSampler | None,
    say: Say,
) -> None:
    """Interleave the arms over the repeats, so that a slow spell of the machine meets them all; who
    begins changes, so that it meets them alike."""
    taking_part = [column for column in columns if not column.arm.skipped]
    with tempfile.TemporaryDirectory() as folder:
        path = only_kvasir(Path(folder))
        for repeat in range(options.repeats):
            if sampler is not None:
                say("the machine's limits")
                _sample_limits(sampler, say)
            shift = repeat % max(1, len(taking_part))
            for column in taking_part[shift:] + taking_part[:shift]:
                name = f"repeat {repeat + 1} of {options.repeats}: {column.arm.name}"
                say(name)
                began_s = time.monotonic()
                _turn(column, prompts, repeat, options.timeout_s, path)
                say(f"{name} took {time.monotonic() - began_s:.0f} s")


def _sample_limits(sampler: LimitSampler, say: Say) -> None:
    """A limit that cannot be measured costs the shares of it, nothing else."""
    try:
        sampler.sample()
    except DoesNotFit as error:
        say(f"WARNING: {error}")


def _turn(
    column: _Column, prompts: Workload, repeat: int, timeout_s: float, import_path: Path
) -> None:
    """One repeat of one arm; a failure is noted and ends the turn."""
    arm = column.arm
    env = environment(os.environ, threads=arm.setup.threads, import_path=import_path)
    env.update(arm.env)
    command = [arm.python, "-m", "kvasir.bench.worker"]
    try:
        with Worker(command, env=env, cwd=import_path, timeout_s=timeout_s) as worker:
            worker.ask("load", setup=dataclasses.asdict(arm.setup))
            worker.ask("answer", prompt=prompts.start, n_tokens=1, topic="start")
            start_s = time.perf_counter() - worker.started_s
            column.samples.append(
                Sample(arm=arm.name, repeat=repeat, figure="start", value=start_s)
            )
            about = worker.ask("about")
            column.versions, column.notes = about["versions"], tuple(about["notes"])
            for sample in measure.measure(
                worker, prompts, arm=arm.name, repeat=repeat, per_shape=arm.per_shape
            ):
                column.samples.append(sample)
        if arm.setup.engine == "kvasir":
            column.samples += _over_http(arm, prompts, repeat, env, import_path, timeout_s)
    except WorkerFailed as error:
        column.failures.append(f"repeat {repeat + 1}: {error}")


def _over_http(
    arm: Arm,
    prompts: Workload,
    repeat: int,
    env: dict[str, str],
    import_path: Path,
    timeout_s: float,
) -> list[Sample]:
    setup = arm.setup
    sizes = prompts.sizes
    settings = {
        "model": setup.weights,
        "dtype": setup.dtype,
        "threads": str(setup.threads),
        "kv_gib": str(setup.kv_gib),
        "max_window": str(setup.window),
        "home": setup.home,
        "weights": setup.weights_format,
        "kv_dtype": setup.kv_dtype,
        "disk_gib": "0",  # as in process, see ``engines.kvasir.load``
    }
    with http.served(arm.python, settings, env=env, cwd=import_path, timeout_s=timeout_s) as port:
        http.first_token_s(port, prompts.served_warm_up, timeout_s)
        body = http.completion(prompts.served, sizes.decode_tokens)
        reply = http.ask(port, "/v1/completions", body, timeout_s)
    if reply.completion_tokens != sizes.decode_tokens:
        raise WorkerFailed(f"{reply.completion_tokens} tokens came of {sizes.decode_tokens}")
    facts = {
        "prompt_tokens": reply.prompt_tokens,
        "cached_tokens": reply.cached_tokens,
        "first_s": reply.first_s,
        "last_s": reply.last_s,
    }
    decode = (sizes.decode_tokens - 1) / (reply.last_s - reply.first_s)
    return [
        Sample(arm=arm.name, repeat=repeat, figure=figure, value=value, facts=facts)
        for figure, value in (("http", reply.first_s), ("decode_http", decode))
    ]


def _report(
    options: Options,
    began: Machine,
    columns: list[_Column],
    prompts: Workload,
    text: str,
    sampler: LimitSampler | None,
    warnings: list[str],
) -> Report:
    commit, dirty = machine.commit_of(PACKAGE)
    return Report(
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=options.command,
        commit=commit,
        commit_dirty=dirty,
        model=model_name(options.model),
        dtype=options.dtype,
        threads=options.threads,
        repeats=options.repeats,
        text=text,
        sizes=prompts.sizes,
        machine=began,
        figures=measure.figures(prompts.sizes),
        arms=tuple(column.report() for column in columns),
        samples=tuple(sample for column in columns for sample in column.samples),
        warnings=tuple(warnings),
        limits=sampler.samples() if sampler is not None and sampler.complete else None,
    )
