"""What commands make of the server's words about contexts: streams that break are taken up again,
behind what was seen."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_cli_receipts import context

from kvasir.cli import context_client
from kvasir.cli.client import ConnectionBroke, NoServer, ServerError, in_lines
from kvasir.cli.context_client import Context, Contexts, Happening, Reading, happenings

RAW = dict(context().raw)
PROGRESS = {"processed_tokens": 5, "total_tokens": 10, "tokens_per_second": 2.0, "eta_seconds": 2.5}


def wire(kind: str, data: Any, number: int | None = None) -> list[str]:
    head = [f"id: {number}"] if number is not None else []
    return [*head, f"event: {kind}", f"data: {json.dumps(data)}", ""]


class Broken:
    """A server whose streams end as they are told to; remembers what it was asked."""

    def __init__(self, *streams: list[str] | Exception) -> None:
        self.streams = list(streams)
        self.last_ids: list[str] = []

    @contextlib.contextmanager
    def stream(self, method: str, path: str, **options: Any) -> Iterator[Any]:
        self.last_ids.append(options.get("headers", {}).get("last-event-id", ""))
        stream = self.streams.pop(0) if self.streams else NoServer("nobody")
        if isinstance(stream, Exception):
            raise stream

        yield Lines(stream)


class Lines:
    def __init__(self, lines: list[str]) -> None:
        self._lines = lines

    def iter_lines(self) -> Iterator[str]:
        return iter(self._lines)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context_client, "_RETRY_S", 0.0)


def followed(server: Broken) -> list[Reading | Context]:
    return list(Contexts(server).follow("ctx_1"))  # type: ignore[arg-type]


def test_a_reading_is_followed_to_its_end() -> None:
    server = Broken(
        [*wire("context.progress", PROGRESS, 3), ": alive", "", *wire("context", RAW)],
    )
    assert followed(server) == [Reading(5, 10, 2.0, 2.5), context()]
    assert server.last_ids == ["0"]


def test_a_stream_that_breaks_is_taken_up_behind_what_was_seen() -> None:
    server = Broken(
        wire("context.progress", PROGRESS, 3),
        ConnectionBroke("the connection to the server broke"),
        NoServer("it is being started again"),
        wire("context.progress", {**PROGRESS, "processed_tokens": 9}, 7),
        [*wire("context.completed", {"status": "completed"}, 9), *wire("context", RAW)],
    )
    steps = followed(server)
    assert [step.processed for step in steps[:-1] if isinstance(step, Reading)] == [5, 9]
    assert steps[-1] == context()
    assert server.last_ids == ["0", "3", "3", "3", "7"]


def test_a_server_that_stays_away_ends_the_waiting() -> None:
    with pytest.raises(NoServer, match="what it had read is kept") as caught:
        followed(Broken(wire("context.progress", PROGRESS, 3)))
    assert len(str(caught.value).splitlines()) == 3


def test_a_context_that_is_deleted_meanwhile_is_an_error() -> None:
    with pytest.raises(ServerError, match="was deleted"):
        followed(Broken(wire("context.deleted", {"status": "deleted"})))


def test_a_refusal_is_not_tried_again() -> None:
    server = Broken(ServerError("There is no context."), wire("context", RAW))
    with pytest.raises(ServerError, match="no context"):
        followed(server)


def test_an_answer_ends_with_its_answer() -> None:
    lines = [*wire("begun", {"mode": "sweep"}), *wire("answer", {"answer": "May"}), "data: [DONE]"]
    told = list(Contexts(Broken(lines)).ask("ctx_1", {"question": "?"}))  # type: ignore[arg-type]
    assert [event.kind for event in told] == ["begun", "answer"]
    for broken in (wire("begun", {}), [*wire("begun", {}), "data: [DONE]", ""]):
        with pytest.raises(ConnectionBroke, match="broke off"):
            list(Contexts(Broken(broken)).ask("ctx_1", {}))  # type: ignore[arg-type]
    failed = wire("error", {"error": {"message": "It failed.", "code": "x"}})
    with pytest.raises(ServerError, match="It failed") as caught:
        list(Contexts(Broken(failed)).ask("ctx_1", {}))  # type: ignore[arg-type]
    assert caught.value.code == "x"


events = st.builds(
    Happening,
    st.sampled_from(["begun", "context.progress"]),
    st.integers(0, 10**9),
    st.dictionaries(st.text(), st.integers() | st.text()),
)


@given(st.lists(events))
def test_what_is_written_as_events_is_read_as_such(written: list[Happening]) -> None:
    lines = [line for e in written for line in wire(e.kind, e.data, e.number)]
    assert list(happenings(iter(lines))) == written


@given(st.text(alphabet="aB. \n`?!", max_size=80))
def test_a_message_is_never_shortened(message: str) -> None:
    """Only where it breaks is new."""
    told = in_lines(message)
    assert "".join(told.split()) == "".join(message.split())
    if "\n" not in message:
        assert len(told.splitlines()) <= 3


def test_sentences_are_lines() -> None:
    assert in_lines("It is. Because of 1.5 GiB. Choose: a. Or b.") == (
        "It is.\nBecause of 1.5 GiB. Choose: a.\nOr b."
    )
