"""Drives servers that are killed in the midst of work on files and contexts, and judges what is
left: ``Shelf`` is what was acknowledged, ``Life`` one server and what is asked of it.

Invariants that are checked after every kill: what was acknowledged is there as it was; what was
just being done is done or not done; nothing lies in the home that no list names.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx2
from context_child import KEYS, WINDOW
from virtual_server import PRINTABLE, TEMPLATE, byte_tokenizer

from kvasir.contexts.definition import Definition
from kvasir.contexts.outline import outline, unpacked
from kvasir.documents.values import Document, Page
from kvasir.sched.virtual import expected_answer
from kvasir.text.codec import TextCodec
from kvasir.text.template import ChatTemplate
from kvasir.text.transcript import Transcripts

CHILD = Path(__file__).with_name("context_child.py")
START_S = 60.0  # on a machine that is busy with something else
UNFINISHED = ("queued", "in_progress")
SECTION_TOKENS = 448
TAIL = "\nWhen?<|im_end|>\n<|im_start|>assistant\n"


class Gone(Exception):
    """The server is gone, and the reply was not received in full."""


@dataclass(frozen=True, kw_only=True)
class Known:
    """A context: what it is made of, and what was said of how it is kept. ``sure`` is False where
    that was just being changed, to what is in ``or_else``."""

    id: str
    definition: Definition
    parts: tuple[tuple[int, ...], ...]
    name: str | None = None
    pinned: bool = False
    metadata: dict[str, str] = field(default_factory=dict)
    status: str = "queued"
    summaries: bool = False
    or_else: dict[str, Any] = field(default_factory=dict)
    leaving: bool = False  # its deletion was asked for and not acknowledged
    stopping: bool = False  # its reading was asked to end, and that not acknowledged

    @property
    def n_tokens(self) -> int:
        return sum(len(part) for part in self.parts)


@dataclass
class Shelf:
    """Everything that was acknowledged, and the one thing that was under way."""

    files: dict[str, str] = field(default_factory=dict)  # id -> text
    contexts: dict[str, Known] = field(default_factory=dict)
    exports: list[tuple[bytes, Definition]] = field(default_factory=list)
    broken: list[bytes] = field(default_factory=list)  # exports that were cut off
    gone: set[str] = field(default_factory=set)  # ids that must not come back
    uploading: str | None = None
    # what comes of it, and path and arguments of the request, to repeat it
    making: tuple[Known, str, dict[str, Any]] | None = None
    leaving_file: str | None = None


class Codecs:
    """Texts to ids as the server does it."""

    def __init__(self) -> None:
        self.codec = TextCodec(byte_tokenizer(), ChatTemplate(TEMPLATE), Transcripts(2**16))
        self.tail = tuple(self.codec.tokenizer.encode(TAIL, bos=False))
        self._lock = threading.Lock()

    def parts(self, definition: Definition) -> tuple[tuple[int, ...], ...]:
        with self._lock:
            made = outline(self.codec, definition, WINDOW)
        return tuple(tuple(unpacked(part.ids)) for part in made.parts)


def document(name: str, text: str) -> Document:
    return Document(
        name=name, media_type="text/plain", text=text, pages=(Page(0, "1", 0, len(text)),)
    )


def words(rng: random.Random, n_chars: int) -> str:
    """Text that begins like no other, in lines and paragraphs."""
    text = f"{rng.getrandbits(48):x} "
    while len(text) < n_chars:
        text += "".join(rng.choices("etaoin shrdlu", k=rng.randrange(20, 70))).strip()
        text += rng.choice((". ", ".\n", ".\n\n"))
    return text.strip()


class Spawner:
    """A process that starts servers on one home, see ``context_child``."""

    def __init__(self, home: Path, stderr: Path) -> None:
        self._home = home
        with stderr.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(CHILD)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "PYTHONPATH": str(CHILD.parent.parent)},
            )

    def start(self) -> tuple[int, int]:
        """Port and process of a new server."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{self._home}\n")
        self._process.stdin.flush()
        kind, *rest = self._line()
        assert kind == "ready", f"the server ended at its start: {rest}"
        return int(rest[0]), int(rest[1])

    def ended(self) -> int:
        """The exit code of the server that ran."""
        kind, code = self._line()
        assert kind == "ended"
        return int(code)

    def close(self) -> None:
        self._process.kill()
        self._process.wait(START_S)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def _line(self) -> list[str]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the spawner of servers has ended"
        return line.split()


