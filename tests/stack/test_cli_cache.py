"""`kvasir cache` and `kvasir doctor` as processes: without a server, beside one, and after one."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cli_process import accounts, environment, kvasir, serving


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def test_an_empty_home_is_listed_summed_verified_and_cleared(home: Path) -> None:
    assert kvasir(home, "cache", "list").stdout == "nothing is stored\n"
    assert json.loads(kvasir(home, "cache", "size", "--json").stdout) == {
        "tiers": [],
        "tenants": [],
    }
    verified = kvasir(home, "cache", "verify", "--json")
    assert verified.returncode == 0
    assert json.loads(verified.stdout)["damaged"] == []
    cleared = kvasir(home, "cache", "clear", "--tenant", "local")
    assert cleared.stdout == "0 records cleared\n"


def test_what_is_wrong_is_said_without_a_traceback(home: Path) -> None:
    for arguments in (["--tier", "tape"], ["--tenant", "nobody"]):
        done = kvasir(home, "cache", "clear", *arguments)
        assert done.returncode in (1, 2)
        assert arguments[1] in done.stderr
        assert "Traceback" not in done.stderr
        assert done.stdout == ""


def test_no_weights_are_needed_to_look(home: Path) -> None:
    """Looking must not take the seconds and the memory that torch takes."""
    code = (
        "import sys; from kvasir.cli.main import app\n"
        "app(['cache', 'list'], standalone_mode=False)\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(home),
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout == "nothing is stored\nFalse\n"


def test_doctor_tells_of_stored_kv_and_changes_nothing(home: Path, embedded_gguf: Path) -> None:
    done = kvasir(home, "doctor", str(embedded_gguf), "--disk-gib", "1.5", "--json")
    assert done.returncode == 0, done.stderr
    stored = json.loads(done.stdout)["stored"]
    assert stored["folder"] == str(home / "kv")
    assert (stored["cap_bytes"], stored["all"]["records"]) == (3 * 2**29, 0)
    assert not (home / "kv").exists()


def test_what_a_server_kept_is_seen_beside_it_after_it_and_by_the_next(
    home: Path, embedded_gguf: Path, tmp_path: Path
) -> None:
    text = tmp_path / "story.txt"
    text.write_text("The lighthouse keeper was called Anselm. He kept two goats. " * 20)
    ask = ("ask", str(text), "Who?", "--max-tokens", "2")
    arguments = [str(embedded_gguf), "--dtype", "float32"]
    with serving(home, *arguments) as first:
        asked = kvasir(home, *ask)
        (cold,) = accounts(asked.stderr)
        kept = _stored_tokens(home, at_least=cold.prompt - 1)
        assert {record["tenant"] for record in kept} == {"local"}
        assert all(record["differs_in"] == [] for record in kept)
        assert kvasir(home, "cache", "verify").returncode == 0
        first.signal(signal.SIGKILL)
        first.wait()
    after = json.loads(kvasir(home, "cache", "list", "--json").stdout)["records"]
    assert {record["name"] for record in after} == {record["name"] for record in kept}

    told = _doctor(home, embedded_gguf, "float32")
    assert told["usable"]["tokens"] == sum(record["tokens"] for record in kept)
    assert told["of_no_use"] == []
    told = _doctor(home, embedded_gguf, "bfloat16")
    assert told["usable"]["records"] == 0
    assert [group["differs_in"] for group in told["of_no_use"]] == [["numerics", "layout"]]
    assert told["of_no_use"][0]["compute_s"] > 0

    with serving(home, *arguments):
        again = kvasir(home, *ask)
        (warm,) = accounts(again.stderr)
        assert (again.stdout, warm.computed) == (asked.stdout, 1)
        assert f"{warm.reused:,} from disk" in again.stderr
        cleared = json.loads(kvasir(home, "cache", "clear", "--json").stdout)["cleared"]
        assert cleared >= len(kept)
        assert json.loads(kvasir(home, "cache", "list", "--json").stdout)["records"] == []
        assert accounts(kvasir(home, *ask).stderr)[0].computed > 1  # out of the pool as well


def _stored_tokens(home: Path, at_least: int) -> list[dict[str, Any]]:
    """What is stored, as soon as so many tokens are."""
    until_s = time.monotonic() + 60
    while True:
        records = json.loads(kvasir(home, "cache", "list", "--json").stdout)["records"]
        if sum(record["tokens"] for record in records) >= at_least:
            return list(records)
        assert time.monotonic() < until_s, f"only {records} are stored"


def _doctor(home: Path, model: Path, dtype: str) -> dict[str, Any]:
    done = kvasir(home, "doctor", str(model), "--dtype", dtype, "--json")
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout)["stored"])
