"""What doctor says of stored KV: what is of use, what an upgrade costs; and it changes nothing."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from stored_samples import REALM, keep

from kvasir.cli.home import Home, open_home
from kvasir.cli.stored_report import stored_lines, stored_report
from kvasir.core.config import Config
from kvasir.core.realm import Realm
from kvasir.tiers.record import VERSION

VERSION_1 = Path(__file__).parents[2] / "fixtures" / "record_v1"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return open_home(tmp_path / "home")


def report(home: Home, realm: Realm | None = REALM, **settings: Any) -> dict[str, Any]:
    return stored_report(Config(home=home.path, **settings), realm)


def sums(told: dict[str, Any]) -> tuple[int, int, float, int]:
    return told["records"], told["tokens"], told["compute_s"], told["unsaid_records"]


def test_a_home_without_a_folder_gets_none(home: Home) -> None:
    told = report(home)
    assert sums(told["all"]) == (0, 0, 0, 0)
    assert not home.stored.exists()
    assert "0 records" in "\n".join(stored_lines(told))


def test_what_is_of_use_is_told_apart_from_what_is_not_by_what_differs(home: Home) -> None:
    other = dataclasses.replace(REALM, weights="other")
    both = dataclasses.replace(other, tokenizer="other")
    keep(home, 1, namespace_tag=b"a" * 16)
    keep(home, 2, namespace_tag=b"b" * 16, realm=other)
    keep(home, 3, namespace_tag=b"a" * 16, realm=other, compute_s=0.0)
    keep(home, 4, namespace_tag=b"a" * 16, realm=both, compute_s=5.0)
    told = report(home)
    assert sums(told["all"]) == (4, 32, 9.0, 1)
    assert told["all"]["bytes"] == sum(path.stat().st_size for path in home.stored.iterdir())
    assert sums(told["usable"]) == (1, 8, 2.0, 0)
    assert [(group["differs_in"], sums(group)) for group in told["of_no_use"]] == [
        (["weights"], (2, 16, 2.0, 1)),
        (["weights", "tokenizer"], (1, 8, 5.0, 0)),
    ]
    text = "\n".join(stored_lines(told))
    assert "other weights: 2 records, 16 tokens" in text
    assert "takes about 2 s, 1 not counted" in text
    assert "other weights and tokenizer: 1 record," in text


def test_records_of_the_format_before_are_told(home: Home) -> None:
    home.stored.mkdir()
    for path in VERSION_1.glob("*.kv"):
        shutil.copy(path, home.stored)
    told = report(home)
    assert told["unreadable"] == 0
    assert told["older_format"]["records"] == 1
    assert told["older_format"]["bytes"] == 4448
    assert told["of_no_use"][0]["differs_in"] == ["numerics"]
    text = "\n".join(stored_lines(told))
    assert "in the format before version 2: 1 record," in text
    assert "do not say how long" in text


def test_without_a_model_nothing_is_claimed_of_use(home: Home) -> None:
    keep(home, 1, namespace_tag=b"a" * 16)
    told = report(home, None)
    assert told["usable"] is told["of_no_use"] is None
    assert sums(told["all"]) == (1, 8, 2.0, 0)
    assert "not known without the model" in "\n".join(stored_lines(told))


def test_what_is_broken_is_counted_and_left_alone(home: Home) -> None:
    name = keep(home, 1, namespace_tag=b"a" * 16)
    good = (home.stored / f"{name}.kv").read_bytes()
    broken = {
        "0" * 64 + ".kv": good,  # the name of another record
        "1" * 64 + ".kv": good[:-1],
        "2" * 64 + ".kv": good[:10],
        "3" * 64 + ".kv": b"",
        "4" * 64 + ".kv": good[:12] + b"\xff" * 4 + good[16:],  # a header of 4 GiB
        "5" * 64 + ".kv": bytes(len(good)),
    }
    for file_name, data in broken.items():
        (home.stored / file_name).write_bytes(data)
    os.mkfifo(home.stored / ("6" * 64 + ".kv"))
    (home.stored / ("7" * 64 + ".kv")).symlink_to(home.stored / f"{name}.kv")
    (home.stored / ("8" * 64 + ".kv")).mkdir()
    (home.stored / f"{'9' * 64}.part").write_bytes(b"being written")
    before = sorted(home.stored.iterdir())
    told = report(home)
    assert (told["all"]["records"], told["unreadable"]) == (1, 9)
    assert sorted(home.stored.iterdir()) == before
    assert "9 files of no use: no whole records" in "\n".join(stored_lines(told))


def test_what_a_newer_server_wrote_is_no_damage(home: Home) -> None:
    name = keep(home, 1, namespace_tag=b"a" * 16)
    good = (home.stored / f"{name}.kv").read_bytes()
    newer = bytearray(good[:8] + (VERSION + 1).to_bytes(4, "little") + good[12:])
    newer[40] ^= 1  # with the old version it would not verify: it was written with this one
    (home.stored / ("0" * 64 + ".kv")).write_bytes(newer)
    told = report(home)
    assert (told["all"]["records"], told["unreadable"]) == (1, 0)
    assert told["newer_format"] == {"files": 1, "bytes": len(good)}
    assert f"in a format after version {VERSION}: 1 file" in "\n".join(stored_lines(told))


def test_a_folder_that_cannot_be_read_is_said(home: Home, tmp_path: Path) -> None:
    home.stored.symlink_to(tmp_path)
    assert "cannot be read" in "\n".join(stored_lines(report(home)))


def test_the_cap_is_told_with_its_reason(home: Home) -> None:
    told = report(home, disk_gib=1.0)
    assert told["cap_bytes"] == 2**30
    assert "cap 1.0 GiB, disk_gib is 1" in stored_lines(told)
