"""Many requests for one thread: all of them end, in any weather, and never too many at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace

import pytest
from context_library import Made, opened
from hypothesis import given, settings
from hypothesis import strategies as st

from kvasir.contexts import batch
from kvasir.contexts.batch import Cancelled, Done, run_all
from kvasir.core.errors import EngineStopped
from kvasir.core.events import (
    Event,
    Finished,
    FinishReason,
    Progress,
    RefusalKind,
    Refused,
    Token,
    Usage,
)
from kvasir.core.ports import Deliver
from kvasir.core.requests import Request
from kvasir.sched.virtual import expected_answer

USAGE = Usage(prompt_tokens=2, reused_tokens=1)


def request(number: int) -> Request:
    return Request(id=f"r{number}", namespace=b"a", tokens=[1, number], max_tokens=3)


def finished(id_: str, reason: FinishReason = FinishReason.LENGTH, message: str = "") -> Finished:
    return Finished(id_, 0, reason, USAGE, None, message)


def refused(id_: str, kind: RefusalKind, after_s: float | None = None) -> Refused:
    return Refused(id_, kind, f"refused: {kind}", retry_after_s=after_s)


def token(id_: str, value: int) -> Token:
    return Token(id_, 0, value, None)


class Playing:
    """An engine that says what it is told to: ``answer`` gives the events of a submission."""

    def __init__(self, answer: Callable[[str, int], Sequence[Event] | None]) -> None:
        self._answer = answer
        self.tries: dict[str, int] = {}
        self.open: set[str] = set()
        self.most_open = 0
        self.aborted: list[str] = []

    def submit(self, request: Request, deliver: Deliver) -> None:
        attempt = self.tries[request.id] = self.tries.get(request.id, 0) + 1
        assert request.id not in self.open, "it is with the engine already"
        self.open.add(request.id)
        self.most_open = max(self.most_open, len(self.open))
        events = self._answer(request.id, attempt)
        if events is None:
            raise EngineStopped("the engine has been stopped")
        for event in events:
            if isinstance(event, Finished | Refused):
                self.open.discard(request.id)
            deliver(event)

    def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)
        self.open.discard(request_id)


def run(engine: Playing, n: int, width: int = 4, **fields: object) -> Iterator[Done]:
    requests = (request(number) for number in range(n))
    return run_all(engine, requests, width=width, **fields)  # type: ignore[arg-type]


def test_results_come_in_the_order_in_which_they_end() -> None:
    """And have the tokens that were said, the cost, and no word of trouble."""
    held: dict[str, Deliver] = {}

    class Late(Playing):
        def submit(self, request: Request, deliver: Deliver) -> None:
            held[request.id] = deliver
            if len(held) == 3:
                for id_ in ("r2", "r0", "r1"):
                    held[id_](token(id_, int(id_[1])))
                    held[id_](finished(id_))

    done = list(run(Late(lambda _id, _n: ()), 3))
    assert [d.request.id for d in done] == ["r2", "r0", "r1"]
    assert [d.tokens for d in done] == [(2,), (0,), (1,)]
    assert all(d.usage == USAGE and not d.problem for d in done)


@settings(max_examples=60, deadline=None)
@given(
    refusals=st.lists(st.integers(0, 3), max_size=12),
    width=st.integers(1, 5),
)
def test_a_full_queue_is_waited_for_and_the_width_is_kept(refusals: list[int], width: int) -> None:
    """However often each is refused, each has one result, which is no refusal."""

    def answer(id_: str, attempt: int) -> Sequence[Event]:
        if attempt <= refusals[int(id_[1:])]:
            return [refused(id_, RefusalKind.QUEUE_FULL, 0.001 if attempt % 2 else None)]
        return [token(id_, 5), finished(id_)]

    engine = Playing(answer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch, "_RETRY_S", 0.001)
        patch.setattr(batch, "_LOOK_S", 0.002)
        done = list(run(engine, len(refusals), width))
    assert sorted(int(d.request.id[1:]) for d in done) == list(range(len(refusals)))
    assert all(d.tokens == (5,) and not d.problem for d in done)
    assert engine.most_open <= width
    assert engine.tries == {f"r{n}": count + 1 for n, count in enumerate(refusals)}


def test_the_time_that_a_full_queue_names_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(batch, "time", SimpleNamespace(monotonic=lambda: now[0]))
    submitted_at: list[float] = []

    def answer(id_: str, attempt: int) -> Sequence[Event]:
        submitted_at.append(now[0])
        if attempt == 1:
            return [refused(id_, RefusalKind.QUEUE_FULL, 7.0)]
        return [finished(id_)]

    def cancelled() -> bool:
        now[0] += 1.0
        return False

    monkeypatch.setattr(batch, "_LOOK_S", 0.001)
    assert len(list(run(Playing(answer), 1, cancelled=cancelled))) == 1
    assert submitted_at[1] - submitted_at[0] >= 7.0


def test_a_request_that_can_never_be_served_is_a_result_with_its_reason() -> None:
    engine = Playing(lambda id_, _n: [refused(id_, RefusalKind.NEVER_FITS)])
    (done,) = run(engine, 1)
    assert done.problem == f"refused: {RefusalKind.NEVER_FITS}"
    assert done.tokens == ()
    assert done.usage.prompt_tokens == 2


def test_a_fault_of_one_is_told_and_the_others_go_on() -> None:
    def answer(id_: str, _n: int) -> Sequence[Event]:
        failed = id_ == "r1"
        return [finished(id_, FinishReason.FAILED if failed else FinishReason.STOP, "broken")]

    done = list(run(Playing(answer), 3, width=1))
    assert [d.problem for d in done] == ["", "broken", ""]


def test_cancelled_ends_soon_and_leaves_nothing_with_the_engine() -> None:
    wanted = threading.Event()
    engine = Playing(lambda id_, _n: [] if id_ != "r0" else [finished(id_)])
    results = run(engine, 10, width=3, cancelled=wanted.is_set)
    assert next(results).request.id == "r0"
    wanted.set()
    with pytest.raises(Cancelled):
        next(results)
    assert not engine.open
    assert set(engine.aborted) == {"r1", "r2", "r3"}


def test_who_stops_taking_leaves_nothing_with_the_engine() -> None:
    engine = Playing(lambda id_, _n: [] if id_ != "r0" else [finished(id_)])
    results = run(engine, 10, width=3)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert not engine.open


@pytest.mark.parametrize(
    "answer",
    [
        lambda _id, _n: None,
        lambda id_, _n: [refused(id_, RefusalKind.STOPPING)],
        lambda id_, _n: [finished(id_, FinishReason.CANCELLED)],
    ],
    ids=["at submission", "in the queue", "while it ran"],
)
def test_the_end_of_the_engine_is_no_result(answer: Callable[[str, int], Sequence[Event]]) -> None:
    engine = Playing(lambda id_, n: [] if id_ == "r0" else answer(id_, n))
    with pytest.raises(EngineStopped):
        list(run(engine, 3, width=2))
    assert "r0" in engine.aborted


def test_an_answer_of_which_there_is_enough_is_ended_and_is_a_result() -> None:
    """What the engine says after that is not part of it."""

    class Talking(Playing):
        def abort(self, request_id: str) -> None:
            super().abort(request_id)
            delivered[request_id](token(request_id, 9))
            delivered[request_id](finished(request_id, FinishReason.CANCELLED))

        def submit(self, request: Request, deliver: Deliver) -> None:
            delivered[request.id] = deliver
            super().submit(request, deliver)

    delivered: dict[str, Deliver] = {}
    engine = Talking(lambda id_, _n: [token(id_, 1), token(id_, 2), token(id_, 3)])
    done = list(run(engine, 3, width=2, enough=lambda tokens: tokens[-1] == 2))
    assert [d.tokens for d in done] == [(1, 2)] * 3
    assert not any(d.problem for d in done)
    assert engine.aborted == ["r0", "r1", "r2"]


def test_progress_is_told_with_its_request() -> None:
    told: list[tuple[str, int]] = []
    engine = Playing(
        lambda id_, _n: [
            Progress(id_, 0, 1, 2, 0, 0.0),
            finished(id_),
        ]
    )
    list(run(engine, 2, on_progress=lambda id_, tokens: told.append((id_, tokens))))
    assert told == [("r0", 1), ("r1", 1)]


def test_requests_are_made_only_when_there_is_a_place_for_them() -> None:
    made: list[int] = []

    def requests() -> Iterator[Request]:
        for number in range(6):
            made.append(number)
            yield request(number)

    engine = Playing(lambda id_, _n: [finished(id_)])
    results = run_all(engine, requests(), width=2)  # type: ignore[arg-type]
    next(results)
    assert len(made) <= 3
    assert len(list(results)) == 5


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    with opened(tmp_path_factory.mktemp("home"), max_waiting=2, max_running=2) as one:
        yield one


def test_a_real_engine_with_a_short_queue_answers_all_rightly(made: Made) -> None:
    """Thirty requests at a time, four of which the engine takes."""
    requests = [
        Request(id=f"q{n}", namespace=b"n", tokens=[n, 2, 3, n], max_tokens=4) for n in range(30)
    ]
    done = list(run_all(made.client, iter(requests), width=30))
    assert {d.request.id for d in done} == {r.id for r in requests}
    for each in done:
        expected = expected_answer(b"n", each.request.tokens, 4, vocab_size=95)
        assert list(each.tokens) == expected
    assert made.client.status().refused[RefusalKind.QUEUE_FULL] > 0
    again = [replace(r, id=f"again-{r.id}") for r in requests[:1]]
    assert len(list(run_all(made.client, iter(again), width=1))) == 1
