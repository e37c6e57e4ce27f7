"""Holds, where a text is, what is not stored, and dropping: over a whole virtual engine."""

from __future__ import annotations

import contextlib
import random

import pytest
from simulated_folder import PowerCut, SimulatedFolder
from virtual_engine import VirtualEngine, text

from kvasir.core.tiers import Residence, Tier
from kvasir.kv.text import KeyedText, keyed
from kvasir.tiers.folder import Folder
from kvasir.tiers.ram import RamFolder

CAP = 60_000  # about 14 small records
NAMESPACE = b"a"


def engine(folders: dict[Tier, Folder] | None = None, **fields: object) -> VirtualEngine:
    fields = {"n_blocks": 64, "cap_bytes": CAP, **fields}
    return VirtualEngine(folders=folders or {Tier.DISK: RamFolder(2 * CAP)}, **fields)  # type: ignore[arg-type]


def known(made: VirtualEngine, tokens: list[int], namespace: bytes = NAMESPACE) -> KeyedText:
    chain = made.cache.chain(namespace)
    return keyed(chain, namespace, tokens, made.geometry.block_tokens)


def residence(made: VirtualEngine, tokens: list[int]) -> Residence:
    return made.cache.keeping.residence(known(made, tokens))


def read(made: VirtualEngine, tokens: list[int], **fields: object) -> None:
    made.ask(tokens, max_tokens=0, **fields)


def computed(made: VirtualEngine, tokens: list[int], **fields: object) -> int:
    finished = made.ask(tokens, **fields).finished
    assert finished is not None
    return finished.usage.computed_tokens


def crowd(made: VirtualEngine, rng: random.Random, namespace: bytes = NAMESPACE) -> None:
    """Read and store many more texts than there is room for."""
    for _ in range(40):
        made.ask(text(rng, 30), namespace=namespace)
        made.save()
    made.cache.check()


# where a text is ---------------------------------------------------------------------------------


@pytest.mark.parametrize("n_tokens", [3, 4, 16, 30])
def test_a_text_is_stored_with_its_tail_once_it_is_saved(n_tokens: int) -> None:
    made = engine()
    tokens = text(random.Random(1), n_tokens)
    assert residence(made, tokens) == Residence(
        n_tokens=n_tokens,
        device_tokens=0,
        stored={Tier.DISK: 0},
        stored_bytes={Tier.DISK: 0},
        saving=False,
        held=False,
    )
    read(made, tokens)
    found = residence(made, tokens)
    assert (found.device_tokens, found.stored[Tier.DISK], found.durable) == (n_tokens, 0, False)
    assert found.saving
    made.save()
    found = residence(made, tokens)
    assert (found.stored[Tier.DISK], found.saving, found.durable) == (n_tokens, False, True)
    assert 0 < found.stored_bytes[Tier.DISK] == made.cache.stored.shelf(Tier.DISK).used_bytes
    made.cache.keeping.clear(Tier.DISK, None)
    assert not residence(made, tokens).durable


def test_the_beginning_of_another_text_counts_for_as_long_as_it_is_common() -> None:
    made = engine()
    rng = random.Random(2)
    base = text(rng, 22)
    made.ask(base + text(rng, 8))
    made.save()
    for n_tokens in (1, 5, 8, 21, 22):
        assert residence(made, base[:n_tokens]).durable, "a question on it finds all of it"
    other = [*base, 999, 998]
    assert residence(made, other).stored[Tier.DISK] == 22
    assert residence(made, other).device_tokens == 22
    assert known(made, base, b"b").keys != known(made, base).keys
    assert made.cache.keeping.residence(known(made, base, b"b")).stored[Tier.DISK] == 0


def test_memory_beside_a_device_does_not_last() -> None:
    made = engine({Tier.HOST: RamFolder(CAP)})
    tokens = text(random.Random(3), 20)
    read(made, tokens)
    made.save()
    found = residence(made, tokens)
    assert found.stored == {Tier.HOST: 20}
    assert not found.durable


def test_a_disk_that_fails_is_never_said_to_be_durable() -> None:
    class Full(RamFolder):
        def sync(self) -> None:
            raise OSError(5, "Input/output error")

    for folder in (Full(CAP), RamFolder(CAP)):
        made = engine({Tier.DISK: folder})
        if not isinstance(folder, Full):
            folder.sync = Full(CAP).sync  # type: ignore[method-assign]
        tokens = text(random.Random(4), 20)
        made.cache.keeping.hold("c", [known(made, tokens)])
        read(made, tokens)
        made.save()
        found = residence(made, tokens)
        assert not found.durable
        assert not found.saving
        assert "Input/output error" in found.failure


