from __future__ import annotations

import random

import pytest
import torch

from kvasir.attention.backend import BACKENDS, Situation, choose
from kvasir.attention.batch import describe
from kvasir.core.errors import ConfigError
from kvasir.kernels import reference
from kvasir.kernels.paging import BlockTable, Span

CPU = torch.device("cpu")


def table(*runs: tuple[int, int]) -> BlockTable:
    made = BlockTable(4, CPU)
    made.append(runs)
    return made


def test_positions_and_slots_follow_the_table() -> None:
    spans = [Span(0, 3, 6, table((5, 1), (2, 2))), Span(3, 1, 0, table((9, 1)))]
    batch = describe(spans, reference.plan, (None,), CPU)
    assert batch.positions.tolist() == [6, 7, 8, 0]
    assert batch.slots.tolist() == [10, 11, 12, 36]


def test_a_window_that_nobody_outgrows_shares_the_plan_of_full_attention() -> None:
    spans = [Span(0, 3, 6, table((5, 3)))]
    batch = describe(spans, reference.plan, (8, None, 9, 100), CPU)
    assert batch.plans[9] is batch.plans[None] is batch.plans[100]
    assert batch.plans[8] is not batch.plans[None]


def test_a_table_joins_neighbours_and_splits_at_gaps() -> None:
    made = table((3, 1), (4, 2), (9, 1))
    assert made.pieces(0, 16, 8) == [(12, 12), (36, 4)]
    assert made.pieces(5, 14, 8) == [(17, 7), (36, 2)]
    assert made.pieces(0, 16, 1) is None
    assert made.blocks(5, 14)[0].tolist() == [4, 5, 9]
    assert made.blocks(5, 14)[1] == 1


def test_a_table_that_is_cut_and_grown_equals_one_made_at_once() -> None:
    rng = random.Random(1)
    for _ in range(200):
        ids = [rng.randrange(6) for _ in range(rng.randrange(1, 40))]
        made, kept = BlockTable(4, CPU), 0
        while kept < len(ids):
            made.cut(max(0, len(made) - rng.randrange(4)))
            n = len(made)
            step = rng.randrange(1, 12)
            made.append((block, 1) for block in ids[n : n + step])
            kept = len(made)
        at_once = BlockTable(4, CPU)
        at_once.append((block, 1) for block in ids)
        high = 4 * len(ids)
        low = rng.randrange(high)
        assert made.pieces(low, high, 99) == at_once.pieces(low, high, 99)
        assert made.blocks(0, high)[0].tolist() == ids
        assert made.slots(low, 1)[0] == made.slot(low) == ids[low // 4] * 4 + low % 4


def test_keeping_more_blocks_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError):
        table((0, 2)).cut(3)


def test_the_host_does_not_work_more_for_a_longer_sequence() -> None:
    """Counted, not timed: a growing table touches only what is new, and a step over a long
    sequence of few runs asks for few pieces."""
    long = table((0, 50_000))
    long.append([(60_000, 1)])
    assert len(long.pieces(0, long.capacity_tokens, 8) or []) == 2
    assert len(long._run_first) == 2
    scattered = table(*((2 * i, 1) for i in range(50_000)))
    assert scattered.pieces(0, scattered.capacity_tokens, 8) is None  # given up after 8


def test_the_fastest_backend_without_objections_is_taken_and_all_are_explained() -> None:
    choice = choose(Situation(device=CPU, dtype=torch.bfloat16))
    assert choice.backend.name == "torch-cpu"
    assert len(choice.reasons) == len(BACKENDS)
    cuda = choose(Situation(device=torch.device("cuda"), dtype=torch.bfloat16))
    assert cuda.backend.name == "torch-sdpa"
    assert "torch-cpu: no, it is for CPUs, the device is cuda" in cuda.reasons


def test_a_backend_can_be_named_and_a_wrong_name_is_refused() -> None:
    situation = Situation(device=CPU, dtype=torch.float16)
    assert choose(situation, "reference").backend.name == "reference"
    with pytest.raises(ConfigError, match="float16"):
        choose(situation, "torch-cpu")
    with pytest.raises(ConfigError, match="choose one of auto"):
        choose(situation, "flash")
