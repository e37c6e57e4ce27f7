"""Memory pressure, bounds and refusals: nothing is killed, nothing waits for ever."""

from __future__ import annotations

import random
import sys
from collections import Counter

import pytest
from virtual_engine import VirtualEngine, text

from kvasir.core.costs import StepCosts
from kvasir.core.events import FinishReason, RefusalKind


def test_eight_requests_in_a_pool_of_one_prompt_and_a_fifth() -> None:
    rng = random.Random(3)
    made = VirtualEngine(n_blocks=30, block_tokens=4)  # 120 tokens; a prompt has 100
    names = [made.submit(text(rng, 100), max_tokens=20) for _ in range(8)]
    made.run()
    assert all(made.right(name) for name in names)
    assert not made.refused


def test_answers_that_outgrow_the_pool_are_preempted_and_resumed_with_the_same_text() -> None:
    rng = random.Random(4)
    made = VirtualEngine(n_blocks=30, block_tokens=4, answer_room_tokens=0)
    names = [made.submit(text(rng, 12), max_tokens=60) for _ in range(8)]
    made.run()
    assert all(made.right(name) for name in names)
    assert made.sched.counts["preemptions"] > 0
    for name in names:
        answer = made.answer(name)
        assert answer.finished is not None
        assert answer.finished.reason is FinishReason.LENGTH
    preempted = sum(made.answer(n).finished.usage.preemptions for n in names)  # type: ignore[union-attr]
    assert preempted == made.sched.counts["preemptions"]


def test_steps_given_up_at_random_change_no_answer() -> None:
    """With copies of tails, preemption and aborts, in a pool that is too small for all."""
    rng = random.Random(6)
    slow = StepCosts((5e-3, 0.1, 0.0, 1e-3, 0.0))
    made = VirtualEngine(n_blocks=60, block_tokens=4, answer_room_tokens=0, costs=slow)
    base = text(rng, 80)
    names = []
    for _ in range(2000):
        if rng.random() < 0.1:
            prompt = base[: rng.randrange(1, 81)] + text(rng, rng.randrange(9))
            names += [
                made.submit(prompt + text(rng, 2), max_tokens=rng.randrange(30))
                for _ in range(rng.choice([1, 1, 4]))
            ]
        if names and rng.random() < 0.02:
            made.abort(rng.choice(names))
        made.sched._pace._owed_s = 0.0  # give up as often as can be
        made.step(lambda: rng.random() < 0.02)
    made.run()
    assert made.engine.status().steps_given_up > 5
    assert made.sched.counts["preemptions"] > 0
    assert all(made.right(name) for name in names)


def test_what_can_never_fit_is_refused_at_once_with_the_numbers() -> None:
    made = VirtualEngine(n_blocks=10, block_tokens=4, window=1000)
    name = made.submit(list(range(38)), max_tokens=3)
    made.step()
    refused = made.refused[name]
    assert refused.kind is RefusalKind.NEVER_FITS
    assert all(number in refused.message for number in ("41", "38", "3", "40"))
    fits = made.submit(list(range(38)), max_tokens=2)
    made.run()
    assert made.right(fits)
    beyond = VirtualEngine(n_blocks=1000, window=50)
    name = beyond.submit(list(range(48)), max_tokens=3)
    beyond.step()
    assert "maximum context length is 50 tokens" in beyond.refused[name].message
    assert "requested 51 tokens" in beyond.refused[name].message


def test_the_queue_is_bounded_in_requests() -> None:
    made = VirtualEngine(n_blocks=1000, max_running=2, max_waiting=3)
    rng = random.Random(5)
    names = [made.submit(text(rng, 8), max_tokens=30) for _ in range(3)]
    made.step()
    names += [made.submit(text(rng, 8), max_tokens=30) for _ in range(4)]
    made.step()
    assert [r.kind for r in made.refused.values()] == [RefusalKind.QUEUE_FULL] * 2
    assert list(made.refused) == names[-2:]
    made.run()
    assert all(made.right(name) for name in names if name not in made.refused)


def test_the_queue_is_bounded_in_tokens_but_takes_one_prompt_of_any_size() -> None:
    made = VirtualEngine(n_blocks=1000, max_running=1, max_waiting_tokens=100)
    rng = random.Random(6)
    for n_tokens in (500, 90, 20, 10):
        made.submit(text(rng, n_tokens), max_tokens=2)
        made.step()
    assert list(made.refused) == ["r2"]