def test_without_stored_tiers_everything_can_be_asked_for() -> None:
    made = VirtualEngine()
    tokens = text(random.Random(5), 20)
    read(made, tokens)
    keeping = made.cache.keeping
    keeping.hold("c", [known(made, tokens)])
    found = residence(made, tokens)
    assert (found.device_tokens, found.stored, found.held, found.durable) == (20, {}, False, False)
    assert keeping.texts(NAMESPACE) == []
    assert keeping.room_bytes(NAMESPACE) == 0
    assert keeping.let_go("c")
    keeping.drop([known(made, tokens)])
    assert residence(made, tokens).device_tokens == 0


# holds -------------------------------------------------------------------------------------------


def test_what_is_held_is_there_after_others_have_filled_the_tier() -> None:
    rng = random.Random(6)
    made = engine()
    tokens, other = text(rng, 30), text(rng, 30)
    for each in (tokens, other):
        read(made, each)
    made.save()
    made.cache.keeping.hold("c", [known(made, tokens)])
    assert residence(made, tokens).held
    assert not residence(made, other).held
    crowd(made, rng)
    assert residence(made, tokens).durable
    assert not residence(made, other).durable
    assert computed(made, [*tokens, 1, 2]) <= 3
    status = made.cache.tiers()[0]
    assert 0 < status.held_bytes < status.used_bytes
    assert status.promised_bytes == 0
    assert status.room_bytes == CAP * 95 // 100 - status.held_bytes
    assert made.cache.keeping.let_go("c")
    assert not made.cache.keeping.let_go("c")
    crowd(made, rng)
    assert not residence(made, tokens).durable


def test_what_is_stored_after_it_was_held_is_held_and_longer_texts_do_not_supersede_it() -> None:
    rng = random.Random(7)
    made = engine()
    tokens = text(rng, 30)
    made.cache.keeping.hold("c", [known(made, tokens)])
    assert made.cache.tiers()[0].promised_bytes > 0
    read(made, tokens)
    made.save()
    made.ask(tokens + text(rng, 10))  # its full block begins with the held tail
    made.save()
    crowd(made, rng)
    assert residence(made, tokens).durable
    found = [t for t in made.cache.keeping.texts(NAMESPACE) if t.held]
    assert [(t.n_tokens, list(t.first_ids)) for t in found] == [(30, tokens)]


def test_a_hold_saves_what_is_only_in_the_pool() -> None:
    made = engine(run_blocks=3)
    tokens = text(random.Random(8), 30)
    read(made, tokens)
    made.save()
    made.cache.keeping.clear(Tier.DISK, None)
    assert residence(made, tokens).stored[Tier.DISK] == 0
    made.cache.keeping.hold("c", [known(made, tokens)])
    assert residence(made, tokens).saving
    made.save()
    assert residence(made, tokens).durable


def test_a_hold_takes_the_place_of_the_one_before() -> None:
    rng = random.Random(9)
    made = engine()
    one, two = text(rng, 12), text(rng, 12)
    keeping = made.cache.keeping
    keeping.hold("c", [known(made, one)])
    keeping.hold("d", [known(made, one)])
    keeping.hold("c", [known(made, one), known(made, two)])
    assert residence(made, two).held
    keeping.hold("c", [known(made, two)])
    assert residence(made, one).held, "the other holder's"
    assert keeping.let_go("d")
    assert not residence(made, one).held
    assert residence(made, two).held


def test_when_only_held_records_are_left_saving_is_refused_and_serving_goes_on() -> None:
    rng = random.Random(10)
    made = engine()
    held = [text(rng, 30) for _ in range(9)]
    for index, tokens in enumerate(held):
        made.cache.keeping.hold(f"c{index}", [known(made, tokens)])
        read(made, tokens)
        made.save()
    stored = [residence(made, tokens).durable for tokens in held]
    assert stored.index(False) >= 4, "there was room for some"
    assert made.cache.keeping.room_bytes(NAMESPACE) == 0, "what was promised is too much"
    unsaved = made.cache.tiers()[0].unsaved_blocks
    crowd(made, rng)
    assert [residence(made, tokens).durable for tokens in held] == stored
    assert made.cache.tiers()[0].unsaved_blocks > unsaved
    assert made.cache.tiers()[0].failure == ""


