"""The record store on a real disk while the system's calls fail: strace makes the n-th call of a
kind return an error, or kills the process in it, for each n that a course of use has."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from store_samples import served
from storing_child import CAP, made

from kvasir.tiers.folder import RealFolder
from kvasir.tiers.store import RecordStore

CALLS = (
    "write", "fsync", "renameat", "openat", "unlinkat", "preadv", "preadv2", "getdents64",
    "utimensat",
)  # fmt: skip
READING = {"openat", "preadv", "preadv2", "getdents64"}  # what cannot be read is given up
INJECTIONS = ("error=EIO", "error=ENOSPC", "signal=SIGKILL")
MOST = int(os.environ.get("KVASIR_TEST_INJECTIONS", "100"))  # of some 200 that there are
CHILD = str(Path(__file__).with_name("storing_child.py"))


def run(folder: Path, log: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The child's course under strace with ``options``. ``?`` is for calls that the machine's
    architecture does not have."""
    calls = ",".join(f"?{call}" for call in CALLS)
    return subprocess.run(
        ["strace", "-f", "-qq", "-o", str(log), "-e", f"trace={calls}", *options,
         sys.executable, CHILD, "script", str(folder)],
        capture_output=True, text=True, check=False, timeout=60,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, int]]:
    """Each call that the course makes once it has begun, as its kind and which of its kind."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    where = tmp_path_factory.mktemp("course")
    run(where / "warm", where / "log")
    done = run(where / "kv", where / "log", "-e", "inject=?fsync:error=EIO:when=9999")
    if done.returncode:
        pytest.skip(f"strace cannot inject here: {done.stderr[-300:]}")
    assert done.stdout.endswith("end 0\n"), done.stdout
    return list(_places((where / "log").read_text()))


def _places(log: str) -> Iterator[tuple[str, int]]:
    seen: Counter[str] = Counter()
    begun = False
    for line in log.splitlines():
        match = re.match(r"\d+ +(\w+)\(", line)
        if match is None:
            continue
        seen[match[1]] += 1
        if begun:
            yield match[1], seen[match[1]]
        if '"end 0' in line:
            return
        begun = begun or '"begin 0' in line


def promises(said: str) -> set[int]:
    """What must be there."""
    found: set[int] = set()
    for line in said.splitlines():
        verb, which = line.split()
        if verb == "kept":
            found.add(int(which))
        elif verb in {"dropping", "lost"}:
            found.discard(int(which))
    return found


def test_the_course_is_seen_whole(places: list[tuple[str, int]]) -> None:
    kinds = Counter(kind for kind, _ in places)
    assert kinds["fsync"] >= 10
    assert set(CALLS) - set(kinds) in ({"preadv"}, {"preadv2"}), "the course left out a call"


def test_any_call_may_fail_or_be_the_last(places: list[tuple[str, int]], tmp_path: Path) -> None:
    plan = [(call, n, injection) for call, n in places for injection in INJECTIONS]
    if len(plan) > MOST:
        plan = random.Random(0).sample(plan, MOST)
    ends: Counter[str] = Counter()
    for index, (call, n, injection) in enumerate(plan):
        where = tmp_path / str(index)
        done = run(where, tmp_path / "log", "-e", f"inject={call}:{injection}:when={n}")
        struck = "INJECTED" in (tmp_path / "log").read_text() or done.returncode
        assert struck, (call, n, injection, done.stdout)
        assert "AssertionError" not in done.stderr, done.stderr
        assert "unaccounted" not in done.stdout
        assert call in READING or "lost" not in done.stdout, (call, n, injection, done.stdout)
        must = promises(done.stdout)
        folder = RealFolder(where)
        store = RecordStore(folder, CAP)
        missing = {which for which in must if not served(store, made(which))}
        assert not missing, f"{missing} lost after {injection} in {call} {n}:\n{done.stdout}"
        for which in range(4):
            served(store, made(which))
        files = [path for path in where.iterdir() if path.suffix == ".kv"]
        assert store.used_bytes == sum(path.stat().st_size for path in files) <= CAP
        assert not list(where.glob("*.part"))
        folder.close()
        shutil.rmtree(where)
        ends.update({"killed"} if "KILL" in injection else set(done.stdout.split()))
    assert min(ends[end] for end in ("killed", "degraded", "lost", "end")) > 0, ends
