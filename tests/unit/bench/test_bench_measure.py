"""What is asked of an engine, and how its answers become figures."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest
from bench_fakes import FakeCandidate

from kvasir.bench.measure import figures, measure
from kvasir.bench.results import Sample
from kvasir.bench.workload import Sizes, Workload, make, tokens_needed

SIZES = Sizes(
    read=(50, 200),
    decode=(20, 200),
    decode_tokens=11,
    shared=400,
    shared_answer=2,
    served=100,
    clients=4,
    client_prompt=30,
    client_answer=5,
)


class Direct:
    """Asks a candidate as a worker would."""

    def __init__(self) -> None:
        self.engine = FakeCandidate()
        self.peaks = iter((3 * 2**20, 8 * 2**20))

    def ask(self, op: str, **fields: Any) -> Any:
        if op == "memory":
            return next(self.peaks)
        return asdict(getattr(self.engine, op)(**fields))


def prompts() -> Workload:
    return make(range(tokens_needed(SIZES)), ([900_001], [900_002]), SIZES)  # type: ignore[arg-type]


def measured(worker: Direct, *, per_shape: bool = False) -> dict[str, Sample]:
    samples = list(measure(worker, prompts(), arm="a", repeat=2, per_shape=per_shape))
    assert all((s.arm, s.repeat) == ("a", 2) for s in samples)
    assert len({s.figure for s in samples}) == len(samples)
    return {s.figure: s for s in samples}


def test_every_figure_is_what_the_engine_does() -> None:
    got = measured(Direct())
    values = {name: sample.value for name, sample in got.items()}
    assert values == pytest.approx(
        {
            "prefill@50": 1000,
            "prefill@200": 1000,
            "decode@20": 10,
            "decode@200": 10,
            "in_process": 0.1,
            "decode_in_process": 10,
            "first_question": 0.401,
            "second_question": 0.001,
            "second_faster": 401,
            "memory_single": 3,
            "serial": 4 * 5 / (4 * (0.03 + 0.4)),
            "concurrent": 4 * 5 / (0.03 + 0.4),
            "concurrency_gain": 4,
            "memory_all": 8,
        }
    )
    assert got["second_question"].facts["reused_tokens"] == 400
    assert got["first_question"].facts["reused_tokens"] == 0
    assert got["concurrent"].facts["same_as_alone"] == 4
    assert got["concurrent"].facts["output_tokens"] == 20
    assert len(got["decode@200"].facts["tokens"]) == SIZES.decode_tokens


def test_every_measured_figure_has_a_row_and_rows_are_distinct() -> None:
    rows = [figure.key for figure in figures(SIZES)]
    assert len(set(rows)) == len(rows)
    outside = {"start", "http", "decode_http"}  # measured around the worker
    assert set(measured(Direct())) == set(rows) - outside


def test_only_the_two_questions_share_a_topic() -> None:
    worker = Direct()
    measured(worker, per_shape=True)
    topics = [topic for _, _, _, topic in worker.engine.log]
    assert sorted(t for t in topics if topics.count(t) > 1) == ["shared", "shared"]


def test_every_length_is_warmed_up_where_kernels_are_made_per_shape() -> None:
    worker = Direct()
    measured(worker, per_shape=True)
    warm = [n for _, n, _, topic in worker.engine.log if "warm-up" in topic]
    assert warm == [20, 50, 200, 100]
    worker = Direct()
    measured(worker)
    assert [n for _, n, _, topic in worker.engine.log if "warm-up" in topic] == [20]


def test_answers_that_differ_in_a_batch_are_counted() -> None:
    class Wavering(FakeCandidate):
        def answer_all(self, prompts: Any, n_tokens: int, topic: str) -> Any:
            got = super().answer_all(prompts, n_tokens, topic)
            return replace(got, tokens=((0,) * n_tokens, *got.tokens[1:]))

    worker = Direct()
    worker.engine = Wavering()
    assert measured(worker)["concurrent"].facts["same_as_alone"] == 3
