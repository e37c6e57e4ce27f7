"""What a model takes in memory, what the machine has, and the refusal of what cannot fit.

Torch-free: dtypes come in as sizes, a GPU's free memory as a number. Invariant: the estimate counts
everything whose size grows with the model or the step, so what passes ``check_fits`` does not run
out of memory later by these.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from kvasir.core.errors import DoesNotFit
from kvasir.model.names import expected_tensors
from kvasir.model.spec import ModelSpec

GIB = 2**30
# Interpreter, torch and server have 170 MiB of their own on Linux without a GPU (measured after all
# imports); the rest is for the tokenizer, thread stacks and what the allocator keeps.
PROCESS_BYTES = 400 * 2**20
CGROUP = Path("/sys/fs/cgroup")
UNLIMITED_BYTES = 2**60  # cgroup v1 says "no limit" by a number near 2**63


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryNeed:
    """Bytes that a model needs, by purpose."""

    weights_bytes: int
    step_bytes: int  # activations of the largest step
    loading_bytes: int  # beside the weights, while they are read
    kv_token_bytes: int  # KV of one token over all layers
    window_tokens: int

    @property
    def fixed_bytes(self) -> int:
        """Everything but KV. Loading is over before the first step, so the larger one counts."""
        return PROCESS_BYTES + self.weights_bytes + max(self.step_bytes, self.loading_bytes)

    @property
    def window_bytes(self) -> int:
        """KV of one text that fills the model's window."""
        return self.window_tokens * self.kv_token_bytes


def parameter_count(spec: ModelSpec) -> int:
    """Numbers in all tensors of ``spec``."""
    return sum(math.prod(shape) for shape in expected_tensors(spec).values())


def estimate(
    spec: ModelSpec, *, dtype_bytes: int, kv_token_bytes: int, step_tokens: int, sampled_rows: int
) -> MemoryNeed:
    """What a decoder of ``spec`` takes with steps of ``step_tokens`` that sample ``sampled_rows``.

    Activations alive at once in a layer: the residual, its norm and one more [T, hidden]; queries,
    keys, values and the attention's output; gate, up and their product [T, intermediate]; and
    logits in float32 with one copy.
    """
    queries, keys = spec.n_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim
    row = 3 * spec.hidden + 2 * queries + 2 * keys + 3 * spec.intermediate
    largest = max(math.prod(shape) for shape in expected_tensors(spec).values())
    return MemoryNeed(
        weights_bytes=parameter_count(spec) * dtype_bytes,
        step_bytes=step_tokens * row * dtype_bytes + 2 * 4 * sampled_rows * spec.vocab_size,
        loading_bytes=largest * dtype_bytes,
        kv_token_bytes=kv_token_bytes,
        window_tokens=spec.window,
    )


def available_bytes() -> int:
    """Memory that this process may still take: what the machine has free, or less where a control
    group (a container) limits it."""
    free = psutil.virtual_memory().available
    limits = [free, *(limit for limit in _cgroup_free(CGROUP, _own_groups()) if limit >= 0)]
    return min(limits)


def _own_groups() -> list[str]:
    """The paths of this process's control groups, as the kernel lists them; none beside Linux."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    return [line.split(":", 2)[2] for line in lines if line.count(":") >= 2]


def _cgroup_free(root: Path, groups: Sequence[str]) -> list[int]:
    """Bytes left under each memory limit that holds for ``groups`` and the groups above them."""
    left: list[int] = []
    folders = {root, root / "memory"}
    for group in groups:
        for top in (root, root / "memory"):
            folder = top / group.lstrip("/")
            while folder != top and top in folder.parents:
                folders.add(folder)
                folder = folder.parent
    for folder in folders:
        for limit_name, used_name, cache_key in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit = _number(folder / limit_name)
            if limit is None or limit >= UNLIMITED_BYTES:
                continue
            used = (_number(folder / used_name) or 0) - _reclaimable(folder, cache_key)
            left.append(max(0, limit - max(0, used)))
    return left


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # ValueError: "max", which means no limit
        return None


def _reclaimable(folder: Path, key: str) -> int:
    """File pages that the kernel counts as used and drops when memory is needed."""
    try:
        lines = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.split()[:1] == [key])


def summary(need: MemoryNeed, *, dtype: str, available: int, kv_bytes: int) -> str:
    """One line for people: what the model takes, what KV gets, what there is."""
    kv_tokens = kv_bytes // need.kv_token_bytes
    return (
        f"memory: {gib(need.weights_bytes)} weights ({dtype}), "
        f"{gib(max(need.step_bytes, need.loading_bytes))} while computing, {gib(kv_bytes)} KV "
        f"({kv_tokens:,} tokens of {need.kv_token_bytes / 1024:.1f} KiB); "
        f"{gib(available)} available"
    )


def check_fits(need: MemoryNeed, *, dtype: str, available: int, kv_bytes: int) -> None:
    """Raise ``DoesNotFit`` with the numbers where the model and ``kv_bytes`` of KV exceed
    ``available`` bytes."""
    total = need.fixed_bytes + kv_bytes
    if total <= available:
        return
    smaller = " Load it with --dtype bfloat16 to halve the weights." if dtype == "float32" else ""
    raise DoesNotFit(
        f"the model does not fit: {gib(need.weights_bytes)} weights ({dtype}) + "
        f"{gib(need.fixed_bytes - need.weights_bytes)} to run it + {gib(kv_bytes)} KV = "
        f"{gib(total)}, and {gib(available)} are available.{smaller} Free memory, give the KV less "
        "(--kv-gib), or take a smaller model."
    )


def gib(n_bytes: int) -> str:
    """``n_bytes`` for people."""
    return f"{n_bytes / GIB:.2f} GiB"