class Life:
    """One server, from its start to its kill."""

    def __init__(self, spawner: Spawner) -> None:
        self._spawner = spawner
        port, self._pid = spawner.start()
        self._killed = threading.Event()
        limits = httpx2.Limits(max_keepalive_connections=4)
        self._http = {
            key: httpx2.Client(
                base_url=f"http://127.0.0.1:{port}",
                headers={"authorization": f"Bearer {key}"},
                timeout=START_S,
                limits=limits,
            )
            for key in KEYS
        }

    def kill(self) -> None:
        """End it as the kernel ends a process; once is enough."""
        if not self._killed.is_set():
            self._killed.set()
            os.kill(self._pid, signal.SIGKILL)

    @contextmanager
    def killed_in(self, seconds: float) -> Iterator[None]:
        """Kill it so many seconds after the beginning of the block, whose end waits for that."""
        timer = threading.Timer(seconds, self.kill)
        timer.start()
        try:
            yield
        finally:
            timer.join()

    def bury(self) -> None:
        """Wait until it is gone."""
        self.kill()
        assert self._spawner.ended() == -signal.SIGKILL, "the server had ended by itself"
        for http in self._http.values():
            http.close()

    def call(self, key: str, method: str, path: str, *, ok: bool = True, **body: Any) -> Any:
        """The JSON of a reply, which is a success where it is to be ``ok``; else the reply. Raises
        ``Gone``."""
        try:
            reply = self._http[key].request(method, path, **body)
        except httpx2.TransportError as error:
            self._check_killed(error)
            raise Gone from error
        if not ok:
            return reply
        assert reply.status_code == 200, f"{method} {path}: {reply.status_code} {reply.text[:500]}"
        return reply.json()

    def stream(self, key: str, path: str, into: bytearray) -> None:
        """GET ``path`` and put what comes ``into`` a buffer. Raises ``Gone``."""
        try:
            with self._http[key].stream("GET", path) as reply:
                assert reply.status_code == 200, reply.read()
                for chunk in reply.iter_raw():
                    into += chunk
        except httpx2.TransportError as error:
            self._check_killed(error)
            raise Gone from error

    def _check_killed(self, error: Exception) -> None:
        if not self._killed.wait(5):
            raise AssertionError("the server is gone, and nobody killed it") from error

    def listed(self, key: str, kind: str) -> dict[str, dict[str, Any]]:
        reply = self.call(key, "GET", f"/v1/{kind}?limit=1000")
        assert not reply["has_more"]
        return {each["id"]: each for each in reply["data"]}

    def computed_tokens(self) -> int:
        """Since its start."""
        for line in self.call("alice-1", "GET", "/metrics", ok=False).text.splitlines():
            if line.startswith("kvasir_computed_tokens_total "):
                return int(float(line.split()[1]))
        raise AssertionError("there is no such figure")


@dataclass(frozen=True)
class Left:
    """What the catalog says of a context that was to be read when the server was killed."""

    unread_tokens: int
    computed_tokens: int
    summaries: bool


def left_to_read(home: Path) -> dict[str, Left]:
    """Of every unfinished context, by the catalog as the kill has left it. A copy is read, so that
    the next server finds what the last one has left."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("catalog.sqlite", "catalog.sqlite-wal"):
            if (home / name).exists():
                shutil.copy(home / name, folder)
        connection = sqlite3.connect(Path(folder) / "catalog.sqlite")
        try:
            found = connection.execute(
                "select c.id, c.computed_tokens, c.definition,"
                " coalesce(sum(case when s.is_read then 0 else s.n_tokens end), 0)"
                " from contexts c join sections s on s.context = c.id"
                " where c.status in ('queued', 'in_progress') group by c.id"
            ).fetchall()
        finally:
            connection.close()
    return {
        id_: Left(int(unread), int(computed), '"summaries":true' in definition)
        for id_, computed, definition, unread in found
    }


def check_home(home: Path, files: set[str], contexts: set[str], *, written: bool) -> None:
    """Nothing lies there that is not listed, and all is there that is; ``written`` says that
    summaries may just be written."""
    lying = {path.name for path in (home / "files").iterdir()}
    assert lying == {f"{id_}.{end}" for id_ in files for end in ("data", "json")}
    lying = {path.name for path in (home / "contexts").iterdir()}
    trees = {name for name in lying if name.endswith(".tree.json")}
    parts = {name for name in lying if name.endswith(".part")}
    assert written or not parts
    assert lying - trees - parts == {f"{id_}.json" for id_ in contexts}
    assert {name.partition(".")[0] for name in trees} <= contexts


def namespace_of(home: Path, key: str) -> bytes:
    return hmac.digest((home / "secret").read_bytes(), KEYS[key].encode(), hashlib.sha256)


def said(codecs: Codecs, namespace: bytes, prompt: Sequence[int], n: int, seed: int) -> str:
    tokens = expected_answer(namespace, prompt, n, seed=seed, vocab_size=PRINTABLE)
    return codecs.codec.tokenizer.decode(tokens)


def settled(known: Known, seen: dict[str, Any]) -> Known:
    """``known`` as it was found to be, after what was just being changed has happened or not."""
    for name in ("name", "pinned", "metadata"):
        allowed = [getattr(known, name)]
        if name in known.or_else:
            allowed.append(known.or_else[name])
        assert seen[name] in allowed, f"{name} of {known.id} is {seen[name]}, not {allowed}"
    new = {n: seen[n] == v for n, v in known.or_else.items()}
    assert len(set(new.values())) <= 1, f"half of a change happened: {known.or_else}, {seen}"
    return replace(
        known,
        name=seen["name"],
        pinned=seen["pinned"],
        metadata=seen["metadata"],
        status=seen["status"],
        or_else={},
        leaving=False,
        stopping=False,
    )


def wait_for(condition: Any, what: str, timeout_s: float = 60.0) -> None:
    until_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until_s, f"waited in vain for {what}"
        time.sleep(0.02)
