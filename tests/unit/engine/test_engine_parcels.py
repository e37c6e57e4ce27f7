"""KV exported from one engine, imported into another for another tenant, and asked after a restart.

A tag depends on the namespace for which it was computed, so KV that came from there answers as it
would have answered there: which it could not, were a single token computed here.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import pytest
from simulated_folder import SimulatedFolder
from virtual_engine import VirtualEngine, text

from kvasir.core.errors import NotStored, ParcelRefused
from kvasir.core.tiers import Tier
from kvasir.engine.parcels import export, take_in
from kvasir.kv.text import KeyedText, keyed
from kvasir.sched.virtual import expected_answer
from kvasir.tiers.folder import Folder
from kvasir.tiers.ram import RamFolder

THEIRS, OURS = b"theirs", b"ours"
T = TypeVar("T")


class Stepping:
    """Asks an engine that is stepped by hand."""

    def __init__(self, made: VirtualEngine) -> None:
        self.made = made

    def call(self, function: Callable[[], T]) -> T:
        return function()

    def result(self, future: Future[T]) -> T:
        while not future.done():
            next_s = self.made.mover.next_s()
            assert next_s is not None, "nothing is under way"
            self.made.clock.advance(max(0.0, next_s - self.made.clock.now_s()))
            self.made.engine.step()
        return future.result()


def engine(folder: Folder | None = None, **fields: object) -> VirtualEngine:
    folders = {Tier.DISK: folder or SimulatedFolder()}
    return VirtualEngine(folders=folders, **{"run_blocks": 3, **fields})  # type: ignore[arg-type]


def exported(made: VirtualEngine, tokens: list[int], namespace: bytes = THEIRS) -> list[bytes]:
    return list(export(Stepping(made), made.cache, namespace, tokens))


def accept(made: VirtualEngine, parcel: bytes, namespace: bytes = OURS) -> int:
    return take_in(Stepping(made), made.cache, namespace, parcel)


def known(made: VirtualEngine, tokens: list[int], namespace: bytes = OURS) -> KeyedText:
    return keyed(made.cache.chain(namespace), namespace, tokens, made.geometry.block_tokens)


def durable(made: VirtualEngine, tokens: list[int], namespace: bytes = OURS) -> bool:
    return made.cache.keeping.residence(known(made, tokens, namespace)).durable


def written(tokens: list[int]) -> list[bytes]:
    """The parcels of ``tokens`` as another engine exports them."""
    made = engine()
    made.ask(tokens, namespace=THEIRS, max_tokens=0)
    made.save()
    return exported(made, tokens)


def asked(made: VirtualEngine, tokens: list[int], question: list[int]) -> tuple[list[int], int]:
    """The answer to a question on ``tokens`` asked by us, and how many tokens were computed."""
    name = made.submit([*tokens, *question], namespace=OURS, max_tokens=6)
    made.run()
    finished = made.answer(name).finished
    assert finished is not None
    return made.answer(name).tokens, finished.usage.computed_tokens


@pytest.mark.parametrize("n_tokens", [3, 4, 12, 30, 48])
def test_a_text_moves_to_another_home_and_tenant(n_tokens: int) -> None:
    rng = random.Random(n_tokens)
    tokens, question = text(rng, n_tokens), text(rng, 5)
    parcels = written(tokens)
    assert len(parcels) == -(-(n_tokens // 4) // 3) + bool(n_tokens % 4)
    folder = SimulatedFolder()
    made = engine(folder)
    assert [accept(made, parcel) for parcel in parcels] == [
        *[12] * (n_tokens // 12),
        *[n for n in (n_tokens % 12 // 4 * 4, n_tokens % 4) if n],
    ]
    assert durable(made, tokens)
    found = folder.crash(lambda n: 0)  # nothing survives that was not flushed
    again = engine(found)
    assert durable(again, tokens)
    answer, computed = asked(again, tokens, question)
    assert computed == len(question)
    assert answer == expected_answer(THEIRS, [*tokens, *question], 6)
    assert not durable(again, tokens, b"somebody else")


def test_exporting_again_what_was_imported_gives_the_same() -> None:
    tokens = text(random.Random(1), 30)
    parcels = written(tokens)
    made = engine()
    for parcel in parcels:
        accept(made, parcel)
    assert exported(made, tokens, OURS) == parcels


def test_a_text_that_is_stored_as_the_beginning_of_a_longer_one_is_cut() -> None:
    rng = random.Random(2)
    tokens = text(rng, 30)
    made = engine()
    made.ask([*tokens, *text(rng, 9)], namespace=THEIRS)
    made.save()
    parcels = exported(made, tokens)
    other = engine()
    assert sum(accept(other, parcel) for parcel in parcels) == 30
    assert durable(other, tokens)
    answer, computed = asked(other, tokens, [1, 2])
    assert (answer, computed) == (expected_answer(THEIRS, [*tokens, 1, 2], 6), 2)


def test_what_is_not_stored_as_a_whole_is_not_exported() -> None:
    tokens = text(random.Random(3), 30)
    made = engine()
    with pytest.raises(NotStored, match="Only 0 of 30"):
        exported(made, tokens)
    made.ask(tokens, namespace=THEIRS, max_tokens=0)
    made.save()
    with pytest.raises(NotStored, match="Only 30 of 31"):
        exported(made, [*tokens, 999])
    with pytest.raises(NotStored, match="Only 0 of 30"):
        exported(made, tokens, OURS)
    last = max(made.cache.stored.shelf(Tier.DISK), key=lambda e: e.start)
    made.cache.stored.drop(Tier.DISK, last.name)
    with pytest.raises(NotStored, match="Only 28 of 30"):
        exported(made, tokens)


def test_a_record_that_is_damaged_is_not_exported_and_gone() -> None:
    folder = SimulatedFolder()
    tokens = text(random.Random(4), 30)
    made = engine(folder)
    made.ask(tokens, namespace=THEIRS, max_tokens=0)
    made.save()
    middle = next(e for e in made.cache.stored.shelf(Tier.DISK) if e.start == 12)
    folder.seen[f"{middle.name}.kv"].seen[4_100] ^= 1
    pieces = export(Stepping(made), made.cache, THEIRS, tokens)
    next(pieces)
    with pytest.raises(NotStored, match="damaged"):
        next(pieces)
    assert made.cache.stored.shelf(Tier.DISK).get(middle.keys[0]) is None
    made.cache.check()


def test_pieces_come_in_their_order() -> None:
    tokens = text(random.Random(5), 30)
    parcels = written(tokens)
    made = engine()
    for parcel in parcels[1:]:
        with pytest.raises(ParcelRefused, match="what comes before is not stored"):
            accept(made, parcel)
    assert accept(made, parcels[0]) == 12
    with pytest.raises(ParcelRefused, match="what comes before is not stored"):
        accept(made, parcels[2])
    with pytest.raises(ParcelRefused, match="what comes before is not stored"):
        accept(made, parcels[1], b"somebody else")
    assert not made.mover.stores[Tier.DISK].counts["damaged"]


def test_what_is_there_already_is_not_written_again() -> None:
    tokens = text(random.Random(6), 30)
    made = engine()
    for parcel in (*written(tokens), *written(tokens)):
        accept(made, parcel)
    assert made.mover.stores[Tier.DISK].counts["kept"] == 4
    made.cache.check()


def test_another_model_is_refused() -> None:
    tokens = text(random.Random(7), 12)
    made = engine(parts={"weights": "others", "numerics": "others"})
    with pytest.raises(ParcelRefused, match="weights, numerics"):
        accept(made, written(tokens)[0])


def test_without_room_without_a_tier_and_on_a_full_disk_nothing_is_imported() -> None:
    rng = random.Random(8)
    parcel = written(text(rng, 12))[0]
    with pytest.raises(NotStored, match="no stored tier"):
        accept(VirtualEngine(), parcel)
    made = engine(cap_bytes=9_000)
    held = text(rng, 12)
    made.cache.keeping.hold("c", [known(made, held)])
    made.ask(held, namespace=OURS, max_tokens=0)
    made.save()
    assert accept(made, parcel) == 12, "the last that fits"
    made.cache.keeping.hold("d", [known(made, text(rng, 12))])
    with pytest.raises(NotStored, match="no room"):
        accept(made, written(text(rng, 12))[0])

    class Failing(RamFolder):
        def rename(self, old: str, new: str) -> None:
            raise OSError(28, "No space left on device")

    made = engine(Failing(2**20))
    for _ in range(2):
        with pytest.raises(NotStored, match="No space left on device"):
            accept(made, parcel)
    made.cache.check()


def test_what_is_imported_into_a_hold_stays() -> None:
    rng = random.Random(9)
    tokens = text(rng, 30)
    made = engine(cap_bytes=40_000)
    made.cache.keeping.hold("c", [known(made, tokens)])
    for parcel in written(tokens):
        assert made.cache.keeping.room_bytes(OURS) < 40_000
        accept(made, parcel)
        for _ in range(10):
            made.ask(text(rng, 30), namespace=OURS)
            made.save()
    assert durable(made, tokens)


def test_an_import_that_is_cleared_meanwhile_says_so() -> None:
    tokens = text(random.Random(10), 12)
    made = engine(write_bytes_per_s=10.0)
    ended: Future[str] = Future()
    planes = memoryview(bytearray(12 * made.geometry.token_bytes))
    made.cache.keeping.transport.keep(known(made, tokens), 0, planes, ended.set_result)
    made.cache.keeping.clear(None, None)
    assert "cleared" in Stepping(made).result(ended)
    made.save()
    assert not made.mover.stores[Tier.DISK].records
    made.cache.check()
