"""Drives a server that is killed: starts it, converses with it, and judges every answer.

Invariants that are checked with every answer, also one that was cut off: its text is what the
serial oracle says, and what was reused is no more than the beginning that the same tenant has sent
before.
"""

from __future__ import annotations

import hmac
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from bisect import bisect, insort
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from serving_child import CAP_BYTES, KEYS
from virtual_server import PRINTABLE

from kvasir.cli.home import SECRET_BYTES, Home
from kvasir.sched.virtual import expected_answer

START_S = 60.0  # on a machine that is busy with something else
CHILD = Path(__file__).with_name("serving_child.py")


class Gone(Exception):
    """The server is gone, and the answer was not received in full."""


@dataclass(frozen=True)
class Ask:
    """A request, which determines its answer."""

    key: str
    prompt: str
    max_tokens: int
    seed: int
    n: int = 1
    stream: bool = False

    @property
    def tenant(self) -> str:
        return KEYS[self.key]


@dataclass(frozen=True)
class Reuse:
    """What an answer said of its prompt's KV."""

    prompt_tokens: int
    memory: int
    disk: int


class Tenants:
    """What each tenant has ever sent, and what the answers to it have to be. Thread-safe."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._lock = threading.Lock()
        self._sent: dict[str, list[str]] = defaultdict(list)  # in order

    def expected(self, ask: Ask) -> list[str]:
        """The texts of all choices."""
        namespace = hmac.digest(self._secret, ask.tenant.encode(), "sha256")
        prompt = [ord(character) - 32 for character in ask.prompt]
        return [
            "".join(
                chr(32 + token)
                for token in expected_answer(
                    namespace,
                    prompt,
                    ask.max_tokens,
                    seed=ask.seed,
                    choice=choice,
                    vocab_size=PRINTABLE,
                )
            )
            for choice in range(ask.n)
        ]

    def send(self, ask: Ask, answers: list[str]) -> None:
        """Take note that ``ask`` goes out, whatever becomes of it."""
        with self._lock:
            for answer in answers:
                insort(self._sent[ask.tenant], ask.prompt + answer)

    def known(self, wanted: Ask, answers: list[str]) -> int:
        """How many characters of its prompt begin something else that the tenant has sent by now.
        In order, the closest are its neighbours."""
        with self._lock:
            sent = self._sent[wanted.tenant]
            for answer in answers:
                sent.remove(wanted.prompt + answer)
            at = bisect(sent, wanted.prompt)
            near = sent[max(0, at - 1) : at + 1]
            for answer in answers:
                insort(sent, wanted.prompt + answer)
        return max((_common(wanted.prompt, other) for other in near), default=0)


class Child:
    """One life of the server."""

    def __init__(self, home: Path, stderr: Path) -> None:
        self.killed = threading.Event()
        self.url = ""
        with stderr.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(CHILD), str(home)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "PYTHONPATH": str(CHILD.parent.parent)},
            )

    def wait_until_ready(self) -> None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line.startswith("ready "), "the server did not start"
        self.url = f"http://127.0.0.1:{line.split()[1]}"

    def kill(self) -> None:
        """End it as the kernel ends a process: at once, and without a word. Once is enough."""
        if self.killed.is_set():
            return
        self.killed.set()
        self._process.send_signal(signal.SIGKILL)
        code = self._process.wait(START_S)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        assert code == -signal.SIGKILL, f"the server had ended by itself with {code}"

    def client(self, key: str) -> httpx2.Client:
        headers = {"authorization": f"Bearer {key}"}
        return httpx2.Client(base_url=self.url, headers=headers, timeout=START_S)

    def figures(self) -> dict[str, float]:
        """The metrics by name and labels."""
        with self.client("mark") as http:
            lines = http.get("/metrics").text.splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, value in pairs}


def stored(home: Path) -> list[dict[str, Any]]:
    """All records of the server that runs on ``home``, as its owner sees them."""
    transport = httpx2.HTTPTransport(uds=str(Home(home).socket_path))
    with httpx2.Client(transport=transport, base_url="http://localhost", timeout=START_S) as owner:
        records: list[dict[str, Any]] = owner.get("/kvasir/cache").json()["records"]
    return records


def ask(http: httpx2.Client, child: Child, tenants: Tenants, wanted: Ask) -> Reuse:
    """Send ``wanted`` and judge the answer. Raises ``Gone`` where the server was killed meanwhile;
    what it had said until then is judged too."""
    expected = tenants.expected(wanted)
    tenants.send(wanted, expected)
    body = {
        "prompt": wanted.prompt,
        "max_tokens": wanted.max_tokens,
        "seed": wanted.seed,
        "n": wanted.n,
    }
    said = ["" for _ in expected]
    headers = {"authorization": f"Bearer {wanted.key}"}
    try:
        if wanted.stream:
            usage = _streamed(http, body, headers, said)
        else:
            usage = _whole(http, body, headers, said)
    except httpx2.TransportError as error:
        if not child.killed.wait(5):
            raise AssertionError("the server is gone, and nobody killed it") from error
        for text, whole in zip(said, expected, strict=True):
            assert whole.startswith(text), f"{text!r} was said instead of {whole!r}: {wanted}"
        raise Gone from error
    assert said == expected, f"{said} was said instead of {expected}: {wanted}"
    details = usage["prompt_tokens_details"]
    tiers = details["cached_tokens_by_tier"]
    reuse = Reuse(usage["prompt_tokens"], tiers["memory"], tiers["disk"])
    assert reuse.memory + reuse.disk == details["cached_tokens"]
    assert reuse.prompt_tokens == len(wanted.prompt)
    known = tenants.known(wanted, expected)
    assert details["cached_tokens"] <= known, (
        f"{details['cached_tokens']} tokens were reused and {known} sent before: {wanted}"
    )
    return reuse


def _whole(
    http: httpx2.Client, body: dict[str, Any], headers: dict[str, str], said: list[str]
) -> dict[str, Any]:
    response = http.post("/v1/completions", json=body, headers=headers)
    assert response.status_code == 200, response.text
    reply = response.json()
    for choice in reply["choices"]:
        said[choice["index"]] = choice["text"]
    usage: dict[str, Any] = reply["usage"]
    return usage


def _streamed(
    http: httpx2.Client, body: dict[str, Any], headers: dict[str, str], said: list[str]
) -> dict[str, Any]:
    body = {**body, "stream": True, "stream_options": {"include_usage": True}}
    usage: dict[str, Any] = {}
    with http.stream("POST", "/v1/completions", json=body, headers=headers) as response:
        assert response.status_code == 200, response.read()
        for line in response.iter_lines():
            if line == "data: [DONE]":
                return usage
            if line:
                event = json.loads(line.removeprefix("data: "))
                assert "error" not in event, event
                usage = event.get("usage") or usage
                for choice in event["choices"]:
                    said[choice["index"]] += choice["text"]
    raise AssertionError("the stream ended without an end")


def text(rng: random.Random, n_tokens: int) -> str:
    return "".join(rng.choices("etaoin shrdlu", k=n_tokens))


def _common(a: str, b: str) -> int:
    """Length of the common beginning."""
    differs = (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    return next(differs, min(len(a), len(b)))


def secret_of(home: Path) -> bytes:
    """The secret from which the namespaces of a home's tenants follow."""
    secret = (home / "secret").read_bytes()
    assert len(secret) == SECRET_BYTES
    return secret


def files_of(home: Path) -> list[str]:
    """What lies in the folder of stored KV, which is not there before the first start."""
    try:
        return os.listdir(home / "kv")
    except FileNotFoundError:
        return []


def check_disk(home: Path) -> None:
    """What lies there exceeds the cap at no moment. All that are listed were there together, and a
    file that is being written counts in full from its beginning."""
    sizes = []
    for name in files_of(home):
        try:
            sizes.append((home / "kv" / name).stat().st_size)
        except FileNotFoundError:
            continue
    assert sum(sizes) <= CAP_BYTES, f"{sum(sizes)} bytes lie on a disk tier of {CAP_BYTES}"


def wait_for(condition: Any, what: str, timeout_s: float = 30.0, every_s: float = 0.02) -> None:
    until_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until_s, f"waited in vain for {what}"
        time.sleep(every_s)
