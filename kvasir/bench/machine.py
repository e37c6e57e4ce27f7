"""The machine that a benchmark runs on, whether it is idle, and which code runs. No torch.

Nothing here is specific to a machine's owner: no host name, no paths, so that a report may be
published as it is.
"""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import psutil

from kvasir.bench.results import Machine

RELEVANT_FLAGS = (
    "sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni",
    "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_tile", "amx_int8", "amx_bf16", "amx_fp16",
    "asimd", "asimddp", "bf16", "i8mm", "sve", "sve2", "sme",
)  # fmt: skip
BUSY_PERCENT = 10.0
BUSY_LOAD_PER_CORE = 0.25


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe() -> Machine:
    """Look at the machine; takes one second, to see how busy it is."""
    model, flags = read_cpuinfo(_read("/proc/cpuinfo"))
    one, five, fifteen = psutil.getloadavg()
    return Machine(
        cpu=model or platform.processor() or platform.machine(),
        cores=usable_cores(),
        flags=tuple(flag for flag in RELEVANT_FLAGS if flag in flags),
        memory_bytes=psutil.virtual_memory().total,
        kernel=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        load_average=(round(one, 2), round(five, 2), round(fifteen, 2)),
        busy_percent=psutil.cpu_percent(interval=1.0),
    )


def read_cpuinfo(text: str) -> tuple[str, frozenset[str]]:
    """The model name and the flags of the first CPU in ``text``, as Linux writes /proc/cpuinfo."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    flags = fields.get("flags") or fields.get("Features") or ""
    return fields.get("model name", ""), frozenset(flags.split())


def busy_warning(machine: Machine) -> str | None:
    """A warning if something else was running; None on an idle machine."""
    load = machine.load_average[0]
    if machine.busy_percent < BUSY_PERCENT and load < BUSY_LOAD_PER_CORE * machine.cores:
        return None
    return (
        f"the machine is not idle: {machine.busy_percent:.0f} % of its cores busy, load average "
        f"{load:.2f} on {machine.cores} cores; these figures are not to be compared with others"
    )


def commit_of(folder: Path) -> tuple[str, bool]:
    """The git commit that ``folder`` is checked out from, and whether tracked files were changed.

    ("", False) where it is no checkout, git is missing, or git does not track the folder (a package
    installed inside somebody else's checkout).
    """
    if not _git(folder, "ls-files", "."):
        return "", False
    return _git(folder, "rev-parse", "HEAD"), bool(
        _git(folder, "status", "--porcelain", "--untracked-files=no", ".")
    )


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
