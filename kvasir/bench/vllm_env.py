"""What vLLM reads from its process's environment, given before the process starts.

A library can only be preloaded and OpenMP's threads only be bound from outside; the rest is here
too, so that it is in one place. Invariant: one process computes, on ``threads`` cores.
"""

from __future__ import annotations

import ctypes.util
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

ALLOCATOR = "tcmalloc_minimal"
OPENMP = "libiomp5.so"  # comes with vLLM's package, into the lib folder of the environment


def vllm_env(python: str, *, threads: int, cache: Path, base: Mapping[str, str]) -> dict[str, str]:
    """Variables for a worker run by ``python``; what vLLM compiles is kept in the folder ``cache``.

    ``base`` is the environment to which they are added.
    """
    return {
        # The default is a process for the engine and one for the model, which bind their threads to
        # cores of their own and leave one core of few to the scheduler.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        # What vLLM 0.32 compiles ahead of time on a CPU it cannot load again with torch 2.13, so it
        # compiles anew at every start. This way torch's own cache serves: a third of the time.
        "VLLM_USE_AOT_COMPILE": "0",
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        "VLLM_CACHE_ROOT": str(cache),
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        **_openmp(threads),
        "LD_PRELOAD": ":".join(_preloads(python, base)),
    }


def _openmp(threads: int) -> dict[str, str]:
    """What vLLM itself sets for processes that it starts, for the one it does not."""
    cores = ",".join(str(core) for core in _cores()[:threads])
    return {
        "KMP_AFFINITY": f"granularity=fine,explicit,proclist=[{cores}]",
        "KMP_BLOCKTIME": "5",
        "KMP_TPAUSE": "0",
    }


def _cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _preloads(python: str, base: Mapping[str, str]) -> list[str]:
    """The libraries that vLLM advises to preload, those that are there."""
    found = [path for path in base.get("LD_PRELOAD", "").split(":") if path]
    allocator = ctypes.util.find_library(ALLOCATOR)
    if allocator and not any("tcmalloc" in path for path in found):
        found.append(allocator)
    # Not resolved: in a virtual environment the link's own folder is the one that counts.
    openmp = Path(shutil.which(python) or python).absolute().parent.parent / "lib" / OPENMP
    if openmp.is_file():
        found.append(str(openmp))
    return found
