"""A pool, a store and a threaded mover, for tests that queue moves by hand."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from kvasir.core.clock import SystemClock
from kvasir.core.geometry import KvGeometry
from kvasir.core.realm import Realm
from kvasir.core.tiers import Tier
from kvasir.kv.moves import Extent, Load, Moved, Save
from kvasir.tiers.carry import BlockBytes
from kvasir.tiers.device import DevicePool
from kvasir.tiers.folder import Folder
from kvasir.tiers.mover import ThreadedMover
from kvasir.tiers.ram import RamFolder
from kvasir.tiers.store import RecordStore

LONG_S = 20.0  # far more than anything here takes
REALM = Realm(weights="w", numerics="n", tokenizer="t", layout="l")
DTYPES = {"bfloat16": 2, "float16": 2, "float32": 4}
CAP_BYTES = 2**24


def shape(dtype: str = "bfloat16", n_blocks: int = 12) -> KvGeometry:
    return KvGeometry(
        n_layers=3, n_kv_heads=2, head_dim=4, dtype=dtype, dtype_bytes=DTYPES[dtype],
        block_tokens=4, n_blocks=n_blocks,
    )  # fmt: skip


@dataclass
class GatedMemory:
    """A pool whose copies wait for ``gate``, and fail where they are told to."""

    pool: DevicePool
    gate: threading.Event = field(default_factory=threading.Event)
    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    fails: bool = False
    scattered: list[tuple[int, ...]] = field(default_factory=list)

    def gather(self, blocks: Sequence[int], n_tokens: int, into: memoryview) -> None:
        self._pass()
        self.pool.gather(blocks, n_tokens, into)

    def scatter(self, plane: int, blocks: Sequence[int], data: memoryview) -> None:
        if plane == 0:
            self.scattered.append(tuple(blocks))
            self._pass()
        self.pool.scatter(plane, blocks, data)

    def _pass(self) -> None:
        self.entered.release()
        assert self.gate.wait(LONG_S)
        if self.fails:
            raise RuntimeError("planted")


class Bench:
    """A pool, a store and a mover, and what was reported so far."""

    def __init__(
        self,
        folder: Folder | None = None,
        *,
        geometry: KvGeometry | None = None,
        cap_bytes: int = CAP_BYTES,
        memory: Callable[[DevicePool], BlockBytes] = lambda pool: pool,
        tier: Tier = Tier.DISK,
    ) -> None:
        self.geometry = geometry or shape()
        self.pool = DevicePool(self.geometry, "cpu")
        self.noise(range(self.geometry.n_blocks), seed=0)
        self.folder = folder or RamFolder(cap_bytes)
        self.store = RecordStore(self.folder, cap_bytes)
        self.tier = tier
        self.memory = memory(self.pool)
        self.told = threading.Semaphore(0)
        self.clock = SystemClock()
        self.mover = ThreadedMover(
            {tier: self.store}, self.memory, REALM, self.geometry, self.told.release,
            clock=self.clock,
        )  # fmt: skip
        self.moved: dict[int, Moved] = {}
        self.next_id = 0

    def noise(self, blocks: Sequence[int], seed: int) -> None:
        rng = random.Random(seed)
        plane_bytes = self.geometry.block_bytes // (2 * self.geometry.n_layers)
        for block in blocks:
            for plane in range(2 * self.geometry.n_layers):
                self.pool.scatter(plane, [block], memoryview(rng.randbytes(plane_bytes)))

    def content(self, blocks: Sequence[int], n_tokens: int | None = None) -> bytes:
        """By torch, not by the pool's own copies."""
        slots = [b * 4 + offset for b in blocks for offset in range(4)][:n_tokens]
        planes = [p for layer in range(self.geometry.n_layers) for p in self.pool.planes(layer)]
        return b"".join(bytes(p[slots].view(torch.uint8).flatten().tolist()) for p in planes)

    def extent(self, n_blocks: int, n_tokens: int | None = None, seed: int = 0) -> Extent:
        rng = random.Random(f"extent {seed} {n_blocks} {n_tokens}")
        n_tokens = n_tokens or n_blocks * 4
        return Extent(
            name="", namespace_tag=b"n" * 16, parent=b"" if seed % 2 else rng.randbytes(32),
            keys=tuple(rng.randbytes(32) for _ in range(n_blocks)),
            tokens=tuple(rng.randrange(2**16) for _ in range(n_tokens)),
            start=0 if seed % 2 else 64, block_tokens=4,
            n_bytes=n_tokens * self.geometry.token_bytes, compute_s=0.5, used_s=1.0,
        )  # fmt: skip

    def save(self, blocks: Sequence[int], n_tokens: int | None = None, seed: int = 0) -> int:
        self.next_id += 1
        extent = self.extent(len(blocks), n_tokens, seed)
        self.mover.save(Save(id=self.next_id, tier=self.tier, extent=extent, blocks=tuple(blocks)))
        return self.next_id

    def load(self, record: str, blocks: Sequence[int], first: int = 0) -> int:
        self.next_id += 1
        n_bytes = max(1, len(blocks)) * self.geometry.block_bytes
        self.mover.load(
            Load(id=self.next_id, tier=self.tier, record=record, first=first,
                 blocks=tuple(blocks), n_bytes=n_bytes)
        )  # fmt: skip
        return self.next_id

    def end(self, move_id: int) -> Moved:
        """What was reported of a move; waits for it."""
        while move_id not in self.moved:
            self.take()
            if move_id not in self.moved:
                assert self.told.acquire(timeout=LONG_S), "nothing is reported any more"
        return self.moved[move_id]

    def written(self) -> None:
        """Return when all that is queued to be saved or dropped has been: a save whose blocks do
        not fit its extent ends last, as a problem."""
        self.next_id += 1
        last = Save(id=self.next_id, tier=self.tier, extent=self.extent(2), blocks=(0,))
        self.mover.save(last)
        assert self.end(last.id).problem

    def take(self) -> list[Moved]:
        taken = list(self.mover.take_moved())
        for moved in taken:
            assert moved.id not in self.moved, "reported twice"
            self.moved[moved.id] = moved
        return taken

    def saved(self, blocks: Sequence[int], n_tokens: int | None = None, seed: int = 0) -> str:
        moved = self.end(self.save(blocks, n_tokens, seed))
        assert not moved.problem
        return moved.record


@contextlib.contextmanager
def benches() -> Iterator[Callable[..., Bench]]:
    """A maker of benches, all of which are closed in the end."""
    made: list[Bench] = []

    def make(*args: object, **kwargs: object) -> Bench:
        made.append(Bench(*args, **kwargs))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for bench in made:
        if isinstance(bench.memory, GatedMemory):
            bench.memory.gate.set()
        assert bench.mover.close(LONG_S)
