"""The layouts that are compared keep what they are given, also after room was reclaimed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kvasir.bench import storage


@pytest.mark.parametrize("name", storage.LAYOUTS)
def test_what_is_put_is_got_again(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 44 * 1024
    monkeypatch.setattr(storage, "RUN_BYTES", size)
    layout = storage.LAYOUTS[name](tmp_path)
    runs = [os.urandom(size) for _ in range(20)]
    for number, run in enumerate(runs):
        layout.put(number, memoryview(run))
    layout.reclaim(range(0, 20, 2))
    layout.put(20, memoryview(runs[0]))
    for number in (*range(1, 20, 2), 20):
        into = memoryview(bytearray(size))
        layout.get(number, into)
        assert bytes(into) == runs[number % 20]


def test_every_layout_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "RUN_BYTES", 44 * 1024)
    for name in storage.LAYOUTS:
        found = storage.measure(name, tmp_path, 4)
        assert found["write_gb_per_s"] > 0
        assert found["read_cold_gb_per_s"] > 0
        assert (found["reclaim_copied_mb"] > 0) == (name == "one pack")
