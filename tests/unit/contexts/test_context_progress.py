"""How far a reading is, as it is told while it goes on and to whoever asks later; and the recorded
miss rates."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from context_library import Made, opened
from realms import realm

from kvasir.catalog.values import ContextRow
from kvasir.contexts import miss_rates, progress
from kvasir.contexts.miss_rates import MissRate, measured
from kvasir.contexts.progress import Progress, tell, tell_end


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Made]:
    with opened(tmp_path, on_disk=False) as one:
        yield one


@pytest.fixture
def row(made: Made) -> ContextRow:
    return made.create("The raven came. " * 50, keep="text", read=False)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the clock says that speed is measured by."""
    at = [100.0]
    # the module's own name: the clock itself belongs to every thread, and to other tests' servers
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: at[0]))
    return at


def numbers(made: Made, row: ContextRow, after: int = 0) -> list[tuple[int, str]]:
    found = made.library.catalog.events.after(row.id, after, 1000)
    return [(event.seq, event.kind) for event in found]


def test_speed_and_time_left_are_of_what_is_read_now(
    made: Made, row: ContextRow, now: list[float]
) -> None:
    """What was read before counts as done, not as speed."""
    going = Progress(made.library, row, 200)
    assert going.snapshot() == {
        "processed_tokens": 200,
        "total_tokens": row.tokens,
        "tokens_per_second": 0.0,
        "eta_seconds": None,
    }
    now[0] += 2
    going.advance("r1", 100)
    going.advance("r2", 50)
    told = going.snapshot()
    assert told["processed_tokens"] == 350
    assert told["tokens_per_second"] == 75.0
    assert told["eta_seconds"] == round((row.tokens - 350) / 75, 1)
    going.finish_part("r1", 120)
    assert going.snapshot()["processed_tokens"] == 370
    going.find_part(100)  # kept already: no speed either
    assert going.snapshot()["processed_tokens"] == 470
    assert going.snapshot()["tokens_per_second"] == round(170 / 2, 1)


def test_it_never_says_more_than_there_is(made: Made, row: ContextRow) -> None:
    going = Progress(made.library, row, row.tokens - 10)
    going.advance("r1", 50)
    told = going.snapshot()
    assert told["processed_tokens"] == row.tokens
    assert told["eta_seconds"] in (0.0, None)


def test_an_event_is_told_every_second_and_not_every_step(
    made: Made, row: ContextRow, now: list[float]
) -> None:
    going = Progress(made.library, row, 0)
    for step in range(40):
        now[0] += 0.1
        going.advance("r1", step)
    assert 4 <= len(numbers(made, row)) <= 5


def test_numbers_grow_and_the_last_events_are_kept(made: Made, row: ContextRow) -> None:
    threads = [
        threading.Thread(target=tell, args=(made.library, row.id, "context.progress", {"n": n}))
        for n in range(100)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = numbers(made, row)
    assert [seq for seq, _ in found] == list(range(1, 101))
    assert numbers(made, row, after=90) == found[90:]
    tell_end(made.library, row, "completed", None)
    found = numbers(made, row)
    assert found[-1] == (101, "context.completed")
    assert len(found) == 64
    assert found[0][0] == 38, "what is gone on with has other numbers now"
    tell(made.library, row.id, "context.in_progress", {})
    assert numbers(made, row)[-1] == (102, "context.in_progress")


def test_of_a_context_that_is_gone_nothing_is_told(made: Made, row: ContextRow) -> None:
    made.library.catalog.contexts.remove("a", row.id)
    tell_end(made.library, row, "completed", None)
    assert numbers(made, row) == []


def test_miss_rates_are_those_that_were_recorded_for_these_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorded = {"w1": {"sweep": {"n_facts": 50, "n_missed": 7, "measured_on": "2026-01-02"}}}
    monkeypatch.setattr(miss_rates, "_recorded", lambda: recorded)
    assert measured(realm(weights="w1"), "sweep") == MissRate(
        n_facts=50, n_missed=7, measured_on="2026-01-02"
    )
    assert measured(realm(weights="w1"), "focus") is None
    assert measured(realm(weights="w2"), "sweep") is None


def test_what_is_recorded_can_be_read() -> None:
    for modes in miss_rates._recorded().values():
        for found in modes.values():
            assert 0 <= int(found["n_missed"]) <= int(found["n_facts"])
