"""Which engines take part, on which weights, in which interpreter; and why others do not.

Invariant: every engine that was asked for is a column of the report, if only with the reason why
it was skipped.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from kvasir.bench.candidate import Setup
from kvasir.bench.demand import demands
from kvasir.bench.machine_limits import Demand
from kvasir.bench.vllm_env import vllm_env
from kvasir.bench.workload import Workload
from kvasir.core.errors import ModelError
from kvasir.kernels.native import library
from kvasir.model.files import ModelFiles
from kvasir.model.native_forward import against
from kvasir.model.spec import ModelSpec

POOL_SLACK = 1.25  # over what the workload holds at once, so that nothing is ever preempted
PART_BLOCK_TOKENS = 128  # room for every sequence's blocks that are not full


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One column: an engine, how its worker loads it, and the interpreter that has it."""

    name: str
    setup: Setup
    python: str
    per_shape: bool  # see ``measure.measure``
    skipped: str = ""
    env: Mapping[str, str] = field(default_factory=dict)  # of its worker, beside what all have
    demands: Mapping[str, Demand] = field(default_factory=dict)  # by figure, where known

    @property
    def settings(self) -> dict[str, Any]:
        """What a reader should know of the set-up: no paths."""
        setup = self.setup
        common = {
            "weights": Path(setup.weights).name,
            "threads": setup.threads,
            "window": setup.window,
        }
        if setup.engine == "llama_cpp":
            return {**common, "flash_attention": setup.flash_attention}
        if setup.engine == "kvasir":
            common |= {"weights_format": setup.weights_format, "kv_dtype": setup.kv_dtype}
        return {**common, "dtype": setup.dtype}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What all arms share."""

    files: ModelFiles
    cache: Path  # the folder of this model, see ``checkpoint.cache_folder``
    checkpoint: Path
    workload: Workload
    dtype: str
    threads: int
    llama_python: str
    vllm_python: str
    flash_attention: tuple[bool, ...]  # llama.cpp's switch, one set of columns for each
    kv_gib: float = 0.0  # 0 = ``pool_gib``
    formats: tuple[tuple[str, str], ...] = ()  # weights and KV of more columns of Kvasir


def arms(plan: Plan, engines: tuple[str, ...]) -> Iterator[Arm]:
    """The arms of ``engines`` (of ``options.CHOICES``), in this order.

    Makes the weights that llama.cpp needs, where they are not there yet.
    """
    for engine in engines:
        if engine == "kvasir":
            yield from _kvasir_arms(plan)
        elif engine == "transformers":
            missing = importlib.util.find_spec("transformers") is None
            why = "the transformers library is not installed" if missing else ""
            yield _arm(plan, "transformers", "transformers", plan.checkpoint, skipped=why)
        elif engine == "vllm":
            yield _vllm_arm(plan)
        else:
            yield from _llama_arms(plan)


def _arm(plan: Plan, name: str, engine: str, weights: Path, *, skipped: str = "") -> Arm:
    return Arm(
        name=name,
        setup=_setup(plan, engine, weights),
        python=sys.executable,
        per_shape=True,  # oneDNN makes its kernels when a shape is first met
        skipped=skipped,
    )


def _kvasir_arms(plan: Plan) -> Iterator[Arm]:
    """With default formats, and then with each of ``plan.formats``."""
    arm = _arm(plan, "kvasir", "kvasir", plan.checkpoint)
    why_not = _why_no_formats(plan)
    if why_not:  # torch computes: its limits are not these
        yield arm
    else:
        yield replace(arm, demands=_demands(plan, "bf16", "bf16"))
    for weights, kv in plan.formats:
        yield replace(
            arm,
            name=f"kvasir {weights}/{kv}",
            setup=replace(
                arm.setup, weights_format=weights, kv_dtype="int8" if kv == "int8" else "auto"
            ),
            skipped=why_not or ", ".join(against(plan.files.spec, weights)),
            demands={} if why_not else _demands(plan, weights, kv),
        )


def _why_no_formats(plan: Plan) -> str:
    """Why the native kernels do not compute with default formats; "" if they do."""
    if library.best() is None:
        return "the native kernels cannot run here; see kvasir doctor"
    if plan.dtype != "bfloat16":
        return f"the native kernels compute in bfloat16, not in {plan.dtype}"
    return ", ".join(against(plan.files.spec, "bf16"))


def _demands(plan: Plan, weights: str, kv: str) -> dict[str, Demand]:
    return demands(plan.files.spec, plan.workload.sizes, weights, kv)


def _vllm_arm(plan: Plan) -> Arm:
    python = plan.vllm_python
    return Arm(
        name="vLLM",
        setup=_setup(plan, "vllm", plan.checkpoint),
        python=python,
        per_shape=True,  # as above
        skipped=why_no_vllm(python),
        env=vllm_env(python, threads=plan.threads, cache=plan.cache / "vllm", base=os.environ),
    )


def _llama_arms(plan: Plan) -> Iterator[Arm]:
    missing = why_no_llama(plan.llama_python)
    if missing:
        weights: list[tuple[str, Path, str]] = [("", plan.files.path, missing)]
    else:
        weights = list(llama_weights(plan.files, plan.cache))
    for flash in plan.flash_attention:
        for kind, path, skipped in weights:
            words = ("llama.cpp", kind, "FA" if flash and len(plan.flash_attention) > 1 else "")
            yield Arm(
                name=" ".join(word for word in words if word),
                setup=_setup(plan, "llama_cpp", path, flash_attention=flash),
                python=plan.llama_python,
                per_shape=False,
                skipped=skipped,
            )


def llama_weights(files: ModelFiles, cache: Path) -> Iterator[tuple[str, Path, str]]:
    """Kind, file and why not, of the weights that llama.cpp runs: as given, and like for like.

    What is made is kept in the folder ``cache``.
    """
    from kvasir.bench.gguf_bf16 import make_gguf

    given = file_kind(files)
    if given:
        yield given, files.path, ""
    if given != "BF16":
        target = cache / "model-bf16.gguf"
        try:
            yield "BF16", make_gguf(files, target), ""
        except ModelError as error:
            yield "BF16", target, str(error)


def file_kind(files: ModelFiles) -> str:
    """How a GGUF file's weights are stored, as "Q4_1"; "" for a folder."""
    if files.kind != "gguf":
        return ""
    from gguf import LlamaFileType

    number = files.metadata.get("general.file_type")
    names = {int(kind): kind.name for kind in LlamaFileType}
    name = names.get(number, "as given") if isinstance(number, int) else "as given"
    return name.removeprefix("MOSTLY_").removeprefix("ALL_")


