"""One server for the official clients: a real process on the demonstration model.

These tests run in an environment of their own (`make clients`) that has the clients and not Kvasir;
the server is the `kvasir` command of the product's environment, KVASIR_TEST_COMMAND if it is
elsewhere than in .venv.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from client_server import ALIAS, WINDOW, Address

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    command = os.environ.get("KVASIR_TEST_COMMAND", str(ROOT / ".venv" / "bin" / "kvasir"))
    if not Path(command).exists():
        pytest.skip(f"{command} is not installed; run make clients")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KVASIR_")}
    log = tmp_path_factory.mktemp("server") / "stderr.txt"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [
                command, "serve", "--port", "0", "--alias", ALIAS, "--dtype", "float32",
                "--max-window", str(WINDOW), "--kv-gib", "1",
                "--home", str(tmp_path_factory.mktemp("home") / "home"),
            ],
            stdout=subprocess.PIPE, stderr=errors, text=True, env=kept | {"PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
    try:
        yield _announced(process, log)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def _announced(process: subprocess.Popen[str], log: Path) -> Address:
    model = ""
    assert process.stdout is not None
    for line in process.stdout:
        if match := re.match(r"Kvasir serves (\S+) ", line):
            model = match[1]
        if match := re.search(r"address +(http://\S+)/v1", line):
            return Address(match[1], model)
    raise AssertionError(f"the server did not start: {log.read_text()}")
