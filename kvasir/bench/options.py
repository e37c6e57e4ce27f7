"""What a run of the benchmark was asked for. Frozen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kvasir.bench.workload import Sizes

FORMATS = tuple((w, kv) for w in ("bf16", "int8", "int4") for kv in ("bf16", "int8"))  # weights, KV
CHOICES = ("kvasir", "transformers", "llama.cpp", "vllm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Every wish, checked."""

    engines: tuple[str, ...]  # of CHOICES
    repeats: int
    sizes: Sizes
    model: str
    home: Path
    out: Path
    text: Path | None  # None: one is made
    seed: int
    dtype: str
    threads: int
    kv_gib: float  # 0: for this workload
    llama_python: str
    vllm_python: str
    formats: tuple[tuple[str, str], ...]  # weights and KV of more columns of Kvasir
    flash_attention: tuple[bool, ...]
    timeout_s: float
    command: str
