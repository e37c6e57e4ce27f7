"""The machine that a benchmark runs on, whether it is idle, and which code runs. No torch.

Nothing here is specific to a machine's owner: no host name, no paths, so that a report may be
published as it is.
"""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import psutil

from kvasir.bench.results import Machine
from kvasir.engine.machine import describe_machine

BUSY_PERCENT = 10.0
BUSY_LOAD_PER_CORE = 0.25


def describe() -> Machine:
    """Look at the machine; takes one second, to see how busy it is."""
    here = describe_machine()
    one, five, fifteen = psutil.getloadavg()
    return Machine(
        cpu=here.cpu,
        cores=here.cores,
        flags=here.flags,
        memory_bytes=here.memory_bytes,
        kernel=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        load_average=(round(one, 2), round(five, 2), round(fifteen, 2)),
        busy_percent=psutil.cpu_percent(interval=1.0),
    )


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