def test_retry_after_is_computed_from_the_work_ahead() -> None:
    slow = StepCosts((0.01, 0.01, 0.0, 0.01, 0.0))
    waits = []
    for n_tokens in (50, 500):
        made = VirtualEngine(n_blocks=2000, max_running=1, max_waiting=1, costs=slow)
        rng = random.Random(7)
        made.submit(text(rng, 2000), max_tokens=5, namespace=b"warm")
        made.run()
        for _ in range(3):
            made.submit(text(rng, n_tokens), max_tokens=2)
            made.step()
        retry_after_s = made.refused["r3"].retry_after_s
        assert retry_after_s is not None
        waits.append(retry_after_s)
    assert waits[0] >= 1.0
    assert waits[1] > waits[0] * 3


def test_a_request_that_does_not_fit_lets_others_pass_but_not_for_ever() -> None:
    rng = random.Random(8)
    made = VirtualEngine(n_blocks=32, block_tokens=4, answer_room_tokens=0, max_waiting=1000)
    made.submit(text(rng, 40), max_tokens=40, request_id="running")
    made.step()
    made.submit(text(rng, 100), max_tokens=4, request_id="large")
    small = [made.submit(text(rng, 6), max_tokens=12, request_id=f"s{i}") for i in range(200)]
    made.run()
    order = sorted(["large", *small], key=lambda n: made.answer(n).first_token_s or 0)
    assert 0 < order.index("large") <= 80
    assert all(made.right(name) for name in order)


def test_planning_costs_the_same_over_two_hundred_thousand_tokens() -> None:
    """Counted in calls and in what the plan carries; `kvasir bench planning` shows it in time."""

    def calls_of_a_step(n_tokens: int) -> tuple[Counter[str], int]:
        made = VirtualEngine(n_blocks=4000, block_tokens=64, answer_room_tokens=0)
        made.submit([i % 251 for i in range(n_tokens)], max_tokens=70)
        while not made.answer("r0").tokens:
            made.step()
        calls: Counter[str] = Counter()

        def count(frame: object, kind: str, arg: object) -> None:
            name = arg.__name__ if kind == "c_call" else frame.f_code.co_name  # type: ignore[attr-defined]
            calls[f"{kind} {name}"] += kind in ("call", "c_call")

        carried = 0
        made.engine._runner = made.tagged
        # what a step costs is solved for as often as steps were seen, and until that converges
        made.sched._fit.observe = lambda *_: None  # type: ignore[method-assign]
        for _ in range(20):
            sys.setprofile(count)
            plan = made.sched.plan()
            sys.setprofile(None)
            carried += sum(len(w.tokens) + len(w.new_blocks) for w in plan.works)
            carried += len(plan.joins) + len(plan.copies)
            result = made.tagged.run(plan)
            sys.setprofile(count)
            made.sched.commit(plan, result)
            sys.setprofile(None)
        return calls, carried

    assert calls_of_a_step(200_000) == calls_of_a_step(2_000 + (200_000 - 2_000) % 64)


@pytest.mark.parametrize("when", ["waiting", "reading", "answering"])
def test_cancel_frees_the_blocks_at_the_next_step_and_keeps_what_was_sealed(when: str) -> None:
    made = VirtualEngine(
        n_blocks=400, block_tokens=4, max_running=1, costs=StepCosts((0.001, 0.001, 0, 0.001, 0))
    )
    rng = random.Random(9)
    other = made.submit(text(rng, 10), max_tokens=200, request_id="other")
    prompt = text(rng, 1000)
    if when != "waiting":
        made.abort(other)
        made.step()
    victim = made.submit(prompt, max_tokens=200)
    made.step()
    while when == "answering" and len(made.answer(victim).tokens) < 9:
        made.step()
    computed = next((s.computed for s in made.sched._running.values() if s.n_prompt == 1000), 0)
    made.abort(victim)
    made.step()
    finished = made.answer(victim).finished
    assert finished is not None
    assert finished.reason is FinishReason.CANCELLED
    made.abort(other)
    made.step()
    assert made.engine.idle
    made.cache.check()
    again = made.ask(prompt, max_tokens=3)
    assert again.finished is not None
    assert again.finished.usage.reused_tokens == min(computed, 999)


def test_aborting_what_is_not_there_is_ignored() -> None:
    made = VirtualEngine()
    made.abort("nobody")
    made.step()
    assert made.engine.idle
