"""`kvasir` as users run it: real processes on the demonstration model."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

START_S = 120.0  # to load on a machine that is busy with something else

_READ = re.compile(r"([\d,]+) tokens read in .*: ([\d,]+) computed, ([\d,]+) reused")


@dataclass(frozen=True)
class Account:
    """What a command says that it read."""

    prompt: int
    computed: int
    reused: int


def accounts(stderr: str) -> list[Account]:
    """Every account in the text of stderr."""
    return [
        Account(*(int(number.replace(",", "")) for number in match.groups()))
        for match in _READ.finditer(stderr)
    ]


def environment(home: Path) -> dict[str, str]:
    """This process's environment with ``home`` and without other settings of Kvasir."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KVASIR_")}
    return {**kept, "KVASIR_HOME": str(home), "KVASIR_KV_GIB": "0.5", "PYTHONUNBUFFERED": "1"}


def kvasir(
    home: Path, *arguments: str, stdin: str | None = None, **settings: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "kvasir", *arguments],
        env=environment(home) | settings,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=START_S,
        check=False,
    )


class Server:
    """A `kvasir serve` on a free port; ``url`` is known once it has announced itself."""

    def __init__(self, home: Path, arguments: Sequence[str]) -> None:
        self.home = home
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kvasir", "serve", *arguments, "--port", "0"],
            env=environment(home),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: queue.Queue[str] = queue.Queue()
        self.errors: list[str] = []
        self._readers = [
            threading.Thread(target=self._read_stdout, daemon=True),
            threading.Thread(target=self._read_stderr, daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        self.url = self._announced()

    def _read_stdout(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)

    def _read_stderr(self) -> None:
        assert self.process.stderr is not None
        self.errors.extend(self.process.stderr)

    def _announced(self) -> str:
        deadline_s = time.monotonic() + START_S
        while self.process.poll() is None and time.monotonic() < deadline_s:
            with contextlib.suppress(queue.Empty):
                match = re.search(r"address +(http://\S+)/v1", self.lines.get(timeout=0.1))
                if match:
                    return match[1]
        raise AssertionError(f"the server did not start: {self.stderr}")

    @property
    def stderr(self) -> str:
        """What it has said on stderr so far."""
        return "".join(self.errors)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def wait(self, timeout_s: float = 60.0) -> int:
        """The exit code."""
        code = self.process.wait(timeout_s)
        for reader in self._readers:
            reader.join(timeout_s)
        return code


@contextlib.contextmanager
def serving(home: Path, *arguments: str) -> Iterator[Server]:
    """A server for the block, killed at its end if it still runs."""
    server = Server(home, arguments)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()
