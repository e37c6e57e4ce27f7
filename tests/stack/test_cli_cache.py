"""`kvasir cache` and `kvasir doctor` as processes, on a home where no server runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cli_process import environment, kvasir


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
