"""The parent's side of a worker process: start it, ask it, end it.

Invariant: after ``close`` (or the end of the ``with`` block) the process is gone, whatever it was
doing.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from kvasir.core.errors import KvasirError

PACKAGE = Path(__file__).resolve().parent.parent


class WorkerFailed(KvasirError):
    """A worker refused a command, died, or did not answer in time."""


class Worker:
    """A child process that speaks JSON lines. Used by one thread only."""

    def __init__(
        self, command: Sequence[str], *, env: Mapping[str, str], cwd: Path, timeout_s: float
    ) -> None:
        """Start ``command``; ``timeout_s`` bounds every single answer."""
        self._timeout_s = timeout_s
        self._unread = b""
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        self.started_s = time.perf_counter()
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=dict(env),
            cwd=cwd,
            bufsize=0,
        )

    def ask(self, op: str, **fields: Any) -> Any:
        """Send a command and wait for its value. Raises ``WorkerFailed``."""
        line = json.dumps({"op": op, **fields}).encode() + b"\n"
        stdin = self._process.stdin
        try:
            while line and stdin is not None:  # an unbuffered pipe may take a part only
                line = line[stdin.write(line) :]
        except BrokenPipeError as error:
            raise WorkerFailed(self._death(op)) from error
        try:
            reply = json.loads(self._line(op))
        except ValueError as error:
            raise WorkerFailed(f"{op!r} was answered with what is not JSON: {error}") from error
        if not reply["ok"]:
            raise WorkerFailed(f"{op!r} failed: {reply['error']}")
        return reply["value"]

    def _line(self, op: str) -> bytes:
        stdout = self._process.stdout
        if stdout is None:
            raise WorkerFailed("the worker has no stdout")
        deadline_s = time.monotonic() + self._timeout_s
        while b"\n" not in self._unread:
            left_s = deadline_s - time.monotonic()
            ready = select.select([stdout], [], [], max(0.0, left_s))[0]
            if not ready:
                raise WorkerFailed(
                    f"{op!r} was not answered within {self._timeout_s:g} s; "
                    "a slower machine needs a larger --timeout"
                )
            piece = os.read(stdout.fileno(), 1 << 20)
            if not piece:
                raise WorkerFailed(self._death(op))
            self._unread += piece
        line, self._unread = self._unread.split(b"\n", 1)
        return line

    def _death(self, op: str) -> str:
        code = self._process.wait()
        self._stderr.seek(0)
        last = self._stderr.read().decode(errors="replace").strip().splitlines()[-3:]
        said = " / ".join(last) or "nothing on stderr"
        return f"the process ended with code {code} during {op!r}: {said}"

    def close(self) -> None:
        """End the process: by the end of its stdin, by force if that does not do."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._stderr.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._process.kill()
        self.close()


def only_kvasir(folder: Path) -> Path:
    """Put a link to this very package into ``folder`` and give the folder back.

    As an import path it offers Kvasir and nothing else, so that another interpreter gets the code
    that is being measured but none of the packages installed beside it.
    """
    link = folder / PACKAGE.name
    if not link.is_symlink():
        link.symlink_to(PACKAGE, target_is_directory=True)
    return folder


def environment(base: Mapping[str, str], *, threads: int, import_path: Path) -> dict[str, str]:
    """The environment of a worker: ``threads`` compute threads, no network, Kvasir importable."""
    inherited = base.get("PYTHONPATH")
    return {
        **base,
        "PYTHONPATH": os.pathsep.join(p for p in (str(import_path), inherited) if p),
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }


def once(
    command: Sequence[str],
    request: Mapping[str, Any],
    *,
    env: Mapping[str, str],
    cwd: Path,
    timeout_s: float,
) -> dict[str, Any]:
    """Have ``command`` answer one request, JSON on stdin, with one line of JSON on stdout.

    Raises ``WorkerFailed`` if it does not.
    """
    name = command[-1]
    try:
        done = subprocess.run(
            list(command),
            input=json.dumps(request),
            capture_output=True,
            text=True,
            env=dict(env),
            cwd=cwd,
            timeout=timeout_s,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise WorkerFailed(f"{name} did not answer: {error}") from error
    if done.returncode:
        said = " / ".join(done.stderr.strip().splitlines()[-3:]) or "nothing on stderr"
        raise WorkerFailed(f"{name} ended with code {done.returncode}: {said}")
    try:
        reply: dict[str, Any] = json.loads(done.stdout)
    except ValueError as error:
        raise WorkerFailed(f"{name} answered with what is not JSON: {error}") from error
    return reply