def why_no_llama(python: str) -> str:
    """Why ``python`` cannot run llama.cpp; "" if it can."""
    return _why_not(python, "import llama_cpp", "llama.cpp", "llama_cpp", "--llama-python")


def why_no_vllm(python: str) -> str:
    """Why ``python`` cannot run vLLM; "" if it can."""
    return _why_not(python, "from vllm import LLMEngine", "vLLM", "vllm", "--vllm-python")


def _why_not(python: str, statement: str, engine: str, module: str, option: str) -> str:
    """Why ``python`` cannot carry out an import ``statement``; "" if it can."""
    try:
        done = subprocess.run(
            [python, "-c", statement],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"the interpreter for {engine} does not run: {type(error).__name__}"
    if done.returncode == 0:
        return ""
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return f"{module} cannot be imported ({last}); see {option}"


def _setup(plan: Plan, engine: str, weights: Path, *, flash_attention: bool = False) -> Setup:
    sizes = plan.workload.sizes
    return Setup(
        engine=engine,
        weights=str(weights.resolve()),
        dtype=plan.dtype,
        threads=plan.threads,
        window=plan.workload.longest,
        client_tokens=sizes.client_prompt + sizes.client_answer,
        home=str((plan.cache / "home").resolve()),
        flash_attention=flash_attention,
        kv_gib=plan.kv_gib or pool_gib(plan.files.spec, plan.workload, plan.dtype),
    )


def pool_gib(spec: ModelSpec, workload: Workload, dtype: str) -> float:
    """A KV pool for what ``workload`` holds at once.

    So memory can be compared: the other engines too have room for the workload and no more.
    """
    sizes = workload.sizes
    crowd = sizes.clients * (sizes.client_prompt + sizes.client_answer)
    element_bytes: int = getattr(torch, dtype).itemsize
    token_bytes = 2 * spec.n_layers * spec.n_kv_heads * spec.head_dim * element_bytes
    tokens = max(workload.longest, crowd) * POOL_SLACK + (sizes.clients + 1) * PART_BLOCK_TOKENS
    return tokens * token_bytes / 2**30
