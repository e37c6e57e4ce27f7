"""A book that is longer than the window through the real server: read, kept, restarted, asked.

What is measured, each phase by the clock of the client: upload with extraction, planning, reading,
and after a restart sweeps of all sections, with what loading their KV alone takes beside them; then
how many planted facts are missed by sweep and by focus. A section's answer does not depend on the
batch around it (greedy, native kernels), so for a fact's sweep its own section is asked alone;
whole sweeps of the first facts are compared with that.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx2

from kvasir.bench import http
from kvasir.bench.planted import Fact, plant
from kvasir.bench.process import WorkerFailed
from kvasir.bench.restore_disk import drop_cached, read_through
from kvasir.core.config import STORED_FOLDER

Say = Callable[[str], None]
_LOOK_S = 1.0
_STOP_S = 120.0  # what is not saved yet is saved first


@dataclass(frozen=True, slots=True, kw_only=True)
class BookOptions:
    """What is read, by what, and how much is asked. ``settings`` are the server's."""

    text: Path
    n_facts: int
    n_sweeps: int
    seed: int
    python: str
    home: Path
    settings: dict[str, str]
    env: dict[str, str]
    timeout_s: float
    summaries: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """One question to all sections. ``load_s`` is reading all of the context's KV from the disk by
    itself, with nothing of it in memory, right before."""

    seconds: float
    ask_s: float
    join_s: float
    load_s: float
    predicted_s: float
    sections: int
    found: int
    unverified: int
    empty: int
    failed: int
    memory_tokens: int
    disk_tokens: int
    computed_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FactFound:
    """What became of a planted fact: by sweep, by focus, and the place of its section in focus."""

    code: str
    section: int
    by_sweep: bool
    by_focus: bool
    rank: int  # from 1


@dataclass(frozen=True, slots=True, kw_only=True)
class BookReport:
    """Every figure of one book."""

    name: str
    chars: int
    tokens: int
    sections: int
    kv_bytes: int
    upload_s: float
    plan_s: float
    read_s: float
    summaries_s: float
    sweeps: tuple[Sweep, ...]
    facts: tuple[FactFound, ...]
    agree: int  # of the swept facts, those whose section said the same alone

    def missed(self, mode: str) -> int:
        """Planted facts that were not among the passages."""
        return sum(not (f.by_sweep if mode == "sweep" else f.by_focus) for f in self.facts)

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON has it."""
        return asdict(self)


def measure(options: BookOptions, say: Say) -> BookReport:
    """Read the book and ask it. Raises ``WorkerFailed`` where the server does not do its part."""
    original = options.text.read_text(encoding="utf-8-sig")
    planted, facts = plant(original, options.n_facts, options.seed)
    with _server(options) as client:
        began_s = time.perf_counter()
        form = {"file": (options.text.name, planted.encode())}
        file = _checked(client.post("/v1/files", files=form))
        upload_s = time.perf_counter() - began_s
        body = {"file_ids": [file["id"]], "name": "book", "summaries": options.summaries}
        began_s = time.perf_counter()
        plan = _checked(client.post("/v1/contexts", json={**body, "dry_run": True}))
        plan_s = time.perf_counter() - began_s
        say(f"{plan['tokens']:,} tokens in {plan['sections']} sections, {plan['bytes']:,} bytes")
        began_s = time.perf_counter()
        context = _checked(client.post("/v1/contexts", json=body))
        context = _read(client, context["id"], say)
        read_s = time.perf_counter() - began_s
    reading_s = float(context["usage"]["read_seconds"])
    say(f"read in {reading_s:.0f} s; summaries took {max(0.0, read_s - reading_s):.0f} s more")
    sweeps, swept = [], {}
    for fact in facts[: options.n_sweeps]:
        records = [path for path in (options.home / STORED_FOLDER).iterdir() if path.is_file()]
        drop_cached(records)
        began_s = time.perf_counter()
        read_through(records)
        load_s = time.perf_counter() - began_s
        with _server(options) as client:  # a new process: all KV comes from the disk
            drop_cached(records)
            sweep, reply = _sweep(client, fact, load_s)
        sweeps.append(sweep)
        swept[fact.code] = reply
        say(
            f"swept {sweep.sections} sections in {sweep.seconds:.1f} s (loading alone {load_s:.1f})"
        )
    with _server(options) as client:
        found = list(_facts(client, file["id"], facts, say))
        agree = sum(_same(client, swept[each.code], each) for each in found[: options.n_sweeps])
    return BookReport(
        name=options.text.name,
        chars=len(planted),
        tokens=context["tokens"],
        sections=context["sections"],
        kv_bytes=context["bytes"],
        upload_s=upload_s,
        plan_s=plan_s,
        read_s=reading_s,
        summaries_s=max(0.0, read_s - reading_s) if options.summaries else 0.0,
        sweeps=tuple(sweeps),
        facts=tuple(found),
        agree=agree,
    )


def _facts(
    client: httpx2.Client, file_id: str, facts: Sequence[Fact], say: Say
) -> Iterator[FactFound]:
    text = client.get(f"/v1/files/{file_id}/content").text
    sections = _checked(client.get("/v1/contexts/book/sections"))["data"]
    for number, fact in enumerate(facts, start=1):
        at = text.index(fact.sentence)
        section = next(s["index"] for s in sections if s["start"] <= at < s["end"])
        alone = _ask(client, {"question": fact.question, "only_sections": [section]})
        focused = _ask(client, {"question": fact.question, "mode": "focus"})
        ranking = [ranked["index"] for ranked in focused["begun"]["ranking"]]
        yield FactFound(
            code=fact.code,
            section=section,
            by_sweep=_has(alone, fact),
            by_focus=_has(focused, fact),
            rank=ranking.index(section) + 1,
        )
        if not number % 10:
            say(f"asked {number} of {len(facts)} facts")


def _same(client: httpx2.Client, swept: dict[str, Any], found: FactFound) -> bool:
    """Whether the fact's section said in the whole sweep what it says when it is asked alone."""
    question = next(s for s in swept["sections"] if s["index"] == found.section)
    body = {"question": swept["question"], "only_sections": [found.section]}
    return bool(_ask(client, body)["sections"][0]["answer"] == question["answer"])


