"""Kvasir's turn: a server is started on a home of its own, stopped, and started again on it.

Everything goes over HTTP to `kvasir serve` in a process of its own. The home is new in each turn,
so nothing can come from the turn before.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvasir.bench import http
from kvasir.bench.http import Reply
from kvasir.bench.process import WorkerFailed
from kvasir.bench.restore_disk import drop_cached, read_through
from kvasir.bench.restore_sizes import Texts
from kvasir.bench.results import Sample
from kvasir.core.config import STORED_FOLDER
from kvasir.tiers.record_file import SUFFIX

SAVING = "kvasir"
PLAIN = "kvasir, nothing saved"
GB = 1e9
_STOP_S = 120.0  # what a stopping server may take to save what it has
_QUIET_S = 1.0
_SAVED = 'kvasir_tier_saved_bytes_total{tier="disk"}'
_LOADED = 'kvasir_tier_loaded_bytes_total{tier="disk"}'
_UNSAVED = 'kvasir_tier_unsaved_blocks_total{tier="disk"}'
_TOKENS = 'kvasir_tier_tokens{tier="disk"}'
_USED = 'kvasir_tier_bytes{kind="used",tier="disk"}'
_READ = 'kvasir_tier_read_bytes_per_second{tier="disk"}'
_WRITE = 'kvasir_tier_write_bytes_per_second{tier="disk"}'


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where and how servers are started."""

    python: str
    settings: Mapping[str, str]  # but for home and the size of the pool
    env: Mapping[str, str]
    cwd: Path
    home: Path
    one_window_gib: float
    timeout_s: float

    def serve(self, *, windows: int, **settings: str) -> contextlib.AbstractContextManager[int]:
        """A server whose pool holds so many windows."""
        return http.served(
            self.python,
            {
                **self.settings,
                "home": str(self.home),
                "kv_gib": str(windows * self.one_window_gib),
                **settings,
            },
            env=self.env,
            cwd=self.cwd,
            timeout_s=self.timeout_s,
            stop_s=_STOP_S,
        )

    @property
    def records(self) -> list[Path]:
        """The files of stored KV."""
        return sorted((self.home / STORED_FOLDER).glob(f"*{SUFFIX}"))


def plain_turn(place: Place, texts: Texts, repeat: int) -> Iterator[Sample]:
    """Read two texts, one right after the other, where nothing is saved."""
    with place.serve(windows=4, disk_gib="0") as port:
        asked = _Server(place, port)
        asked.ask(texts.warm_up)
        first, second = asked.ask(texts.text, texts.questions[0]), asked.ask(texts.second)
        yield _reading(PLAIN, repeat, first, second)
        yield _first_token(PLAIN, repeat, "cold", first)


def saving_turn(place: Place, texts: Texts, repeat: int) -> Iterator[Sample]:
    """All cases of a question on a text that was read before."""
    yield from _first_server(place, texts, repeat)
    questions, fillers = texts.questions[2:], texts.fillers
    yield from _next_server(place, texts.text, questions[:2], fillers[0], repeat, "cold")
    yield from _next_server(place, texts.text, questions[2:], fillers[1], repeat, "warm")


def _first_server(place: Place, texts: Texts, repeat: int) -> Iterator[Sample]:
    with place.serve(windows=4) as port:
        server = _Server(place, port)
        server.ask(texts.warm_up)
        server.await_saved()
        first, second = server.ask(texts.text, texts.questions[0]), server.ask(texts.second)
        yield _first_token(SAVING, repeat, "cold", first)
        yield _reading(SAVING, repeat, first, second)
        server.await_saved()
        memory = server.ask(texts.text, texts.questions[1])
        yield _first_token(SAVING, repeat, "memory", memory)
        server.await_saved()
        found = server.metrics()
    yield _sample(SAVING, repeat, "write", found[_WRITE] / GB, unsaved_blocks=found[_UNSAVED])
    token_bytes = found[_USED] / found[_TOKENS]
    yield _sample(SAVING, repeat, "disk_token", token_bytes, tokens=found[_TOKENS])


def _next_server(
    place: Place,
    text: Sequence[int],
    questions: Sequence[Sequence[int]],
    filler: Sequence[int],
    repeat: int,
    cache: str,
) -> Iterator[Sample]:
    """A new process, asked at once; then, in the same process, once more after another text has
    taken the pool. ``cache`` says whether the page cache is "cold" or "warm" both times."""
    with place.serve(windows=1) as port:
        server = _Server(place, port)
        yield from _restored(server, text, questions[0], repeat, "restart", cache)
        server.ask(filler)
        server.await_saved()
        yield from _restored(server, text, questions[1], repeat, "evicted", cache)


def _restored(
    server: _Server,
    text: Sequence[int],
    question: Sequence[int],
    repeat: int,
    case: str,
    cache: str,
) -> Iterator[Sample]:
    files = server.place.records
    left_bytes = None
    if cache == "cold":
        left_bytes = drop_cached(files)
    else:
        read_through(files)
    before = server.metrics()
    reply = server.ask(text, question)
    after = server.metrics()
    yield _first_token(
        SAVING,
        repeat,
        f"{case}_{cache}",
        reply,
        loaded_bytes=after[_LOADED] - before[_LOADED],
        page_cache_left_bytes=left_bytes,
    )
    if case == "restart":  # the rate is that of this restore alone: the process has made no other
        yield _sample(SAVING, repeat, f"read_{cache}", after[_READ] / GB)


@dataclass(frozen=True, slots=True)
class _Server:
    place: Place
    port: int

    def ask(self, text: Sequence[int], question: Sequence[int] = ()) -> Reply:
        """One token after ``text`` and ``question``."""
        body = http.completion([*text, *question], 1)
        return http.ask(self.port, "/v1/completions", body, self.place.timeout_s)

    def metrics(self) -> dict[str, float]:
        return http.metrics(self.port, self.place.timeout_s)

    def await_saved(self) -> None:
        """Return when nothing has been saved for a while."""
        deadline_s = time.monotonic() + self.place.timeout_s
        saved = -1.0
        while time.monotonic() < deadline_s:
            before, saved = saved, self.metrics()[_SAVED]
            if saved == before:
                return
            time.sleep(_QUIET_S)
        raise WorkerFailed(f"the server was still saving after {self.place.timeout_s:g} s")


def _reading(arm: str, repeat: int, first: Reply, second: Reply) -> Sample:
    return _sample(
        arm,
        repeat,
        "reading",
        (first.first_s + second.first_s) / 2,
        first_s=first.first_s,
        second_s=second.first_s,
        computed_tokens=first.computed_tokens + second.computed_tokens,
    )


def _first_token(arm: str, repeat: int, figure: str, reply: Reply, **facts: Any) -> Sample:
    return _sample(
        arm,
        repeat,
        figure,
        reply.first_s,
        prompt_tokens=reply.prompt_tokens,
        computed_tokens=reply.computed_tokens,
        disk_tokens=reply.disk_tokens,
        **facts,
    )


def _sample(arm: str, repeat: int, figure: str, value: float, **facts: Any) -> Sample:
    return Sample(arm=arm, repeat=repeat, figure=figure, value=value, facts=facts)
