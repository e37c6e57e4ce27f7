"""What this process may use of the machine: cores, instruction sets, memory. No torch."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import psutil

from kvasir.model.memory import available_bytes

# Instruction sets that decide how fast a CPU computes, as Linux names them.
RELEVANT_FLAGS = (
    "sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni",
    "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_tile", "amx_int8", "amx_bf16", "amx_fp16",
    "asimd", "asimddp", "bf16", "i8mm", "sve", "sve2", "sme",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The machine as this process may use it."""

    cpu: str
    cores: int
    flags: tuple[str, ...]
    memory_bytes: int
    available_bytes: int  # now, without swapping, within what a container allows


def describe_machine() -> Machine:
    """Look at the machine."""
    name, flags = read_cpuinfo(_cpuinfo())
    return Machine(
        cpu=name or platform.processor() or platform.machine(),
        cores=usable_cores(),
        flags=tuple(flag for flag in RELEVANT_FLAGS if flag in flags),
        memory_bytes=psutil.virtual_memory().total,
        available_bytes=available_bytes(),
    )


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def read_cpuinfo(text: str) -> tuple[str, frozenset[str]]:
    """The model name and the flags of the first CPU in ``text``, as Linux writes /proc/cpuinfo."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    flags = fields.get("flags") or fields.get("Features") or ""
    return fields.get("model name", ""), frozenset(flags.split())


def _cpuinfo() -> str:
    """Nothing where the system is not Linux."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
