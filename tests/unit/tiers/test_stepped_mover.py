from __future__ import annotations

import random
from array import array

import pytest
from stepped_mover import SteppedMover, TaggedMemory
from virtual_engine import geometry

from kvasir.core.clock import VirtualClock
from kvasir.core.realm import Realm
from kvasir.core.tiers import Tier
from kvasir.kv.moves import Extent, Load, Moved, Save
from kvasir.tiers.ram import RamFolder
from kvasir.tiers.store import RecordStore

N_BLOCKS = 8
BLOCK_BYTES = 4 * 8


class Virtual:
    """One block is read in a quarter of a second, and written in half of one."""

    def __init__(self) -> None:
        rng = random.Random(3)
        self.slots = array("Q", (rng.getrandbits(64) for _ in range(N_BLOCKS * 4)))
        self.clock = VirtualClock()
        self.store = RecordStore(RamFolder(2**20), 2**20)
        shape = geometry(N_BLOCKS)
        self.mover = SteppedMover(
            {Tier.DISK: self.store}, TaggedMemory(self.slots, shape),
            Realm(weights="w", numerics="n", tokenizer="t", layout="l"), shape, self.clock,
            read_bytes_per_s=4 * BLOCK_BYTES, write_bytes_per_s=2 * BLOCK_BYTES,
        )  # fmt: skip

    def save(self, move_id: int, *blocks: int, n_tokens: int | None = None) -> None:
        rng = random.Random(move_id)
        tokens = tuple(range(n_tokens or 4 * len(blocks)))
        keys = tuple(rng.randbytes(32) for _ in blocks)
        extent = Extent(
            name="", namespace_tag=bytes(16), parent=b"", keys=keys,
            tokens=tokens, start=0, block_tokens=4, n_bytes=0, compute_s=0.0, used_s=0.0,
        )  # fmt: skip
        self.mover.save(Save(id=move_id, tier=Tier.DISK, extent=extent, blocks=blocks))

    def load(self, move_id: int, record: str, *blocks: int) -> None:
        n_bytes = len(blocks) * BLOCK_BYTES
        self.mover.load(
            Load(id=move_id, tier=Tier.DISK, record=record, first=0, blocks=blocks, n_bytes=n_bytes)
        )

    def to_next(self) -> list[Moved]:
        """Advance to the end of the next move."""
        next_s = self.mover.next_s()
        assert next_s is not None
        self.clock.advance(max(0.0, next_s - self.clock.now_s()))
        return list(self.mover.take_moved())

    def saved(self, move_id: int, *blocks: int, n_tokens: int | None = None) -> str:
        self.save(move_id, *blocks, n_tokens=n_tokens)
        [moved] = self.to_next()
        assert not moved.problem
        return moved.record


@pytest.mark.parametrize("n_tokens", [1, 4])
def test_tags_come_back_and_nothing_else_changes(n_tokens: int) -> None:
    virtual = Virtual()
    before = virtual.slots[:]
    record = virtual.saved(1, 6, n_tokens=n_tokens)
    for slot in range(24, 28):
        virtual.slots[slot] = 7
    virtual.load(2, record, 2)
    assert virtual.to_next() == [Moved(id=2)]
    assert virtual.slots[8 : 8 + n_tokens] == before[24 : 24 + n_tokens]
    assert virtual.slots[8 + n_tokens : 24] == before[8 + n_tokens : 24]
    assert virtual.slots[:8] == before[:8]


def test_moves_end_when_the_clock_says_so_each_kind_by_itself() -> None:
    virtual = Virtual()
    assert virtual.mover.next_s() is None
    record = virtual.saved(1, 0)
    assert virtual.clock.now_s() == 0.5
    virtual.save(2, 1, 2)  # 0.5 … 1.5
    virtual.load(3, record, 4)  # 0.5 … 0.75
    virtual.load(4, record, 5)  # 0.75 … 1.0
    assert virtual.mover.load_s(BLOCK_BYTES, Tier.DISK) == 0.75
    assert not virtual.mover.take_moved()
    assert virtual.mover.next_s() == 0.75
    assert [m.id for m in virtual.to_next()] == [3]
    virtual.clock.advance(10.0)
    assert [m.id for m in virtual.mover.take_moved()] == [4, 2]
    assert virtual.mover.next_s() is None
    virtual.load(5, record, 6)
    assert virtual.mover.next_s() == 11.0


def test_a_block_is_read_and_written_at_the_end_of_its_move() -> None:
    virtual = Virtual()
    record = virtual.saved(1, 0)
    first, second = virtual.slots[0], 12345
    virtual.load(2, record, 4)
    virtual.save(3, 1)
    virtual.slots[4] = second
    virtual.clock.advance(0.24)
    assert not virtual.mover.take_moved()
    assert virtual.slots[16] != first
    assert [m.id for m in virtual.to_next()] == [2]
    assert virtual.slots[16] == first
    [moved] = virtual.to_next()
    virtual.load(4, moved.record, 5)
    virtual.to_next()
    assert virtual.slots[20] == second


def test_only_loads_that_have_not_begun_are_withdrawn() -> None:
    virtual = Virtual()
    record = virtual.saved(1, 0)
    for move_id, block in ((2, 3), (3, 4), (4, 5)):
        virtual.load(move_id, record, block)
    assert not virtual.mover.withdraw(2)
    assert virtual.mover.withdraw(3)
    assert not virtual.mover.withdraw(3)
    assert [m.id for m in virtual.to_next()] == [2]
    assert not virtual.mover.withdraw(4)
    assert virtual.clock.now_s() == 0.75
    assert [m.id for m in virtual.to_next()] == [4]
    assert virtual.clock.now_s() == 1.0


def test_drops_keep_their_place_among_saves() -> None:
    virtual = Virtual()
    record = virtual.saved(1, 0)
    virtual.save(2, 1)
    virtual.mover.drop(Tier.DISK, record)
    virtual.save(3, 2)
    assert record in virtual.store.records
    assert [m.id for m in virtual.to_next()] == [2]
    assert record not in virtual.store.records
    virtual.load(4, record, 4)
    [moved] = virtual.to_next()
    assert (moved.id, moved.problem) == (4, "the record is not there any more")
    virtual.mover.use(Tier.DISK, virtual.to_next()[0].record)
    assert sorted(virtual.store.used_s(name) for name in virtual.store.records) == [1.0, 1.5]
    [status] = virtual.mover.status()
    assert (status.saved_bytes, status.loaded_bytes) == (3 * BLOCK_BYTES, 0)
