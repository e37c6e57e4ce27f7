from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mover_bench import Bench, benches, shape

from kvasir.core.tiers import Tier
from kvasir.kv.moves import Moved
from kvasir.tiers.folder import RealFolder


@pytest.fixture
def made() -> Iterator[Callable[..., Bench]]:
    with benches() as make:
        yield make


class Hammer:
    """Plays the cache: every block belongs to nobody, a save or a load."""

    def __init__(self, bench: Bench, rng: random.Random) -> None:
        self.bench, self.rng = bench, rng
        self.free = list(range(bench.geometry.n_blocks))
        self.records: dict[str, tuple[int, bytes]] = {}  # seed, content by blocks
        self.saves: dict[int, tuple[list[int], int, list[bytes]]] = {}
        self.loads: dict[int, tuple[str, list[int], list[bytes]]] = {}
        self.right = self.seed = 0

    def step(self) -> None:
        acts = (self.save, self.load, self.drop, self.withdraw, self.use)
        self.rng.choices(acts, (4, 6, 2, 1, 1))[0]()
        for moved in self.bench.take():
            self.ended(moved)
        if len(self.free) < 8:
            self.bench.told.acquire(timeout=0.01)

    def settle(self) -> None:
        for move in (*self.saves, *self.loads):
            self.bench.end(move)
            if move in self.saves or move in self.loads:
                self.ended(self.bench.moved[move])
        self.bench.written()
        assert len(self.free) == self.bench.geometry.n_blocks

    def take_blocks(self, count: int) -> list[int]:
        self.rng.shuffle(self.free)
        taken, self.free = self.free[:count], self.free[count:]
        return taken

    def save(self) -> None:
        count = self.rng.randint(1, 4)
        if len(self.free) < count:
            return
        blocks = self.take_blocks(count)
        self.seed += 1
        self.bench.noise(blocks, self.seed)
        pieces = [self.bench.content([block]) for block in blocks]
        self.saves[self.bench.save(blocks, seed=self.seed)] = blocks, self.seed, pieces

    def load(self) -> None:
        if not self.records or len(self.free) < 4:
            return
        name = self.rng.choice(list(self.records))
        pieces = self.records[name][1]
        first = self.rng.randrange(len(pieces))
        count = self.rng.randint(1, len(pieces) - first)
        blocks = self.take_blocks(count)
        load = self.bench.load(name, blocks, first)
        self.loads[load] = name, blocks, pieces[first : first + count]

    def drop(self) -> None:
        if len(self.records) > 10:
            name = self.rng.choice(list(self.records))
            del self.records[name]
            self.bench.mover.drop(Tier.DISK, name)

    def withdraw(self) -> None:
        if self.loads:
            load = self.rng.choice(list(self.loads))
            if self.bench.mover.withdraw(load):
                self.free += self.loads.pop(load)[1]

    def use(self) -> None:
        if self.records:
            self.bench.mover.use(Tier.DISK, self.rng.choice(list(self.records)))

    def ended(self, moved: Moved) -> None:
        if moved.id in self.saves:
            blocks, seed, pieces = self.saves.pop(moved.id)
            if moved.problem:
                assert "do not fit" in moved.problem
            else:
                self.records[moved.record] = seed, pieces
        else:
            name, blocks, pieces = self.loads.pop(moved.id)
            if moved.problem:
                assert name not in self.records, moved.problem
            else:
                assert [self.bench.content([block]) for block in blocks] == pieces
                self.right += 1
        self.free += blocks


@pytest.mark.parametrize("real", [False, True])
def test_whatever_two_threads_do_a_load_is_right_or_a_problem(
    made: Callable[..., Bench], tmp_path: Path, real: bool
) -> None:
    folder = RealFolder(tmp_path / "kv") if real else None
    bench = made(folder, geometry=shape(n_blocks=64), cap_bytes=150_000)
    hammer = Hammer(bench, random.Random(5))
    deadline_s = time.monotonic() + 2.0
    while time.monotonic() < deadline_s:
        hammer.step()
        assert bench.store.used_bytes <= bench.store.cap_bytes
    hammer.settle()
    assert hammer.right > 100
    assert set(bench.store.records) == set(hammer.records)
