"""The block pool: contiguous runs, and nothing lost, under random use."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvasir.core.plans import Run, as_runs
from kvasir.kv.pool import BlockPool


def test_takes_one_run_where_one_is_free() -> None:
    pool = BlockPool(10)
    assert pool.take(4) == [0, 1, 2, 3]
    assert pool.take(3) == [4, 5, 6]
    pool.give([0, 1, 2, 3])
    assert pool.take(3) == [7, 8, 9]  # the smallest interval that holds it


def test_continues_behind_the_last_block() -> None:
    pool = BlockPool(10)
    first = pool.take(2)
    assert pool.take(2, after=first[-1]) == [2, 3]


def test_splits_only_when_no_interval_holds_it() -> None:
    pool = BlockPool(10)
    blocks = pool.take(10)
    pool.give([blocks[i] for i in (0, 1, 4, 5, 6, 9)])
    assert as_runs(pool.take(5)) == (Run(4, 3), Run(0, 2))


@pytest.mark.parametrize("wrong", [[3], [0, 0], [10], [-1]])
def test_giving_what_was_not_taken_is_an_error(wrong: list[int]) -> None:
    pool = BlockPool(10)
    pool.take(2)
    with pytest.raises(ValueError, match=r"free already|not in the pool"):
        pool.give(wrong)


def test_taking_more_than_is_free_is_an_error() -> None:
    with pytest.raises(ValueError, match="3 blocks wanted, 2 free"):
        BlockPool(2).take(3)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9), st.randoms()), max_size=60))
@settings(max_examples=150, deadline=None)
def test_free_and_taken_add_up(steps: list) -> None:
    pool, taken = BlockPool(24), set()
    for give, count, rng in steps:
        if give:
            back = rng.sample(sorted(taken), min(count, len(taken)))
            pool.give(back)
            taken -= set(back)
        elif count <= pool.n_free:
            got = pool.take(count)
            assert len(set(got)) == count
            assert not taken & set(got)
            taken |= set(got)
        assert pool.free_blocks() == set(range(24)) - taken
        assert pool.n_free == 24 - len(taken)
