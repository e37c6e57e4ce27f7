"""The loop and its thread: faults stay in their request, cancels leave nothing, the end is told."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

import pytest
from realms import realm
from virtual_engine import FailingRunner, VirtualEngine, geometry, text

from kvasir.core.clock import SystemClock
from kvasir.core.errors import EngineStopped
from kvasir.core.events import Event, Finished, FinishReason, RefusalKind, Refused, Token
from kvasir.core.plans import StepPlan, StepResult
from kvasir.core.ports import Interrupted, never
from kvasir.core.requests import Request
from kvasir.engine.client import EngineClient
from kvasir.engine.engine import Engine
from kvasir.kv.cache import KvCache
from kvasir.sched.limits import Limits
from kvasir.sched.scheduler import Scheduler
from kvasir.sched.virtual import TaggedRunner, VirtualRunner, expected_answer


def test_a_failing_sequence_ends_alone() -> None:
    rng = random.Random(1)
    made = VirtualEngine(n_blocks=200)
    cursed = text(rng, 20)
    made.engine._runner = FailingRunner(
        made.tagged, lambda plan: any(w.tokens[-1:] == cursed[-1:] for w in plan.works)
    )
    cursed[-1] = 999
    names = [made.submit(text(rng, 20), max_tokens=9) for _ in range(4)]
    bad = made.submit(cursed, max_tokens=9)
    made.run()
    finished = made.answer(bad).finished
    assert finished is not None
    assert finished.reason is FinishReason.FAILED
    assert "RuntimeError" in finished.message
    assert "planted" not in finished.message  # no inside details to the outside
    for name in names:
        assert made.answer(name).finished.reason is FinishReason.LENGTH  # type: ignore[union-attr]
        assert made.right(name)


def test_every_step_failing_ends_every_request_and_not_the_engine() -> None:
    rng = random.Random(2)
    made = VirtualEngine(n_blocks=200)
    failing = True
    made.engine._runner = FailingRunner(made.tagged, lambda plan: failing)
    names = [made.submit(text(rng, 20), max_tokens=9) for _ in range(3)]
    made.run()
    reasons = {made.answer(name).finished.reason for name in names}  # type: ignore[union-attr]
    assert reasons == {FinishReason.FAILED}
    failing = False
    made.ask(text(rng, 20), max_tokens=5)


def test_a_step_that_failed_half_way_is_repeated_without_harm() -> None:
    """The runner computes everything, then raises: each part is then carried out a second time."""
    rng = random.Random(3)
    made = VirtualEngine(n_blocks=60, block_tokens=4)
    raised: set[int] = set()

    class RaisesAfterwards:
        def run(self, plan: StepPlan, interrupted: Interrupted = never) -> StepResult:
            result = made.tagged.run(plan, interrupted)
            if plan.number % 3 == 0 and plan.number not in raised:
                raised.add(plan.number)
                raise RuntimeError("planted")
            return result

    made.engine._runner = RaisesAfterwards()
    base = text(rng, 30)
    for _ in range(30):
        cut = rng.randrange(1, 30)
        made.submit(base[:cut] + text(rng, 5), max_tokens=rng.randrange(1, 9))
        made.step()
    made.run()
    assert len(raised) > 5
    assert all(made.right(name) for name in made.requests)


def test_a_thousand_random_cancels_leave_no_block() -> None:
    rng = random.Random(4)
    made = VirtualEngine(n_blocks=300, max_waiting=2000)
    base = text(rng, 80)
    alive: list[str] = []
    for _ in range(1000):
        prompt = base[: rng.randrange(1, 80)] + text(rng, rng.randrange(1, 10))
        alive.append(made.submit(prompt, max_tokens=rng.randrange(0, 40)))
        if rng.random() < 0.7:
            made.step()
        if rng.random() < 0.9:
            made.abort(alive.pop(rng.randrange(len(alive))))
    for name in alive:
        made.abort(name)
    made.run()
    assert all(made.right(name) for name in made.requests)
    assert made.cache.free_blocks + made.cache.idle_blocks == 300
    assert not made.tagged.known.keys() - set(made.sched._leaves)


class Heard:
    """Collects one request's events on whatever thread delivers them."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.ended = threading.Event()

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Finished | Refused):
            self.ended.set()

    @property
    def tokens(self) -> list[int]:
        return [e.token for e in self.events if isinstance(e, Token)]


