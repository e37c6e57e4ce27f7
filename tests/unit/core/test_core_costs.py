"""The cost model: learns a machine, never predicts less than nothing, is not fooled by outliers."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kvasir.core.costs import PRIOR, CostFit, StepCosts, StepShape, Vector

MACHINES: list[Vector] = [
    (8e-3, 2e-4, 3e-8, 4e-4, 2e-7),
    (2e-4, 1e-6, 1e-11, 5e-6, 1e-9),
    (5e-2, 5e-3, 1e-6, 2e-2, 5e-6),
]


def shape(rng: random.Random) -> StepShape:
    made = StepShape()
    for _ in range(rng.randrange(0, 4)):
        made = made.with_work(rng.randrange(2, 500), rng.randrange(0, 8000))
    for _ in range(rng.randrange(0 if made.n_prefill else 1, 20)):
        made = made.with_work(1, rng.randrange(0, 8000))
    return made


def train(machine: Vector, steps: int, rng: random.Random, fit: CostFit | None = None) -> CostFit:
    fit = fit or CostFit()
    for _ in range(steps):
        step = shape(rng)
        fit.observe(step, StepCosts(machine).step_s(step) * rng.uniform(0.95, 1.05))
    return fit


@pytest.mark.parametrize("machine", MACHINES)
def test_it_learns_a_machine(machine: Vector) -> None:
    rng = random.Random(1)
    fit = train(machine, 300, rng)
    for _ in range(50):
        step = shape(rng)
        assert fit.costs.step_s(step) == pytest.approx(StepCosts(machine).step_s(step), rel=0.15)


def test_coefficients_are_never_negative() -> None:
    rng = random.Random(2)
    fit = CostFit()
    for _ in range(300):
        fit.observe(shape(rng), rng.uniform(1e-4, 1.0))
        assert min(fit.costs.coefficients) >= 0


def test_outliers_are_ignored_and_lasting_changes_are_not() -> None:
    rng = random.Random(3)
    fit = train(MACHINES[0], 200, rng)
    before = fit.costs
    for _ in range(3):
        fit.observe(shape(rng), 30.0)
    assert fit.costs == before
    slower: Vector = tuple(4 * k for k in MACHINES[0])  # type: ignore[assignment]
    train(slower, 120, rng, fit)
    step = shape(rng)
    assert fit.costs.step_s(step) == pytest.approx(StepCosts(slower).step_s(step), rel=0.25)


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_durations_are_ignored(wrong: float) -> None:
    fit = CostFit()
    fit.observe(StepShape().with_work(10, 0), wrong)
    assert fit.costs.coefficients == PRIOR


@given(
    st.floats(1e-4, 10.0),
    st.integers(0, 200_000),
    st.floats(0, 1e-2),
    st.floats(0, 1e-6),
)
@example(0.25, 0, 9.421449717532046e-297, 5e-324)  # a fit may end up with such a coefficient
@example(1.25, 1, 0.0, 5e-324)
def test_tokens_for_a_time_and_time_for_tokens_agree(
    seconds: float, start: int, b: float, c: float
) -> None:
    costs = StepCosts((0.0, b, c, 0.0, 0.0))
    n = costs.prefill_tokens(seconds, start)
    assert costs.prefill_s(n, start) <= seconds * (1 + 1e-6)
    assert n == 2**31 or costs.prefill_s(n + 1, start) >= seconds * (1 - 1e-6)


def test_chunks_of_a_prompt_cost_what_the_whole_costs() -> None:
    costs = StepCosts(MACHINES[0])
    parts = sum(costs.prefill_s(100, start) for start in range(0, 1000, 100))
    assert parts == pytest.approx(costs.prefill_s(1000, 0))
