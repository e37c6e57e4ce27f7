"""Who computes what: step budgets, short prompts beside long ones, fair shares."""

from __future__ import annotations

import heapq
import itertools
import random

import pytest
from virtual_engine import VirtualEngine, text

from kvasir.core.costs import StepCosts
from kvasir.core.events import Progress
from kvasir.sched.virtual import VirtualRunner

MACHINE = StepCosts((5e-3, 2.5e-4, 2e-8, 5e-4, 5e-8))
BUDGET_S = 0.1


def engine(**options: object) -> VirtualEngine:
    fields: dict = {"n_blocks": 1024, "block_tokens": 64, "costs": MACHINE} | options
    made = VirtualEngine(**fields)
    runner = VirtualRunner(fields["costs"], made.clock)
    made.engine._runner = runner
    return made


def learn(made: VirtualEngine) -> None:
    """Let the cost model see enough steps to know the machine."""
    rng = random.Random(7)
    for _ in range(12):
        made.submit(text(rng, rng.randrange(300, 2500)), max_tokens=8, namespace=b"warm")
    made.run()


@pytest.mark.parametrize(("answers", "budgets"), [(0, 20.0), (1, 1.0)])
def test_steps_fill_their_budget_once_the_machine_is_known(answers: int, budgets: float) -> None:
    """Steps are longer while no answer is running: nobody waits for their end."""
    made = engine(max_step_tokens=100_000)
    learn(made)
    for i in range(answers):
        made.submit([i, 1, 2, 3], max_tokens=2000)
        made.step()
    name = made.submit(list(range(24_000)), max_tokens=1)
    durations = []
    while made.answer(name).first_token_s is None:
        before = made.clock.now_s()
        made.step()
        durations.append(made.clock.now_s() - before)
    assert max(durations) <= BUDGET_S * budgets * 1.25
    assert min(durations[:-1]) >= BUDGET_S * budgets * 0.8


def test_a_step_holds_no_more_tokens_than_its_memory_was_reckoned_for() -> None:
    made = engine(max_step_tokens=1000)
    learn(made)
    for length in (5000, 700, 300):
        made.submit(text(random.Random(length), length), max_tokens=1)
    computed = [made.engine.status().computed_tokens]
    while len(computed) == 1 or not made.engine.idle:
        made.step()
        computed.append(made.engine.status().computed_tokens)
    assert computed[-1] - computed[0] == 6000
    assert max(b - a for a, b in itertools.pairwise(computed)) <= 1000


def test_answers_keep_streaming_while_a_long_prompt_is_read() -> None:
    made = engine()
    learn(made)
    rng = random.Random(1)
    answers = [made.submit(text(rng, 200), max_tokens=400) for _ in range(5)]
    for _ in range(20):
        made.step()
    made.submit(text(rng, 8000), max_tokens=1, request_id="long")
    made.run()
    long = made.answer("long")
    assert long.started is not None
    assert long.first_token_s is not None
    for request_id in answers:
        times = made.answer(request_id).token_times_s
        gaps = [b - a for a, b in itertools.pairwise(times)]
        assert max(gaps) <= 2 * BUDGET_S


def test_a_short_prompt_has_its_first_token_within_four_budgets() -> None:
    for arrival_steps in (1, 5, 17, 30):
        made = engine()
        learn(made)
        rng = random.Random(arrival_steps)
        made.submit(text(rng, 8000), max_tokens=50)
        for _ in range(3):
            made.submit(text(rng, 6000), max_tokens=50)
        for _ in range(arrival_steps):
            made.step()
        arrived_s = made.clock.now_s()
        short = made.submit(text(rng, 50), max_tokens=5)
        made.run()
        first_s = made.answer(short).first_token_s
        assert first_s is not None
        assert first_s - arrived_s <= 4 * BUDGET_S


def step_until(made: VirtualEngine, at_s: float) -> float:
    """Steps until ``at_s``, when somebody comes, which is noticed within a step; gives the seconds
    of the steps that were given up for it."""
    lost_s = 0.0
    while made.clock.now_s() < at_s and not made.engine.idle:
        before_s, before = made.clock.now_s(), made.engine.status().steps_given_up
        made.step(lambda: made.clock.now_s() >= at_s)
        if made.engine.status().steps_given_up > before:
            lost_s += made.clock.now_s() - before_s
    return lost_s


@pytest.mark.parametrize("into_s", [0.02, 0.3, 0.74, 0.8, 1.3, 1.9, 2.2])
def test_a_short_prompt_does_not_wait_for_the_end_of_a_long_step(into_s: float) -> None:
    made = engine()
    learn(made)
    long = made.submit(text(random.Random(5), 24_000), max_tokens=1)
    made.step()
    at_s = made.clock.now_s() + into_s
    step_until(made, at_s)
    assert not made.engine.idle
    short = made.submit(range(50), max_tokens=1)
    made.run()
    first_s = made.answer(short).first_token_s
    assert first_s is not None
    assert first_s - at_s <= 4 * BUDGET_S
    assert made.answer(long).finished is not None