def client(
    wait: Callable[[float], None] | None = None, before: Callable[[StepPlan], None] | None = None
) -> EngineClient:
    clock = SystemClock()
    shape = geometry(400)
    cache = KvCache(shape, realm(shape))
    sched = Scheduler(cache, Limits(window=1000, max_waiting=5000), clock)
    if wait is None and before is None:
        runner: VirtualRunner = TaggedRunner([0] * shape.pool_tokens, shape.block_tokens)
    else:
        runner = VirtualRunner(wait=wait, before=before)
    return EngineClient(Engine(sched, runner, clock), clock).start()


def request(name: str, tokens: list[int], max_tokens: int = 5) -> Request:
    return Request(id=name, namespace=b"a", tokens=tokens, max_tokens=max_tokens)


def test_requests_from_many_threads_are_answered_rightly() -> None:
    engine = client()
    heard: dict[str, tuple[Heard, list[int]]] = {}

    def caller(number: int) -> None:
        rng = random.Random(number)
        for i in range(10):
            tokens = text(rng, rng.randrange(1, 40))
            name = f"{number}-{i}"
            heard[name] = (Heard(), tokens)
            engine.submit(request(name, tokens), heard[name][0])

    threads = [threading.Thread(target=caller, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, tokens in heard.values():
        assert one.ended.wait(20)
        assert one.tokens == expected_answer(b"a", tokens, 5)
    status = engine.status()
    assert status.alive
    assert (status.running, status.waiting) == (0, 0)
    engine.stop()
    assert not engine.status().alive


def test_what_was_submitted_counts_as_waiting_before_the_engine_has_looked() -> None:
    entered, go_on = threading.Event(), threading.Event()

    def hold(plan: StepPlan) -> None:
        entered.set()
        assert go_on.wait(20)

    engine = client(before=hold)
    heard = [Heard() for _ in range(3)]
    engine.submit(request("a", [1, 2, 3]), heard[0])
    assert entered.wait(20)  # the engine is in its first step, and no snapshot knows of it
    engine.submit(request("b", [1, 2, 3]), heard[1])
    engine.submit(request("c", [1, 2, 3]), heard[2])
    assert engine.status().waiting == 3
    go_on.set()
    for one in heard:
        assert one.ended.wait(20)
    assert (engine.status().running, engine.status().waiting) == (0, 0)
    engine.stop()


class RestingRunner(VirtualRunner):
    """Never runs out of something to do while idle."""

    rested = 0

    def rest(self) -> bool:
        self.rested += 1
        time.sleep(0.001)
        return True


def test_an_engine_that_rests_answers_at_once_and_ends_when_asked_to() -> None:
    runner = RestingRunner()
    clock = SystemClock()
    sched = Scheduler(KvCache(geometry(400), realm()), Limits(window=1000), clock)
    engine = EngineClient(Engine(sched, runner, clock), clock).start()
    while runner.rested < 5:
        time.sleep(0.001)
    heard = Heard()
    engine.submit(request("a", [1, 2, 3]), heard)
    assert heard.ended.wait(20)
    before = runner.rested
    while runner.rested < before + 5:
        time.sleep(0.001)
    engine.stop()
    assert not engine.status().alive


def test_a_long_step_is_given_up_for_who_comes_meanwhile() -> None:
    reading = threading.Event()

    def wait(seconds: float) -> None:
        reading.set()
        time.sleep(seconds)

    clock = SystemClock()
    runner = VirtualRunner(wait=wait)
    sched = Scheduler(KvCache(geometry(20_000), realm()), Limits(window=80_000), clock)
    engine = EngineClient(Engine(sched, runner, clock), clock).start()
    long, short = Heard(), Heard()
    engine.submit(request("long", list(range(4000))), long)  # a step of more than a second
    assert reading.wait(20)
    engine.submit(request("short", [1, 2, 3]), short)
    assert short.ended.wait(20)
    assert engine.status().steps_given_up == 1
    engine.abort("long")
    assert long.ended.wait(20)
    engine.stop()


def test_an_id_in_use_is_refused_and_free_again_afterwards() -> None:
    engine = client()
    one = Heard()
    engine.submit(request("x", [1, 2, 3], 200), one)
    with pytest.raises(ValueError, match="in use"):
        engine.submit(request("x", [1]), Heard())
    assert one.ended.wait(20)
    two = Heard()
    engine.submit(request("x", [1]), two)
    assert two.ended.wait(20)
    engine.stop()


def test_stopping_finishes_what_runs_refuses_what_comes_and_ends() -> None:
    engine = client(wait=lambda s: time.sleep(0.002))
    running, late = Heard(), Heard()
    engine.submit(request("running", [1, 2, 3], 50), running)
    while not running.tokens:
        time.sleep(0.001)
    stopper = threading.Thread(target=engine.stop, args=(20.0,))
    stopper.start()
    while not engine.status().stopping:
        time.sleep(0.001)
    try:
        engine.submit(request("late", [1]), late)
    except EngineStopped:
        late.ended.set()
    assert running.ended.wait(20)
    assert late.ended.wait(20)
    stopper.join(20)
    assert len(running.tokens) == 50
    for event in late.events:
        assert isinstance(event, Refused)
        assert event.kind is RefusalKind.STOPPING
    with pytest.raises(EngineStopped):
        engine.submit(request("after", [1]), Heard())


def test_the_grace_ends_and_answers_are_cut_as_cancelled() -> None:
    engine = client(wait=lambda s: time.sleep(0.01))
    heard = Heard()
    engine.submit(request("long", [1, 2, 3], 900), heard)
    while not heard.tokens:
        time.sleep(0.001)
    engine.stop(grace_s=0.05)
    assert heard.ended.is_set()
    finished = heard.events[-1]
    assert isinstance(finished, Finished)
    assert finished.reason is FinishReason.CANCELLED
    assert 0 < len(heard.tokens) < 900


def test_a_deliver_that_raises_harms_nobody_else() -> None:
    engine = client()
    heard = Heard()

    def broken(event: Event) -> None:
        raise RuntimeError("caller's fault")

    engine.submit(request("broken", [1, 2, 3]), broken)
    engine.submit(request("fine", [4, 5, 6]), heard)
    assert heard.ended.wait(20)
    assert heard.tokens == expected_answer(b"a", [4, 5, 6], 5)
    engine.stop()


def test_an_engine_that_breaks_tells_everybody_and_takes_no_more() -> None:
    engine = client(wait=lambda s: time.sleep(0.005))
    heard = Heard()
    engine.submit(request("victim", [1, 2, 3], 500), heard)
    while not heard.tokens:
        time.sleep(0.001)

    def broken(*args: object) -> None:
        raise RuntimeError("broken invariant")

    engine._engine.sched.commit = broken  # type: ignore[method-assign,assignment]
    assert heard.ended.wait(20)
    finished = heard.events[-1]
    assert isinstance(finished, Finished)
    assert finished.reason is FinishReason.FAILED
    assert "restart" in finished.message
    with pytest.raises(EngineStopped, match="has failed"):
        engine.submit(request("next", [1]), Heard())
    assert not engine.status().alive


def test_the_thread_sleeps_while_there_is_nothing_to_do() -> None:
    steps = []
    engine = client(before=lambda plan: steps.append(plan.number))
    heard = Heard()
    engine.submit(request("one", [1, 2, 3], 3), heard)
    assert heard.ended.wait(20)
    time.sleep(0.05)
    before = len(steps)
    time.sleep(0.1)
    assert len(steps) == before == 3
    engine.stop()
