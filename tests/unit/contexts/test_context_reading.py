"""Reading in the background: what was read is marked when it is durable and never read again, and
whoever cancels, deletes or creates meanwhile finds the context in one state or the other."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from context_library import Clock, Made, opened, wait_for, wanted

from kvasir.contexts import creating, keeping
from kvasir.contexts.asking import NotUsable, check_usable
from kvasir.contexts.reading import StillReading
from kvasir.core.errors import CatalogUnavailable
from kvasir.core.plans import StepPlan

LONG = "\n\n".join(f"CHAPTER {n}\n\n" + f"The raven came in {1700 + n}. " * 20 for n in range(20))


class Gate:
    """Lets the runner make so many steps, and then no more until it is opened."""

    def __init__(self, made: Made, steps: int = 0) -> None:
        self._left = threading.Semaphore(steps)
        self._open = threading.Event()
        self.waiting = threading.Event()
        self._runner = made.runner
        made.runner.before = self._before

    def _before(self, _plan: StepPlan) -> None:
        while not self._open.is_set() and self._runner.before is not None:
            if self._left.acquire(timeout=0.01):
                return
            self.waiting.set()

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Made]:
    with opened(tmp_path, max_step_tokens=256) as one:
        yield one


def kinds(made: Made, context_id: str) -> list[str]:
    events = made.library.catalog.events.after(context_id, 0, 1000)
    return [event.kind.removeprefix("context.") for event in events]


def test_parts_are_marked_and_told_and_all_of_it_is_durable(made: Made) -> None:
    row = made.create(LONG)
    sections = made.library.sections(row)
    assert len(sections) > 10
    assert all(section.read for section in sections)
    assert row.read_tokens == row.tokens == sum(len(part) for part in made.parts(row))
    # what sections share in their beginnings is computed once
    assert 0.8 * row.tokens < row.computed_tokens <= row.tokens
    assert row.computed_tokens + row.reused_tokens == row.tokens
    assert row.completed_at == made.clock.now_s
    assert row.read_s > 0
    assert kinds(made, row.id)[0] == "in_progress"
    assert kinds(made, row.id)[-1] == "completed"
    namespace = made.library.namespace_of("a")
    for part in made.parts(row):
        where = made.client.residence(namespace, part)
        assert where.durable
        assert where.held


def test_what_was_read_when_it_was_cancelled_is_not_computed_again(made: Made) -> None:
    row = made.create(LONG, read=False)
    gate = Gate(made, steps=9)
    made.reader.take(row)
    assert gate.waiting.wait(20)
    assert made.reader.cancel(row.id)
    gate.open()
    row = made.ended(row)
    assert row.status == "cancelled"
    assert 0 < row.read_tokens < row.tokens
    assert kinds(made, row.id)[-1] == "cancelled"
    again, unread = creating.create(made.library, wanted(LONG))
    assert (again.id, again.status, unread) == (row.id, "queued", True)
    made.reader.take(again)
    done = made.ended(again)
    assert done.status == "completed"
    assert done.computed_tokens - row.computed_tokens <= row.tokens - row.read_tokens


def test_a_crash_leaves_a_context_that_goes_on_by_itself(tmp_path: Path) -> None:
    """An end of the process in the midst of reading, without a word to the catalog."""
    with opened(tmp_path, max_step_tokens=256) as made:
        row = made.create(LONG, read=False)
        gate = Gate(made, steps=9)
        made.reader.take(row)
        assert gate.waiting.wait(20)
        made.reader._closing.set()
        gate.open()
    with opened(tmp_path) as made:
        left = made.row(row)
        assert left.status == "in_progress"
        unread = sum(s.n_tokens for s in made.library.sections(left) if not s.read)
        assert 0 < unread < row.tokens
        keeping.open_shelves(made.library)
        made.reader.resume()
        done = made.ended(row)
        assert done.status == "completed"
        assert done.computed_tokens - left.computed_tokens <= unread
        assert made.client.status().computed_tokens <= unread


def busy(made: Made, n: int = 4) -> Gate:
    """As many readings as there are threads, none of which gets on."""
    rows = [made.create(f"Occupied by {number}. " * 20, read=False) for number in range(n)]
    gate = Gate(made)
    for row in rows:
        made.reader.take(row)
    assert gate.waiting.wait(20)
    return gate


def test_one_that_waits_in_the_queue_is_cancelled_at_once(made: Made) -> None:
    row = made.create("Waits in the queue. " * 20, read=False)
    behind = made.create("Behind it. " * 20, read=False)
    gate = busy(made)
    made.reader.take(row)
    assert made.reader.cancel(row.id)
    assert made.row(row).status == "cancelled"
    assert not made.reader.cancel(row.id)
    made.reader.take(behind)
    gate.open()
    wait_for(lambda: not made.reader._readings)
    assert made.row(behind).status == "completed"
    assert made.row(row).status == "cancelled"
    assert made.row(row).read_tokens == 0


def test_created_again_while_its_cancelled_reading_ends_it_is_read_on(made: Made) -> None:
    """It must not stay queued with nobody who reads it."""
    row = made.create(LONG, read=False)
    gate = Gate(made, steps=3)
    made.reader.take(row)
    assert gate.waiting.wait(20)
    made.reader.cancel(row.id)
    again, unread = creating.create(made.library, wanted(LONG))
    assert again.id == row.id
    assert unread
    made.reader.take(again)
    gate.open()
    wait_for(lambda: made.row(row).status == "completed")


def test_the_last_word_counts(made: Made) -> None:
    row = made.create(LONG, read=False)
    gate = Gate(made, steps=3)
    made.reader.take(row)
    assert gate.waiting.wait(20)
    made.reader.cancel(row.id)
    made.reader.take(row)
    made.reader.cancel(row.id)
    gate.open()
    wait_for(lambda: not made.reader._readings)
    assert made.row(row).status == "cancelled"


def test_taking_one_that_is_being_read_changes_nothing(made: Made) -> None:
    row = made.create(LONG, read=False)
    gate = Gate(made, steps=3)
    for _ in range(5):
        made.reader.take(row)
    gate.open()
    assert made.ended(row).status == "completed"
    wait_for(lambda: not made.reader._readings)
    assert kinds(made, row.id).count("in_progress") == 1
    made.reader.take(made.row(row))  # one that is read is not read again
    wait_for(lambda: not made.reader._readings)
    assert kinds(made, row.id).count("in_progress") == 1


def test_nobody_reads_while_it_is_stopped_and_somebody_does_afterwards(made: Made) -> None:
    row = made.create(LONG, read=False)
    gate = Gate(made, steps=3)
    made.reader.take(row)
    assert gate.waiting.wait(20)
    with pytest.raises(StillReading), made.reader.stopped(row, 0.05):
        raise AssertionError("the step has not ended")
    gate.open()
    with made.reader.stopped(row, 20):
        assert made.row(row).status == "cancelled"
        again, _ = creating.create(made.library, wanted(LONG))
        made.reader.take(again)
        with pytest.raises(StillReading), made.reader.stopped(row, 0.05):
            raise AssertionError("two have stopped it")
        made.reader.take(again)
        assert made.row(row).status == "queued"
    wait_for(lambda: made.row(row).status == "completed")


def test_deleted_while_it_is_read_nothing_of_it_is_held(made: Made) -> None:
    row = made.create(LONG, read=False)
    parts = made.parts(row)
    gate = Gate(made, steps=5)
    made.reader.take(row)
    assert gate.waiting.wait(20)
    threading.Timer(0.1, gate.open).start()
    with made.reader.stopped(row, 20):
        keeping.delete(made.library, row)
        made.reader.take(row)  # by somebody who had looked it up before
    wait_for(lambda: not made.reader._readings)
    assert not made.holders()
    where = made.client.residence(made.library.namespace_of("a"), parts[-1])
    assert sum(where.stored.values()) + where.device_tokens == 0
    made.check()


def test_a_fault_is_told_and_creating_it_again_goes_on(made: Made) -> None:
    def fail(_plan: StepPlan) -> None:
        raise RuntimeError("planted fault")

    made.runner.before = fail
    row = made.create("Fails. " * 30, read=False)
    made.reader.take(row)
    failed = made.ended(row)
    assert failed.status == "failed"
    assert "Part 1 of 1 could not be read" in (failed.error or "")
    assert kinds(made, row.id)[-1] == "failed"
    made.runner.before = None
    assert made.create("Fails. " * 30).id == row.id
    assert made.row(row).error is None


def test_an_end_that_cannot_be_noted_is_made_good_by_creating_it_again(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:

    def fails(*_: object, **__: object) -> None:
        raise CatalogUnavailable("the database is away")

    monkeypatch.setattr(type(made.library.catalog.contexts), "conclude", fails)
    row = made.create("Unnoted. " * 30, read=False)
    made.reader.take(row)
    wait_for(lambda: made.row(row).read_tokens > 0 and not made.reader._readings)
    assert made.row(row).status == "in_progress"
    monkeypatch.undo()
    assert made.create("Unnoted. " * 30).id == row.id
    assert made.row(row).computed_tokens == row.tokens


def test_text_alone_is_complete_at_once_and_becomes_kv_when_that_is_wanted(made: Made) -> None:
    row = made.create("Text alone. " * 30, keep="text")
    assert row.read_tokens == 0
    assert not made.holders()
    kept = made.create("Text alone. " * 30)
    assert (kept.id, kept.keep) == (row.id, "kv")
    assert kept.read_tokens == kept.tokens
    assert made.holders() == {row.id}
    less = made.create("Text alone. " * 30, keep="text")
    assert less.keep == "kv", "a promise was taken back"
    assert less.status == "completed"


def test_closed_in_the_midst_it_is_neither_cancelled_nor_failed(tmp_path: Path) -> None:
    with opened(tmp_path, clock=Clock()) as made:
        row = made.create(LONG, read=False)
        gate = Gate(made, steps=3)
        made.reader.take(row)
        assert gate.waiting.wait(20)
        threading.Timer(0.1, gate.open).start()
        made.reader.close()
        assert made.row(row).status == "in_progress"
        made.reader.take(row)  # nobody is there any more
        assert not made.reader._readings


def test_what_was_lost_since_it_was_read_is_read_again(made: Made) -> None:
    """The owner has cleared the cache, or the disk has lost it: marks say what once was."""
    row = made.create(LONG)
    made.client.clear(None, None)
    contexts = made.library.catalog.contexts
    contexts.update(row.tenant, row.id, status="failed", error="it was stopped")
    again = made.create(LONG)
    assert again.id == row.id
    namespace = made.library.namespace_of("a")
    assert all(made.client.residence(namespace, part).durable for part in made.parts(row))
    assert again.read_tokens == again.tokens
    assert again.computed_tokens > row.computed_tokens


def test_one_of_another_model_waits_until_that_is_served_again(tmp_path: Path) -> None:
    """Its ids are not this model's, and what this one computes of them would be called kept."""
    with opened(tmp_path) as made:
        row = made.create("Another. " * 30, read=False)
        theirs = {**row.definition, "realm": "another"}
        made.library.catalog.contexts.update(row.tenant, row.id, definition=theirs)
    with opened(tmp_path) as made:
        keeping.open_shelves(made.library)
        assert not made.holders(), "room is kept for what cannot be read"
        made.reader.resume()
        wait_for(lambda: not made.reader._readings)
        left = made.row(row)
        assert (left.status, left.read_tokens) == ("queued", 0)
        assert made.client.status().computed_tokens == 0
        with pytest.raises(NotUsable, match="was made for"):
            check_usable(made.library, left)