def test_a_step_that_is_long_because_it_cannot_be_shorter_is_not_given_up() -> None:
    """Somebody comes in every step: answers still advance, and a wrong cost model still learns."""
    slow = StepCosts((0.5, *MACHINE.coefficients[1:]))
    made = engine(costs=slow)
    answers = [made.submit([i, 1, 2], max_tokens=5) for i in range(3)]
    for _ in range(12):
        made.step(lambda: True)
    assert all(made.answer(name).finished is not None for name in answers)

    _, b, *others = MACHINE.coefficients
    much_slower = StepCosts((5e-3, 50 * b, *others))  # type: ignore[arg-type]
    made = engine(costs=much_slower)
    name = made.submit(list(range(1000)), max_tokens=1)
    for _ in range(400):
        made.step(lambda: True)
        if made.engine.idle:
            break
    assert made.answer(name).finished is not None


def test_giving_long_steps_up_costs_at_most_one_twenty_fifth_of_the_time() -> None:
    """Short prompts come when most of a long step is done, again and again."""
    made = engine()
    learn(made)
    rng = random.Random(5)
    began_s = made.clock.now_s()
    long = made.submit(text(rng, 50_000), max_tokens=1)
    made.step()
    lost_s = 0.0
    while made.answer(long).finished is None:
        lost_s += step_until(made, made.clock.now_s() + 0.7)
        made.submit(text(rng, 3), max_tokens=1)
        made.step()
    assert made.engine.status().steps_given_up >= 1
    assert 0 < lost_s <= (made.clock.now_s() - began_s) / 25 + 2.0  # and the last one, unpaid


def fluid_finish_s(arrivals: list[tuple[float, float]]) -> list[float]:
    """When each (arrival, work) ends if all present share one machine perfectly evenly."""
    finish = [0.0] * len(arrivals)
    now = level = 0.0
    present: list[tuple[float, int]] = []
    for i, (arrival_s, work_s) in [*enumerate(arrivals), (-1, (float("inf"), 0.0))]:
        while present:
            done_s = now + (present[0][0] - level) * len(present)
            if done_s > arrival_s:
                break
            level, ended = heapq.heappop(present)
            now = finish[ended] = done_s
        if i < 0:
            break
        if present:
            level += (arrival_s - now) / len(present)
        now = arrival_s
        heapq.heappush(present, (level + work_s, i))
    return finish


def test_the_fluid_model_shares_evenly() -> None:
    assert fluid_finish_s([(0.0, 2.0), (1.0, 1.0)]) == pytest.approx([3.0, 3.0])
    assert fluid_finish_s([(0.0, 1.0), (0.0, 3.0), (9.0, 1.0)]) == pytest.approx([2.0, 4.0, 10.0])


def test_ten_thousand_arrivals_each_wait_at_most_twice_their_fair_share() -> None:
    """Fair share: the time that a perfectly even division of the machine would take, to the step,
    which may be a long one where the arrival found one prompt alone.

    Work is a prompt's reading time, with the step's fixed cost spread over full steps.
    """
    rng = random.Random(42)
    made = engine(n_blocks=40_000, max_running=4096, max_waiting=20_000)
    made.engine._check_every_s = 1e9
    learn(made)
    overhead = BUDGET_S / (BUDGET_S - MACHINE.coefficients[0])
    arrivals: list[tuple[float, float]] = []
    prompts: list[tuple[str, int]] = []
    at_s = made.clock.now_s()
    for i in range(10_000):
        n_tokens = min(8000, int(rng.lognormvariate(5.0, 1.3)) + 16)
        at_s += rng.expovariate(2.6 if i % 400 < 300 else 5.5)  # with bursts beyond capacity
        arrivals.append((at_s, MACHINE.prefill_s(n_tokens, 0) * overhead))
        prompts.append((f"q{i}", n_tokens))
    fair = fluid_finish_s(arrivals)
    sent = 0

    def arrived() -> bool:
        return sent < len(prompts) and arrivals[sent][0] <= made.clock.now_s()

    while sent < len(prompts) or not made.engine.idle:
        if made.engine.idle and arrivals[sent][0] > made.clock.now_s():
            made.clock.advance(arrivals[sent][0] - made.clock.now_s())
        while arrived():
            name, n_tokens = prompts[sent]
            made.submit([300 + sent] * n_tokens, max_tokens=1, request_id=name)
            sent += 1
        made.step(arrived)
    assert not made.refused
    longest_step_s = BUDGET_S * made.sched.limits.patience
    worst = 0.0
    for (name, _), (arrival_s, _), fair_s in zip(prompts, arrivals, fair, strict=True):
        first_s = made.answer(name).first_token_s
        assert first_s is not None
        worst = max(worst, (first_s - arrival_s) / (fair_s - arrival_s + longest_step_s))
    assert worst <= 2.0


def test_progress_is_reported_with_a_plausible_time_to_go() -> None:
    made = engine()
    learn(made)
    name = made.submit(list(range(6000)), max_tokens=1)
    made.run()
    reports = [e for e in made.events if isinstance(e, Progress) and e.request_id == name]
    assert [r.processed_tokens for r in reports] == sorted({r.processed_tokens for r in reports})
    assert reports[-1].processed_tokens == reports[-1].total_tokens == 6000
    assert reports[-1].eta_s == 0
    first_s = made.answer(name).first_token_s
    read = reports[0].processed_tokens
    assert first_s is not None
    assert reports[0].eta_s == pytest.approx(MACHINE.prefill_s(6000 - read, read), rel=0.3)
