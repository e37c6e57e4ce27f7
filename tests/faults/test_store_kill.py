"""The record store on a real disk: kill -9 at any moment, odd files, limits of the system."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from store_samples import served
from storing_child import CAP, made

from kvasir.tiers.folder import RealFolder
from kvasir.tiers.store import RecordStore, StoreDegraded

KILLS = int(os.environ.get("KVASIR_TEST_KILLS", "200"))
CHILD = str(Path(__file__).with_name("storing_child.py"))


def test_what_was_acknowledged_is_there_after_kill_9(tmp_path: Path) -> None:
    rng = random.Random(0)
    promised: set[int] = set()
    first = 0
    for _ in range(KILLS):
        child = subprocess.Popen(
            [sys.executable, CHILD, "forever", str(tmp_path / "kv"), str(first)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        lines = [child.stdout.readline()]  # it has begun
        time.sleep(rng.uniform(0, 0.02))
        child.send_signal(signal.SIGKILL)
        lines += child.stdout.read().splitlines()
        child.stdout.close()
        child.wait()
        for line in lines:
            verb, which = line.split()
            promised.add(int(which)) if verb == "kept" else promised.discard(int(which))
            first = max(first, int(which) + 1)
        folder = RealFolder(tmp_path / "kv")
        store = RecordStore(folder, CAP)
        assert all(served(store, made(which)) for which in promised)
        files = [path.stat().st_size for path in (tmp_path / "kv").iterdir()]
        assert store.used_bytes == sum(files) <= CAP
        assert not store.counts["damaged"]
        folder.close()
    assert first > KILLS


def test_links_fifos_and_folders_are_no_records(tmp_path: Path) -> None:
    folder = RealFolder(tmp_path / "kv")
    store = RecordStore(folder, CAP)
    names = [store.put(*made(which)) for which in range(3)]
    secret = tmp_path / "secret"
    secret.write_bytes((tmp_path / "kv" / f"{names[0]}.kv").read_bytes())
    for name in names:
        (tmp_path / "kv" / f"{name}.kv").unlink()
    (tmp_path / "kv" / f"{names[0]}.kv").symlink_to(secret)
    os.mkfifo(tmp_path / "kv" / f"{names[1]}.kv")
    (tmp_path / "kv" / f"{names[2]}.kv").mkdir()
    assert not any(served(store, made(which)) for which in range(3))
    assert not RecordStore(folder, CAP).records
    assert secret.exists()


def test_a_file_size_limit_degrades_the_store_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """The system takes a part of a write first, and refuses the rest."""
    folder = RealFolder(tmp_path / "kv")
    store = RecordStore(folder, CAP)
    store.put(*made(0))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
        with pytest.raises(StoreDegraded):
            store.put(*made(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert served(store, made(0))
    assert len(list((tmp_path / "kv").iterdir())) == 1


def _in_a_small_tmpfs(folder: Path, *command: str) -> list[str]:
    """How to run ``command`` where a tmpfs of 300 KB is mounted on ``folder``, seen by it alone."""
    mounting = 'mount -t tmpfs -o size=300k kvasir "$0" && exec "$@"'
    return ["unshare", "-rm", "sh", "-c", mounting, str(folder), *command]


def _said_in_a_small_tmpfs(command: str, tmp_path: Path) -> list[list[str]]:
    mount = tmp_path / "small"
    mount.mkdir()
    if shutil.which("unshare") is None:
        pytest.skip("there is no `unshare` to mount a small tmpfs with")
    tried = subprocess.run(_in_a_small_tmpfs(mount, "true"), capture_output=True, check=False)
    if tried.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {tried.stderr.decode(errors='replace')}")
    done = subprocess.run(
        _in_a_small_tmpfs(mount, sys.executable, CHILD, command, str(mount / "kv")),
        capture_output=True,
        text=True,
        check=True,
    )
    return [line.split() for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("command", "end"), [("fill", ["StoreFull", "0"]), ("overfill", ["StoreDegraded", "0"])]
)
def test_a_full_disk_costs_no_record(command: str, end: list[str], tmp_path: Path) -> None:
    said = _said_in_a_small_tmpfs(command, tmp_path)
    kept = [which for verb, which in said if verb == "kept"]
    assert len(kept) > 2
    assert end in said
    assert (["again", "True"] in said) == (command == "fill")  # room came back, and so did writing
    assert [which for verb, which in said if verb == "served"] == kept
    assert ["files", str(len(kept))] in said
    assert ["found", str(len(kept))] in said
