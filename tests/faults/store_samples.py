"""Records whose bytes are known beforehand, and whether a store serves them rightly."""

from __future__ import annotations

import random

from kvasir.core.realm import TAG_BYTES
from kvasir.tiers.record import Damaged, Record
from kvasir.tiers.store import RecordStore

BLOCK_TOKENS = 4
PLANES = 2


def sample(which: int, plane_bytes: int = 4800) -> tuple[Record, bytes]:
    """One record and its planes: every third is a tail, the others are two full blocks.
    ``plane_bytes`` divides by 3 and by 8."""
    rng = random.Random(which)
    tail = which % 3 == 1
    return Record(
        realm=b"r" * TAG_BYTES,
        namespace_tag=b"n" * 16,
        parent=rng.randbytes(32) if which else bytes(32),
        start=which * BLOCK_TOKENS,
        keys=tuple(rng.randbytes(32) for _ in range(1 if tail else 2)),
        tokens=(which, *(rng.randrange(1000) for _ in range(2 if tail else 7))),
        block_tokens=BLOCK_TOKENS,
        n_planes=PLANES,
        plane_bytes=plane_bytes,
        created_s=float(which),
        compute_s=which / 8,
    ), rng.randbytes(PLANES * plane_bytes)


def part(record: Record, planes: bytes, first: int, count: int) -> list[bytes]:
    """What of ``planes`` belongs to some blocks, plane by plane; counted in tokens, by itself."""
    token_bytes = record.plane_bytes // len(record.tokens)
    cut = slice(first * record.block_tokens, (first + count) * record.block_tokens)
    found = []
    for at in range(0, len(planes), record.plane_bytes):
        plane = planes[at : at + record.plane_bytes]
        tokens = [plane[t : t + token_bytes] for t in range(0, len(plane), token_bytes)]
        found.append(b"".join(tokens[cut]))
    return found


def read(store: RecordStore, name: str, first: int, count: int) -> list[bytes]:
    """Those blocks of the record, plane by plane."""
    found: list[bytes] = []

    def sink(index: int, data: memoryview) -> None:
        assert index == len(found)
        found.append(bytes(data))

    store.read(name, first, count, sink)
    return found


def served(
    store: RecordStore, made: tuple[Record, bytes], first: int = 0, count: int | None = None
) -> bool:
    """Whether those blocks of the record, all of them at first, are there; then they are right."""
    record, planes = made
    count = len(record.keys) - first if count is None else count
    try:
        found = read(store, record.name, first, count)
    except (KeyError, Damaged):
        return False
    assert found == part(record, planes, first, count), "wrong bytes were served"
    return True