def test_a_promise_that_fits_the_room_is_kept_whatever_others_store_meanwhile() -> None:
    """Two tenants; the promised text is read after the other one has filled the tier."""
    rng = random.Random(11)
    made = engine(run_blocks=10**6, max_step_tokens=10**6)
    keeping, stored = made.cache.keeping, made.cache.stored
    crowd(made, rng, b"b")
    n_tokens = 150
    promised: list[list[int]] = []
    while stored.bytes_of(n_tokens) <= keeping.room_bytes(NAMESPACE):
        promised.append(text(rng, n_tokens))
        keeping.hold(f"c{len(promised)}", [known(made, promised[-1])])
    assert len(promised) == 2
    for tokens in promised:
        crowd(made, rng, b"b")
        read(made, tokens)
        made.save()
    assert all(residence(made, tokens).durable for tokens in promised)


def test_holds_end_with_the_process() -> None:
    rng = random.Random(12)
    folder = SimulatedFolder()
    made = engine({Tier.DISK: folder})
    tokens = text(rng, 30)
    made.cache.keeping.hold("c", [known(made, tokens)])
    read(made, tokens)
    made.save()
    again = engine({Tier.DISK: folder})
    assert residence(again, tokens).durable
    assert not residence(again, tokens).held
    crowd(again, rng)
    assert not residence(again, tokens).durable


# transient ---------------------------------------------------------------------------------------


def test_what_a_transient_request_computes_is_not_stored() -> None:
    rng = random.Random(13)
    made = engine()
    tokens = text(rng, 30)
    read(made, tokens)
    made.save()
    before = made.cache.stored.shelf(Tier.DISK).used_bytes
    question = tokens + text(rng, 12)
    assert computed(made, question, transient=True) == 12
    made.save()
    assert made.cache.stored.shelf(Tier.DISK).used_bytes == before
    assert residence(made, question).stored[Tier.DISK] == 30
    assert residence(made, tokens).device_tokens == 30, "it does not supersede the tail"


def test_asked_again_to_last_it_is_stored() -> None:
    rng = random.Random(14)
    made = engine()
    tokens = text(rng, 30)
    made.ask(tokens, transient=True)
    made.save()
    assert residence(made, tokens).stored[Tier.DISK] == 0
    assert computed(made, tokens, max_tokens=0) <= 3
    made.save()
    assert residence(made, tokens).durable


@pytest.mark.parametrize("cut", [4, 22, 30])
def test_a_context_is_stored_though_a_transient_question_on_it_came_first(cut: int) -> None:
    """The block of the question begins with the tail of the text, and is not going to be stored."""
    rng = random.Random(15)
    made = engine()
    tokens = text(rng, 40)
    made.ask(tokens, transient=True)
    read(made, tokens[:cut])
    made.save()
    assert residence(made, tokens[:cut]).durable


def test_transient_blocks_give_way_before_stored_ones() -> None:
    rng = random.Random(16)
    made = engine(n_blocks=32)
    tokens = text(rng, 40)
    read(made, tokens)
    made.save()
    for _ in range(12):
        made.ask(tokens + text(rng, 24), transient=True)
        assert residence(made, tokens).device_tokens == 40, "never loaded again"
    assert made.cache.restored_blocks == 0
    assert made.cache.evicted_blocks > 20


def test_what_is_held_and_was_lost_is_stored_again_by_a_transient_request() -> None:
    rng = random.Random(17)
    made = engine()
    tokens = text(rng, 32)
    made.cache.keeping.hold("c", [known(made, tokens)])
    read(made, tokens)
    made.save()
    made.cache.keeping.clear(None, None)
    question = tokens + text(rng, 10)
    made.ask(question, transient=True)
    made.save()
    assert residence(made, tokens).durable
    assert residence(made, question).stored[Tier.DISK] == 32


# the texts of a namespace ------------------------------------------------------------------------


