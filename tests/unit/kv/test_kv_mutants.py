"""Planted bugs that the tests over all tiers must notice: a check that cannot fail is a defect."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from test_kv_tiers_machine import TiersMachine
from test_kv_tiers_rare import leader_goes
from test_kv_tiers_rare import (
    test_what_is_on_its_way_is_not_loaded_a_second_time as run_three_at_once,
)

from kvasir.core.realm import Realm
from kvasir.core.tiers import Tier
from kvasir.kv.held import Held
from kvasir.kv.keys import KeyChain
from kvasir.kv.moves import Moved
from kvasir.kv.pool import BlockPool
from kvasir.kv.restore import Piece, Restore, Stage
from kvasir.kv.restorer import Restorer
from kvasir.kv.shelf import Shelf
from kvasir.kv.shelf_index import BlockIndex
from kvasir.kv.stored import StoredTiers

Patch = pytest.MonkeyPatch

BOUNDED = settings(
    max_examples=600,  # it ends with the first failure; what is drawn depends on loaded modules
    stateful_step_count=40,
    phases=[Phase.generate],
    derandomize=True,
    database=None,
    deadline=None,
    print_blob=False,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)


def run_machine() -> None:
    run_state_machine_as_test(TiersMachine, settings=BOUNDED)  # type: ignore[no-untyped-call]


def run_leader_goes() -> None:
    for seed in range(30):
        leader_goes(seed)


def double_free(patch: Patch) -> None:
    """The pool takes what is free already, and landed blocks are given back a second time."""
    give, moved = BlockPool.give, Restorer.moved

    def give_silently(pool: BlockPool, blocks: Iterable[int]) -> None:
        give(pool, set(blocks) - pool.free_blocks())

    def moved_twice(restorer: Restorer, move: Moved) -> bool:
        known = restorer._loading.get(move.id)
        ours = moved(restorer, move)
        if known is not None and not move.problem:
            restorer._device.give(known[1].blocks)
        return ours

    patch.setattr(BlockPool, "give", give_silently)
    patch.setattr(Restorer, "moved", moved_twice)


def cut_without_waiting(restorer: Restorer, restore: Restore, index: int) -> None:
    while len(restore.pieces) > index:
        piece = restore.pieces.pop()
        restorer._forget(piece)
        if piece.stage is Stage.QUEUED and not restorer._withdraw(piece):
            del restorer._loading[piece.load_id]
        restorer._device.give(piece.blocks)


def freed_while_loaded(patch: Patch) -> None:
    """Blocks are free while a load that has begun still writes into them."""
    patch.setattr(Restorer, "_cut", cut_without_waiting)


def joined_before_landing(patch: Patch) -> None:
    patch.setattr(Piece, "stage", property(lambda _: Stage.LANDED, lambda *_: None))


def keys_without_salt(patch: Patch) -> None:
    made = KeyChain.__init__

    def unsalted(chain: KeyChain, namespace: bytes, realm: Realm) -> None:
        made(chain, b"", realm)

    patch.setattr(KeyChain, "__init__", unsalted)


def places_without_salt(patch: Patch) -> None:
    patch.setattr(BlockIndex, "_place", lambda index, tag, parent: (b"", parent))


def unchecked_shelf(patch: Patch) -> None:
    patch.setattr(Shelf, "check", lambda shelf: None)


def lost_is_kept(patch: Patch) -> None:
    def lost(stored: StoredTiers, tier: Tier, record: str, *, damaged: bool) -> None:
        """Nothing is forgotten."""

    patch.setattr(StoredTiers, "lost", lost)


def removed_is_kept(patch: Patch) -> None:
    patch.setattr(Shelf, "remove", lambda shelf, name: None)


def evicted_is_kept(patch: Patch) -> None:
    """A block that has left the index by name is still found by key."""
    patch.setattr(BlockIndex, "remove", lambda index, extent: None)


def holds_are_ignored(patch: Patch) -> None:
    patch.setattr(Held, "__contains__", lambda held, name: False)
    patch.setattr(Held, "is_right", lambda held, kept: True)


def pins_leak(patch: Patch) -> None:
    def end(restorer: Restorer, restore: Restore) -> None:
        if restore.done and restore in restorer._active:
            restorer._active.remove(restore)

    patch.setattr(Restorer, "_end_if_done", end)


def never_coming(patch: Patch) -> None:
    """What is on its way is loaded a second time."""
    patch.setattr(Restorer, "brings", lambda restorer, key: False)


@pytest.mark.parametrize(
    ("plant", "run"),
    [
        ([double_free], run_machine),
        ([joined_before_landing], run_machine),
        ([keys_without_salt], run_machine),
        ([keys_without_salt, places_without_salt], run_machine),
        ([keys_without_salt, places_without_salt, unchecked_shelf], run_machine),
        ([places_without_salt], run_machine),
        ([lost_is_kept], run_machine),
        ([removed_is_kept], run_machine),
        ([evicted_is_kept], run_machine),
        ([evicted_is_kept, unchecked_shelf], run_machine),
        ([pins_leak], run_machine),
        ([holds_are_ignored], run_machine),
        ([freed_while_loaded], run_leader_goes),
        ([never_coming], run_three_at_once),
    ],
    ids=lambda value: "+".join(p.__name__ for p in value) if isinstance(value, list) else "",
)
def test_a_planted_bug_is_caught(
    plant: list[Callable[[Patch], None]], run: Callable[[], None], monkeypatch: Patch
) -> None:
    for bug in plant:
        bug(monkeypatch)
    with pytest.raises((AssertionError, RuntimeError, KeyError, IndexError, ValueError)):
        run()


def test_without_a_planted_bug_the_same_runs_find_nothing() -> None:
    run_machine()
