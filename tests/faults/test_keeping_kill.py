"""kill -9 while texts are read, held, imported and dropped: what was durable is there."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from keeping_child import (
    CAP_BYTES,
    EXPORTED,
    NAMESPACE,
    THEIRS,
    ask,
    config_of,
    source_of,
    text_of,
    tokens_of,
    wait_durable,
)
from virtual_server import make_engine

KILLS = int(os.environ.get("KVASIR_TEST_KEEPING_KILLS", "8"))
CHILD = str(Path(__file__).with_name("keeping_child.py"))


def export_all(home: Path, exports: Path) -> None:
    client, _, _, _ = make_engine(stored=config_of(home))
    for source in range(EXPORTED):
        tokens = text_of(-1 - source)
        ask(client, tokens, THEIRS, f"r{source}")
        assert wait_durable(client, tokens, THEIRS)
        for index, parcel in enumerate(client.parcels(THEIRS, tokens)):
            (exports / f"{source}-{index}").write_bytes(parcel)
    client.stop()


def test_what_was_said_to_be_durable_is_there_after_kill_9(tmp_path: Path) -> None:
    rng = random.Random(0)
    home, exports = tmp_path / "home", tmp_path / "exports"
    for folder in (home, exports, tmp_path / "theirs"):
        folder.mkdir()
    export_all(tmp_path / "theirs", exports)
    promised: list[int] = []
    first = imported = 0
    for _ in range(KILLS):
        child = subprocess.Popen(
            [
                sys.executable,
                CHILD,
                str(home),
                str(exports),
                str(first),
                ",".join(map(str, promised)),
            ],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        )
        assert child.stdout is not None
        lines = [child.stdout.readline()]
        assert lines[0].startswith("begin")
        time.sleep(rng.uniform(0, 0.3))
        child.send_signal(signal.SIGKILL)
        lines += child.stdout.read().splitlines()
        child.stdout.close()
        child.wait()
        for line in lines[1:]:
            verb, number = line.split()
            which = int(number)
            if verb == "kept":
                promised.append(which)
                imported += source_of(which) is not None
            elif which in promised:
                promised.remove(which)
            first = max(first, which + 1)
        client, cache, _, _ = make_engine(stored=config_of(home))
        try:
            for which in promised:
                found = client.residence(NAMESPACE, tokens_of(which))
                assert found.durable, f"text {which} was kept, and now: {found}"
            assert client.verify() == []
            assert cache.stored.shelves[-1].used_bytes <= CAP_BYTES
            client.call(cache.check)
        finally:
            client.stop()
    assert first > KILLS
    assert imported


def _listed(numbers: list[int]) -> str:
    return ",".join(map(str, numbers))
