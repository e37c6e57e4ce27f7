"""The real server in a process of its own, so that its cost shows, and what it answers."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from kvasir.bench.process import WorkerFailed

HOST = "127.0.0.1"
MODEL = "bench"  # an alias, so that the model's own name does not matter
_SERVE = "from kvasir.cli.main import app; app(['serve'])"
_STOP_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A streamed answer: seconds from the request, connecting included, and its usage."""

    first_s: float
    last_s: float  # to the last choice: the last token, or the reason that follows it at once
    total_s: float  # to the end of the stream
    text: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int  # of the prompt
    disk_tokens: int  # of ``cached_tokens``

    @property
    def computed_tokens(self) -> int:
        """Tokens of the prompt that were not reused."""
        return self.prompt_tokens - self.cached_tokens


@contextlib.contextmanager
def served(
    python: str,
    settings: Mapping[str, str],
    *,
    env: Mapping[str, str],
    cwd: Path,
    timeout_s: float,
    stop_s: float = _STOP_S,
) -> Iterator[int]:
    """``kvasir serve`` with ``settings`` (names of ``core.config``) while the block lasts.

    Yields its port once it is healthy; afterwards it is told to stop and gets ``stop_s`` seconds.
    Raises ``WorkerFailed`` if it ends or does not get there, and if it had to be killed.
    """
    port = _free_port()
    given = {f"KVASIR_{name.upper()}": value for name, value in settings.items()}
    clean = {name: value for name, value in env.items() if not name.startswith("KVASIR_")}
    errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed below
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
        stderr=errors,
    )
    with errors:
        try:
            _await_health(process, port, errors, timeout_s)
            yield port
        except BaseException:
            _stop(process, stop_s)
            raise
        stopped = _stop(process, stop_s)
    if not stopped:
        raise WorkerFailed(f"kvasir serve did not stop within {stop_s:g} s and was killed")


def _stop(process: subprocess.Popen[bytes], stop_s: float) -> bool:
    """End ``process``; False where it had to be killed."""
    process.terminate()
    try:
        process.wait(stop_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return False
    return True


def _await_health(
    process: subprocess.Popen[bytes], port: int, errors: IO[bytes], timeout_s: float
) -> None:
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            errors.seek(0)
            last = errors.read().decode(errors="replace").strip().splitlines()[-3:]
            raise WorkerFailed(
                f"kvasir serve ended with code {process.returncode} while starting: "
                f"{' / '.join(last) or 'nothing on stderr'}"
            )
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
    chunks = _stream(port, "/v1/completions", completion(prompt, 1), timeout_s)
    with contextlib.closing(chunks):
        for chunk in chunks:
            if chunk.get("choices"):
                return time.perf_counter() - start_s
    raise WorkerFailed("the server's stream ended before a token came")


def ask(port: int, path: str, body: Mapping[str, Any], timeout_s: float) -> Reply:
    """Have ``body`` answered at ``path`` (completions or chat completions) as a stream.

    Raises ``WorkerFailed`` if the server answers anything but a stream with tokens and usage.
    """
    first_s, last_s, usage, pieces = 0.0, 0.0, None, []
    start_s = time.perf_counter()
    asked = {**body, "stream_options": {"include_usage": True}}
    for chunk in _stream(port, path, asked, timeout_s):
        for choice in chunk.get("choices", ()):
            text = choice.get("text") or choice.get("delta", {}).get("content")
            # A token whose text is held back has its chunk too; that with a chat's role has none.
            if not first_s and choice.get("delta", {}).get("role") is None:
                first_s = time.perf_counter() - start_s
            last_s = time.perf_counter() - start_s
            pieces.append(text or "")
        usage = chunk.get("usage") or usage
    total_s = time.perf_counter() - start_s
    if not first_s or usage is None:
        raise WorkerFailed("the server's stream ended without a token or without its usage")
    details = usage["prompt_tokens_details"]
    return Reply(
        first_s=first_s,
        last_s=last_s,
        total_s=total_s,
        text="".join(pieces),
        prompt_tokens=usage["prompt_tokens"],
        completion_tokens=usage["completion_tokens"],
        cached_tokens=details["cached_tokens"],
        disk_tokens=details["cached_tokens_by_tier"]["disk"],
    )


def completion(prompt: Sequence[int], n_tokens: int) -> dict[str, Any]:
    """The body of a request for exactly ``n_tokens`` tokens after ``prompt``, chosen greedily."""
    return {
        "model": MODEL,
        "prompt": list(prompt),
        "max_tokens": n_tokens,
        "temperature": 0,
        "ignore_eos": True,
    }


def metrics(port: int, timeout_s: float) -> dict[str, float]:
    """The server's metrics, by name with labels as they are written: ``x_total{tier="disk"}``."""
    connection = http.client.HTTPConnection(HOST, port, timeout=timeout_s)
    with contextlib.closing(connection):
        try:
            connection.request("GET", "/metrics")
            lines = connection.getresponse().read().decode().splitlines()
        except (OSError, http.client.HTTPException) as error:
            raise WorkerFailed(f"the server's metrics cannot be read: {error}") from error
    named = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
    return {name: float(value) for name, value in named}


def _stream(
    port: int, path: str, body: Mapping[str, Any], timeout_s: float
) -> Generator[dict[str, Any], None, None]:
    """The JSON chunks of a streamed answer. Raises ``WorkerFailed`` where there is none."""
    connection = http.client.HTTPConnection(HOST, port, timeout=timeout_s)
    with contextlib.closing(connection):
        try:
            connection.request(
                "POST",
                path,
                json.dumps({**body, "stream": True}),
                {"Content-Type": "application/json"},
            )
            response = connection.getresponse()
            last, any_choice = b"", False
            for line in response:
                if line.startswith(b"data: {"):
                    chunk = json.loads(line[6:])
                    any_choice = any_choice or bool(chunk.get("choices"))
                    yield chunk
                last = line.strip() or last
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise WorkerFailed(f"the server's stream broke: {error}") from error
    if not any_choice:
        said = last[:200].decode(errors="replace")
        raise WorkerFailed(f"the server answered {response.status} and no token: {said}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
