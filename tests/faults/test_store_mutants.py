"""The store's tests themselves: each planted bug must be caught by one of them."""

from __future__ import annotations

import errno

import pytest
import test_store_faults as faults
import test_store_threads as threads
from store_mutants import MUTANTS, Plant


def all_that_may_notice() -> None:
    faults.crash_everywhere(("put 0", "put 1"), 4, short=3000)
    faults.test_any_operation_may_fail_and_nothing_wrong_is_served(errno.EIO)
    faults.flip_bits_of_planes(100)
    faults.test_exchanged_planes_and_blocks_of_one_record_are_noticed()
    faults.test_swapped_and_cut_records_are_noticed()
    threads.test_a_name_is_free_for_a_new_record_once_its_old_file_is_gone()


def test_without_a_bug_they_notice_nothing() -> None:
    all_that_may_notice()


@pytest.mark.parametrize("plant", MUTANTS, ids=lambda plant: plant.__name__)
def test_a_planted_bug_is_caught(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        all_that_may_notice()
