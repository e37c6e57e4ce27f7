"""Time to first token through the real server in a process of its own, so that its cost shows."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from kvasir.bench.process import WorkerFailed

HOST = "127.0.0.1"
MODEL = "bench"  # an alias, so that the model's own name does not matter
_SERVE = "from kvasir.cli.main import app; app(['serve'])"
_STOP_S = 30.0


@contextlib.contextmanager
def served(
    python: str, settings: Mapping[str, str], *, env: Mapping[str, str], cwd: Path, timeout_s: float
) -> Iterator[int]:
    """``kvasir serve`` with ``settings`` (names of ``core.config``) while the block lasts.

    Yields its port once it is healthy. Raises ``WorkerFailed`` if it ends or does not get there.
    """
    port = _free_port()
    given = {f"KVASIR_{name.upper()}": value for name, value in settings.items()}
    clean = {name: value for name, value in env.items() if not name.startswith("KVASIR_")}
    process = subprocess.Popen(
        [python, "-c", _SERVE],
        env={
            **clean,
            **given,
            "KVASIR_HOST": HOST,
            "KVASIR_PORT": str(port),
            "KVASIR_ALIAS": MODEL,
        },
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _await_health(process, port, timeout_s)
        yield port
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await_health(process: subprocess.Popen[bytes], port: int, timeout_s: float) -> None:
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            raise WorkerFailed(f"kvasir serve ended with code {process.returncode} while starting")
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection(HOST, port, timeout=5)
            with contextlib.closing(connection):
                connection.request("GET", "/health")
                if connection.getresponse().status == http.client.OK:
                    return
        time.sleep(0.1)
    raise WorkerFailed(f"kvasir serve was not healthy within {timeout_s:g} s")


def first_token_s(port: int, prompt: Sequence[int], timeout_s: float) -> float:
    """Seconds from the request (connecting included) to the first streamed token of a completion.

    Raises ``WorkerFailed`` if the server answers anything else.
    """
    start_s = time.perf_counter()
    connection = http.client.HTTPConnection(HOST, port, timeout=timeout_s)
    with contextlib.closing(connection):
        try:
            connection.request(
                "POST",
                "/v1/completions",
                json.dumps(
                    {
                        "model": MODEL,
                        "prompt": list(prompt),
                        "max_tokens": 1,
                        "temperature": 0,
                        "ignore_eos": True,
                        "stream": True,
                    }
                ),
                {"Content-Type": "application/json"},
            )
            response = connection.getresponse()
            last = b""
            for line in response:
                if line.startswith(b"data: {") and json.loads(line[6:]).get("choices"):
                    return time.perf_counter() - start_s
                last = line.strip() or last
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise WorkerFailed(f"the server's stream broke: {error}") from error
    said = last[:200].decode(errors="replace")
    raise WorkerFailed(f"the server answered {response.status} and no token: {said}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
