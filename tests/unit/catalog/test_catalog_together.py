"""Events and idempotency keys where several processes and threads meet; and a process that is
killed while it writes."""

from __future__ import annotations

import contextlib
import random
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from catalog_samples import context_row
from sqlalchemy.exc import StatementError

from kvasir.catalog.catalog import Catalog, open_catalog

HERE = Path(__file__).parent
KILLS = 8


@contextlib.contextmanager
def child(what: str, url: str, word: str, count: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(HERE / "catalog_child.py"), what, url, word, str(count)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_numbers_of_events_grow_by_one_whoever_appends(url: str) -> None:
    with contextlib.closing(open_catalog(url)) as catalog:
        catalog.contexts.add(context_row())
        with (
            child("append", url, "left", 40) as left,
            child("append", url, "right", 40) as right,
            ThreadPoolExecutor(3) as pool,
        ):
            append = catalog.events.append
            ours = list(pool.map(lambda n: append("ctx_1", "here", {"turn": n}, n), range(60)))
            seen, last = [], 0
            while len(seen) < 140:  # who reads on after the last one misses none
                for event in catalog.events.after("ctx_1", last, 10):
                    seen.append(event.seq)
                    last = event.seq
                assert left.poll() in (None, 0)
                assert right.poll() in (None, 0)
            theirs = [[int(line) for line in p.stdout or ()] for p in (left, right)]
        assert seen == list(range(1, 141))
        for numbers in theirs:
            assert numbers == sorted(numbers)
        assert sorted([*ours, *theirs[0], *theirs[1]]) == seen
        kinds = [event.kind for event in catalog.events.after("ctx_1", 0, 999)]
        assert {kind: kinds.count(kind) for kind in kinds} == {"left": 40, "right": 40, "here": 60}


def test_an_end_and_the_event_that_says_so_are_there_together_or_not(catalog: Catalog) -> None:
    catalog.contexts.add(context_row())
    done = catalog.contexts.conclude(
        "ann", "ctx_1", "context.completed", {"n": 1}, 5, status="completed", completed_at=5
    )
    assert done is not None
    assert (done.status, done.completed_at) == ("completed", 5)
    assert [event.kind for event in catalog.events.after("ctx_1", 0, 9)] == ["context.completed"]
    with pytest.raises(StatementError):
        catalog.contexts.conclude(
            "ann", "ctx_1", "context.failed", {"n": float("nan")}, 6, status="failed"
        )
    assert catalog.contexts.get("ann", "ctx_1") == done
    assert catalog.contexts.conclude("bob", "ctx_1", "x", {}, 7, status="failed") is None
    assert catalog.contexts.get("ann", "ctx_1") == done
    assert catalog.events.last("ctx_1") == 1


def test_numbers_go_on_where_events_were_trimmed(catalog: Catalog) -> None:
    catalog.contexts.add(context_row())
    for turn in range(5):
        assert (
            catalog.events.append("ctx_1", "k", {"turn": turn, "text": "\x00ü"}, turn) == turn + 1
        )
    assert catalog.events.trim("ctx_1", 2) == 3
    assert [event.seq for event in catalog.events.after("ctx_1", 0, 9)] == [4, 5]
    assert catalog.events.trim("ctx_1", 0) == 2
    assert catalog.events.append("ctx_1", "k", {}, 9) == 6
    assert catalog.events.last("ctx_1") == 6
    (event,) = catalog.events.after("ctx_1", 5, 9)
    assert (event.kind, event.data, event.created_at) == ("k", {}, 9)


def test_of_a_context_that_has_gone_nothing_happens_any_more(catalog: Catalog) -> None:
    assert catalog.events.append("ctx_1", "k", {}, 1) == 0
    assert catalog.events.after("ctx_1", 0, 9) == ()
    assert catalog.events.last("ctx_1") == 0
    assert catalog.events.trim("ctx_1", 0) == 0


def test_one_alone_claims_a_key(url: str) -> None:
    with contextlib.closing(open_catalog(url)) as catalog:
        with child("claim", url, "d", 30) as left, child("claim", url, "d", 30) as right:
            ours = [catalog.idempotency.claim("ann", f"key-{n}", "d", n).state for n in range(30)]
            theirs = [[line.strip() for line in p.stdout or ()] for p in (left, right)]
        for told in zip(ours, *theirs, strict=True):
            assert sorted(told) == ["new", "same", "same"]


def test_a_repeated_request_is_told_what_came_of_the_first(catalog: Catalog) -> None:
    claim = catalog.idempotency.claim
    assert claim("ann", "k", "d1", 1).state == "new"
    assert (claim("ann", "k", "d1", 2).state, claim("ann", "k", "d1", 2).object_id) == (
        "same",
        None,
    )
    catalog.idempotency.finish("ann", "k", "ctx_1")
    assert claim("ann", "k", "d1", 3).object_id == "ctx_1"
    assert claim("ann", "k", "d2", 3).state == "conflict"
    assert claim("bob", "k", "d2", 3).state == "new", "keys are a tenant's own"
    assert claim("ann", "\x00", "d", 3).state == "new"
    assert claim("ann", "\N{REPLACEMENT CHARACTER}", "d", 3).state == "new"
    catalog.idempotency.forget("ann", "k")
    assert claim("ann", "k", "d2", 4).state == "new"


def test_old_and_unfinished_claims_are_forgotten(catalog: Catalog) -> None:
    for now, name in enumerate(("a", "b", "c"), start=1):
        catalog.idempotency.claim("ann", name, "d", now)
    catalog.idempotency.finish("ann", "c", "ctx_1")
    assert catalog.idempotency.purge(2) == 1
    assert catalog.idempotency.forget_unfinished() == 1
    states = [catalog.idempotency.claim("ann", name, "d", 9).state for name in ("a", "b", "c")]
    assert states == ["new", "new", "same"]


@pytest.mark.parametrize("seed", range(KILLS))
def test_what_was_acknowledged_survives_a_kill(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "c.sqlite"
    url = f"sqlite:///{path}"
    with child("write", url, "w", 10_000) as process:
        stdout = process.stdout
        assert stdout is not None
        n_lines = random.Random(seed).randint(1, 60)
        acknowledged = [stdout.readline().strip() for _ in range(n_lines)]
        process.kill()
        acknowledged += [line.strip() for line in stdout if line.endswith("\n")]
    with contextlib.closing(open_catalog(url)) as catalog:
        made = catalog.contexts.ids()
        assert {f"ctx_{name}" for name in acknowledged} <= made
        assert len(made) <= len(acknowledged) + 1
        for context_id in made:
            assert len(catalog.contexts.sections(context_id)) == 50
        for name in acknowledged:
            assert catalog.events.last(f"ctx_{name}") == 1
        assert len(catalog.files.ids()) <= 2
        catalog.tenants.add("ann", 1)
    with contextlib.closing(sqlite3.connect(path)) as raw:
        assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert raw.execute("PRAGMA foreign_key_check").fetchall() == []