def test_the_longest_texts_are_told_and_nobody_elses() -> None:
    rng = random.Random(18)
    made = engine(run_blocks=2, cap_bytes=10**6)
    base = text(rng, 16)
    one, two = base + text(rng, 9), base + text(rng, 14)
    for tokens in (one, two):
        read(made, tokens)
        made.save()
    read(made, text(rng, 20), namespace=b"b")
    made.save()
    found = made.cache.keeping.texts(NAMESPACE)
    assert [(t.n_tokens, list(t.first_ids)) for t in found] == [(30, two), (25, one)]
    assert len({t.id for t in found}) == 2
    assert {(t.tier, t.held) for t in found} == {(Tier.DISK, False)}
    mine = [
        e for e in made.cache.stored.shelf(Tier.DISK) if e.namespace_tag == known(made, one).tag
    ]
    assert sum(t.n_bytes for t in found) == sum(e.n_bytes for e in mine if e.start >= 16)
    assert made.cache.keeping.texts(b"nobody") == []


def test_a_text_whose_beginning_is_gone_is_not_told() -> None:
    rng = random.Random(19)
    made = engine(run_blocks=2)
    tokens = text(rng, 30)
    read(made, tokens)
    made.save()
    first = next(e for e in made.cache.stored.shelf(Tier.DISK) if not e.start)
    made.cache.stored.drop(Tier.DISK, first.name)
    assert made.cache.keeping.texts(NAMESPACE) == []


def test_texts_of_another_model_are_not_told() -> None:
    folder = SimulatedFolder()
    made = engine({Tier.DISK: folder})
    read(made, text(random.Random(20), 30))
    made.save()
    other = engine({Tier.DISK: folder}, parts={"weights": "another"})
    assert other.cache.stored.foreign
    assert other.cache.keeping.texts(NAMESPACE) == []


# dropping ----------------------------------------------------------------------------------------


def test_what_is_dropped_is_gone_from_the_pool_and_from_what_is_stored() -> None:
    made = engine(run_blocks=2)
    tokens = text(random.Random(21), 30)
    read(made, tokens)
    made.save()
    made.cache.keeping.drop([known(made, tokens)])
    found = residence(made, tokens)
    assert (found.device_tokens, found.stored[Tier.DISK]) == (0, 0)
    assert made.cache.stored.shelf(Tier.DISK).used_bytes == 0
    made.save()
    assert not made.mover.stores[Tier.DISK].records
    assert computed(made, tokens) == 30


def test_what_others_share_or_hold_stays() -> None:
    rng = random.Random(22)
    made = engine(run_blocks=2, cap_bytes=10**6)
    keeping = made.cache.keeping
    base = text(rng, 18)
    one, two, held = base + text(rng, 12), base + text(rng, 12), base[:8]
    keeping.hold("c", [known(made, held)])
    for tokens in (held, one, two):
        read(made, tokens)
        made.save()
    keeping.drop([known(made, one)])
    assert residence(made, two).durable
    assert residence(made, one).stored[Tier.DISK] < 30
    assert residence(made, one).device_tokens < 30
    keeping.drop([known(made, two), known(made, held)])
    assert residence(made, held).durable
    assert residence(made, held).device_tokens == 8
    assert residence(made, two).stored[Tier.DISK] < 18
    keeping.let_go("c")
    keeping.drop([known(made, held)])
    assert residence(made, held).stored[Tier.DISK] < 8
    made.cache.check()


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("write_bytes_per_s", [1e9, 100.0], ids=["saved", "being saved"])
def test_texts_that_share_beginnings_go_together(backwards: bool, write_bytes_per_s: float) -> None:
    """Sections of a document, say: what the others continue goes after them, in any order."""
    rng = random.Random(25)
    made = engine(run_blocks=6, cap_bytes=10**6, write_bytes_per_s=write_bytes_per_s)
    first, second = text(rng, 9), text(rng, 9)
    texts = [first + text(rng, 12), first + second + text(rng, 7), first + second + text(rng, 8)]
    for tokens in texts:
        read(made, tokens)
        if write_bytes_per_s > 1e6:
            made.save()
    known_texts = [known(made, tokens) for tokens in texts]
    made.cache.keeping.drop(known_texts[::-1] if backwards else known_texts)
    made.save()
    assert not made.mover.stores[Tier.DISK].records
    assert all(residence(made, tokens).device_tokens == 0 for tokens in texts)
    made.cache.check()


