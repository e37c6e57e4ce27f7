"""Admit, step, cancel, evict, follow up in random order, against a serial oracle.

The tagged runner answers from what it reads back through the block tables, so a block shared
wrongly, freed early, copied short or not written changes some answer.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from virtual_engine import VirtualEngine

from kvasir.core.costs import StepCosts
from kvasir.core.requests import Sampling
from kvasir.sched.virtual import POISON

DOCUMENTS = [[(d * 37 + i * i) % 251 for i in range(60)] for d in range(3)]

CHUNKY = StepCosts((1e-3, 8e-3, 0.0, 1e-3, 0.0))  # about a dozen tokens a step


class EngineMachine(RuleBasedStateMachine):
    """A pool so small, and steps so short, that all kinds of states are met all the time."""

    def __init__(self) -> None:
        super().__init__()
        self.made = VirtualEngine(
            n_blocks=24, block_tokens=4, max_running=5, max_waiting=12, costs=CHUNKY
        )

    @rule(
        document=st.sampled_from(DOCUMENTS),
        length=st.integers(1, 60),
        extra=st.lists(st.integers(0, 255), max_size=9),
        max_tokens=st.integers(0, 25),
        namespace=st.sampled_from([b"a", b"b"]),
        n=st.sampled_from([1, 1, 1, 2]),
        scored=st.sampled_from([None, None, None, 1]),
    )
    def submit(
        self,
        document: list[int],
        length: int,
        extra: list[int],
        max_tokens: int,
        namespace: bytes,
        n: int,
        scored: int | None,
    ) -> None:
        self.made.submit(
            document[:length] + extra,
            max_tokens=max_tokens,
            namespace=namespace,
            n=n,
            prompt_logprobs=scored,
            sampling=Sampling(temperature=0.0, repetition_penalty=1.0 + 0.1 * (n - 1)),
        )

    @precondition(lambda self: self.made.requests)
    @rule(data=st.data(), extra=st.lists(st.integers(0, 255), min_size=1, max_size=5))
    def follow_up(self, data: st.DataObject, extra: list[int]) -> None:
        name = data.draw(st.sampled_from(sorted(self.made.requests)))
        request = self.made.requests[name]
        answer = self.made.answer(name).tokens
        self.made.submit(
            [*request.tokens, *answer, *extra], max_tokens=4, namespace=request.namespace
        )

    @rule(steps=st.integers(1, 8))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.made.step()

    @precondition(lambda self: self.made.requests)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.made.abort(data.draw(st.sampled_from(sorted(self.made.requests))))

    @rule()
    def run_out(self) -> None:
        self.made.run()
        self.poison_free_blocks()

    def poison_free_blocks(self) -> None:
        """Whoever reads a block that nobody wrote since it was free gets a wrong answer."""
        for block in self.made.cache._device.pool.free_blocks():
            for offset in range(4):
                self.made.slots[block * 4 + offset] = POISON

    @invariant()
    def blocks_are_conserved(self) -> None:
        self.made.cache.check()

    @invariant()
    def answers_so_far_are_right(self) -> None:
        for name in self.made.requests:
            assert self.made.right(name), f"wrong text for {self.made.requests[name]}"

    def teardown(self) -> None:
        self.made.run()
        for name, request in self.made.requests.items():
            assert self.made.right(name)
            ended = [self.made.answer(name, c).finished is not None for c in range(request.n)]
            assert all(ended) or name in self.made.refused


EngineMachine.TestCase.settings = settings(
    max_examples=int(os.environ.get("KVASIR_TEST_MACHINE_EXAMPLES", "80")),
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestEngineMachine = EngineMachine.TestCase