def _sweep(client: httpx2.Client, fact: Fact, load_s: float) -> tuple[Sweep, dict[str, Any]]:
    began_s = time.perf_counter()
    reply = _ask(client, {"question": fact.question, "mode": "sweep"})
    seconds = time.perf_counter() - began_s
    reply["question"] = fact.question
    usage = reply["usage"]
    return Sweep(
        seconds=seconds,
        ask_s=reply["ask_seconds"],
        join_s=reply["join_seconds"],
        load_s=load_s,
        predicted_s=reply["begun"]["predicted_seconds"],
        sections=reply["begun"]["sections_asked"],
        found=len(reply["found"]),
        unverified=len(reply["unverified"]),
        empty=len(reply["empty"]),
        failed=len(reply["failed"]),
        memory_tokens=usage["reused_from_memory"],
        disk_tokens=usage["reused_from_disk"],
        computed_tokens=usage["computed_tokens"],
        completion_tokens=usage["completion_tokens"],
    ), reply


def _has(reply: dict[str, Any], fact: Fact) -> bool:
    """Whether a passage that was verified says the fact."""
    return any(p["verified"] and fact.code in p["text"] for p in reply["passages"])


def _read(client: httpx2.Client, context_id: str, say: Say) -> dict[str, Any]:
    told_s = time.monotonic()
    while True:
        context = _checked(client.get(f"/v1/contexts/{context_id}"))
        if context["status"] == "completed":
            return context
        if context["status"] not in ("queued", "in_progress"):
            raise WorkerFailed(f"the book is {context['status']}: {context['error']}")
        if time.monotonic() - told_s > 30:
            told_s = time.monotonic()
            progress = context["progress"]
            rate = progress["tokens_per_second"]
            say(f"{progress['processed_tokens']:,} tokens, {rate} a second")
        time.sleep(_LOOK_S)


def _ask(client: httpx2.Client, body: dict[str, Any]) -> dict[str, Any]:
    return _checked(client.post("/v1/contexts/book/ask", json=body))


def _checked(reply: httpx2.Response) -> dict[str, Any]:
    if reply.status_code != httpx2.codes.OK:
        raise WorkerFailed(f"the server answered {reply.status_code}: {reply.text[:300]}")
    data: dict[str, Any] = json.loads(reply.content)
    return data


@contextlib.contextmanager
def _server(options: BookOptions) -> Iterator[httpx2.Client]:
    """The real server over the home of ``options`` while the block lasts, and a client of it."""
    served = http.served(
        options.python,
        {**options.settings, "home": str(options.home)},
        env=options.env,
        cwd=options.home,
        timeout_s=options.timeout_s,
        stop_s=_STOP_S,
    )
    with (
        served as port,
        httpx2.Client(base_url=f"http://{http.HOST}:{port}", timeout=None) as client,
    ):
        yield client