@pytest.mark.parametrize("n_tokens", [30, 32], ids=["behind a tail", "behind a block"])
@pytest.mark.parametrize("run_blocks", [1, 6])
@pytest.mark.parametrize("write_bytes_per_s", [1e9, 100.0], ids=["saved", "being saved"])
def test_what_continues_a_text_goes_with_it(
    n_tokens: int, run_blocks: int, write_bytes_per_s: float
) -> None:
    """Questions and answers on a document are of no use without it, and tell of it."""
    rng = random.Random(26)
    made = engine(run_blocks=run_blocks, cap_bytes=10**6, write_bytes_per_s=write_bytes_per_s)
    document, other = text(rng, n_tokens), text(rng, 30)
    for tokens in (document, document + text(rng, 3), document + text(rng, 22), other):
        made.ask(tokens, max_tokens=6)
        if write_bytes_per_s > 1e6:
            made.save()
    made.cache.keeping.drop([known(made, document)])
    made.save()
    assert residence(made, other).durable
    assert residence(made, document).device_tokens == 0
    made.cache.keeping.drop([known(made, other)])
    assert not list(made.cache.stored.shelf(Tier.DISK)), "what continued it is stored still"
    made.cache.check()


def test_what_continues_a_text_and_is_held_stays_with_it() -> None:
    rng = random.Random(27)
    made = engine(run_blocks=2, cap_bytes=10**6)
    document = text(rng, 18)
    fork, asked = document + text(rng, 9), document + text(rng, 9)
    made.cache.keeping.hold("fork", [known(made, fork)])
    for tokens in (document, fork, asked):
        read(made, tokens)
        made.save()
    made.cache.keeping.drop([known(made, document)])
    assert residence(made, fork).durable
    assert residence(made, fork).device_tokens == 27
    assert residence(made, asked).stored[Tier.DISK] < 20
    assert residence(made, asked).device_tokens < 20
    made.cache.keeping.let_go("fork")
    made.cache.keeping.drop([known(made, document)])
    assert not list(made.cache.stored.shelf(Tier.DISK))
    made.cache.check()


def test_what_is_just_being_saved_is_dropped_when_that_has_ended() -> None:
    made = engine(write_bytes_per_s=100.0)
    tokens = text(random.Random(23), 30)
    read(made, tokens)
    assert made.cache.moving
    made.cache.keeping.drop([known(made, tokens)])
    assert residence(made, tokens).device_tokens > 0, "it is being copied"
    made.save()
    found = residence(made, tokens)
    assert (found.device_tokens, found.stored[Tier.DISK]) == (0, 0)
    assert not made.mover.stores[Tier.DISK].records
    made.cache.check()


def test_what_is_running_is_not_dropped_under_it() -> None:
    rng = random.Random(24)
    made = engine()
    tokens = text(rng, 30)
    name = made.submit(tokens, max_tokens=8)
    for _ in range(3):
        made.step()
    made.cache.keeping.drop([known(made, tokens)])
    made.run()
    assert made.right(name)


# power cuts --------------------------------------------------------------------------------------


def test_what_was_said_to_be_durable_survives_a_power_cut_at_any_moment() -> None:
    """Whatever the residence says before a cut, between any two operations of the disk, is true
    after it; also of what a server found that had been killed before it flushed the folder."""
    rng = random.Random(25)
    said = 0
    for cut_at in range(1, 90):
        folder = SimulatedFolder(cut_at=cut_at)
        texts = [text(rng, n) for n in (30, 18, 7)]
        made, durable = None, set()
        with contextlib.suppress(PowerCut):
            made = engine({Tier.DISK: folder}, run_blocks=2, write_bytes_per_s=1e6)
            for index, tokens in enumerate(texts):
                made.cache.keeping.hold(f"c{index}", [known(made, tokens)])
                made.submit(tokens, max_tokens=0)
            while made.cache.saving or not made.engine.idle or made._commands:
                made.step()
                durable |= {i for i, t in enumerate(texts) if residence(made, t).durable}
                made._pass_until_moved() if made.mover.next_s() is not None else None
        folder.cut_at = 0
        again = engine({Tier.DISK: folder})  # as after kill -9: what was written is seen
        durable |= {i for i, t in enumerate(texts) if residence(again, t).durable}
        for choose in (lambda n: 0, lambda n: n - 1, rng.randrange):
            after = engine({Tier.DISK: folder.crash(choose)})
            for index in durable:
                assert residence(after, texts[index]).durable
                assert computed(after, [*texts[index], 1]) == 1
                said += 1
    assert said > 100
