"""The record store on a real disk: kill -9 at any moment, odd files, limits of the system."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from storing_child import CAP, PLANE_BYTES, sample

from kvasir.tiers.folder import RealFolder
from kvasir.tiers.record import Damaged
from kvasir.tiers.store import RecordStore, StoreDegraded

KILLS = int(os.environ.get("KVASIR_TEST_KILLS", "200"))


def served(store: RecordStore, which: int) -> bool:
    """Whether record ``which`` is there; then it is right."""
    record, planes = sample(which)
    into = [memoryview(bytearray(PLANE_BYTES)) for _ in planes]
    try:
        store.get(record.name, into)
    except (KeyError, Damaged):
        return False
    assert [bytes(plane) for plane in into] == planes
    return True


def test_what_was_acknowledged_is_there_after_kill_9(tmp_path: Path) -> None:
    rng = random.Random(0)
    promised: set[int] = set()
    first = 0
    for _ in range(KILLS):
        child = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("storing_child.py")),
             str(tmp_path / "kv"), str(first)],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
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
        assert all(served(store, which) for which in promised)
        files = [path.stat().st_size for path in (tmp_path / "kv").iterdir()]
        assert store.used_bytes == sum(files) <= CAP
        assert not store.counts["damaged"]
        folder.close()
    assert first > KILLS


def test_links_fifos_and_folders_are_no_records(tmp_path: Path) -> None:
    folder = RealFolder(tmp_path / "kv")
    store = RecordStore(folder, CAP)
    names = [store.put(*sample(which)) for which in range(3)]
    secret = tmp_path / "secret"
    secret.write_bytes((tmp_path / "kv" / f"{names[0]}.kv").read_bytes())
    for name in names:
        (tmp_path / "kv" / f"{name}.kv").unlink()
    (tmp_path / "kv" / f"{names[0]}.kv").symlink_to(secret)
    os.mkfifo(tmp_path / "kv" / f"{names[1]}.kv")
    (tmp_path / "kv" / f"{names[2]}.kv").mkdir()
    assert not any(served(store, which) for which in range(3))
    assert not RecordStore(folder, CAP).records
    assert secret.exists()


def test_a_file_size_limit_degrades_the_store_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """The system takes a part of a write first, and refuses the rest."""
    folder = RealFolder(tmp_path / "kv")
    store = RecordStore(folder, CAP)
    store.put(*sample(0))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
        with pytest.raises(StoreDegraded):
            store.put(*sample(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert served(store, 0)
    assert len(list((tmp_path / "kv").iterdir())) == 1
