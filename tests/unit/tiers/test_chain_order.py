from __future__ import annotations

import dataclasses
import random

from kvasir.core.realm import TAG_BYTES
from kvasir.tiers.chain_order import ends_first
from kvasir.tiers.record import Record

NO_PARENT = bytes(32)


def record(parent: bytes, *keys: bytes) -> Record:
    return Record(
        realm=bytes(TAG_BYTES), namespace_tag=bytes(16), parent=parent, start=0, keys=keys,
        tokens=(1,) * len(keys), block_tokens=1, n_planes=2, plane_bytes=4 * len(keys),
        created_s=0.0,
    )  # fmt: skip


def key(which: int) -> bytes:
    return which.to_bytes(32, "big")


def by_definition(records: dict[str, Record]) -> list[str]:
    """The oldest that nothing left continues, looked for anew each time."""
    left, order = dict(records), []
    while left:
        parents = {its.parent for its in left.values()}
        ends = [name for name, its in left.items() if parents.isdisjoint(its.keys)]
        order.append((ends or list(left))[0])
        del left[order[-1]]
    return order


def test_a_chain_loses_its_end_first_and_a_lonely_record_goes_by_age() -> None:
    records = {
        "begin": record(NO_PARENT, key(1), key(2)),
        "branch": record(key(1), key(5)),
        "middle": record(key(2), key(3)),
        "alone": record(NO_PARENT, key(9)),
        "end": record(key(3), key(4)),
    }
    assert list(ends_first(records)) == ["branch", "alone", "end", "middle", "begin"]


def test_any_records_go_in_the_order_that_is_defined() -> None:
    """Trees with overlapping records, and circles, which no text has but a file may claim."""
    rng = random.Random(3)
    for _ in range(300):
        keys = rng.choice((6, 30, 200))
        records = {
            str(name): record(
                key(rng.randrange(keys)), *(key(rng.randrange(keys)) for _ in range(2))
            )
            for name in range(rng.randrange(12))
        }
        assert list(ends_first(records)) == by_definition(records)


def test_long_chains_of_many_records_take_no_square_of_steps() -> None:
    class Counted(bytes):
        """A key that counts how often it is looked at."""

        seen = 0

        def __hash__(self) -> int:
            Counted.seen += 1
            return super().__hash__()

    n = 2_000
    chain = [record(Counted(key(at)), Counted(key(at + 1))) for at in range(n)]
    records = {str(at): dataclasses.replace(its, start=at) for at, its in enumerate(chain)}
    assert list(ends_first(records)) == [str(at) for at in reversed(range(n))]
    assert Counted.seen < 20 * n
