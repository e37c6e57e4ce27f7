"""Restores that meet what the machine over all tiers reaches rarely, at random moments."""

from __future__ import annotations

import random

from test_kv_tiers_machine import BLOCK_TOKENS, CHUNKY, check_stores, poison
from virtual_engine import Answer, VirtualEngine, text

from kvasir.core.tiers import Tier
from kvasir.tiers.folder import Folder
from kvasir.tiers.ram import RamFolder

SEEDS = range(12)
BREAK_EVEN = 8 / 2e-3  # bytes/s at which loading takes as long as computing (``CHUNKY``)


def engine(folders: dict[Tier, Folder], **fields: float) -> VirtualEngine:
    """With several records a text, so that one can be lost and others not."""
    made = VirtualEngine(folders=folders, costs=CHUNKY, **fields)  # type: ignore[arg-type]
    made.cache.fit.costs = CHUNKY
    return made


def kept_book(rng: random.Random, n_tokens: int) -> tuple[dict[Tier, Folder], list[int]]:
    """A disk with a text of which nothing is in memory."""
    folders: dict[Tier, Folder] = {Tier.DISK: RamFolder(2**20)}
    book = text(rng, n_tokens)
    made = engine(folders, n_blocks=256)
    made.ask(book, max_tokens=1)
    made.save()
    return folders, book


def damage_at(folders: dict[Tier, Folder], made: VirtualEngine, position: int) -> None:
    """Flip a bit of the last block of the record that holds ``position``."""
    shelf, folder = made.cache.stored.shelf(Tier.DISK), folders[Tier.DISK]
    assert isinstance(folder, RamFolder)
    name = next(e.name for e in shelf if e.start <= position < e.start + len(e.tokens))
    folder._files[f"{name}.kv"].content[-1] ^= 1


def reused(answer: Answer) -> int:
    assert answer.finished is not None
    return answer.finished.usage.reused_tokens


def run_poisoned(made: VirtualEngine) -> None:
    """Until idle and saved; then all answers are right and nothing is held."""
    for _ in range(5_000):
        if made.engine.idle and not made._commands:
            break
        made.step()
        poison(made)
        made.cache.check()
        check_stores(made)
    made.save()
    assert made.engine.idle
    assert all(made.right(name) for name in made.requests)
    assert not [node for node in made.cache._tree if node.pins]
    assert not made.cache.loading


def test_a_lost_beginning_is_kept_again_though_what_follows_it_was_not_lost() -> None:
    rng = random.Random(1)
    folders, book = kept_book(rng, 100)
    second = engine(folders)
    damage_at(folders, second, 0)
    assert reused(second.ask([*book, 1])) == 0
    second.save()
    assert reused(engine(folders).ask([*book, 2])) == len(book)


def rates(rng: random.Random) -> float:
    return BREAK_EVEN * rng.choice([0.7, 1, 1.5, 3, 10])


def meeting(made: VirtualEngine) -> bool:
    """Whether somebody computes towards what is being loaded."""
    running = made.sched._running.values()
    return any(s.lease is not None and s.lease.restore is not None for s in running)


def some_steps(made: VirtualEngine, most: int, rng: random.Random) -> None:
    for _ in range(rng.randrange(1, most)):
        made.step()
        poison(made)
        made.cache.check()


def test_several_requests_follow_one_restore_and_the_first_may_go() -> None:
    for seed in SEEDS:
        rng = random.Random(seed)
        folders, book = kept_book(rng, 200)
        made = engine(folders, n_blocks=256, read_bytes_per_s=rates(rng))
        leader = made.submit([*book, 1], max_tokens=3)
        some_steps(made, 6, rng)
        made.submit([*book[: rng.randrange(20, 200)], 2, 3], max_tokens=3)
        made.submit([*book, 9, 9], max_tokens=2)
        some_steps(made, 6, rng)
        if rng.random() < 0.5:
            made.abort(leader)
        run_poisoned(made)
        assert made.sched.counts["computed_tokens"] < len(book) + 20  # once for all


def test_what_somebody_computes_is_waited_for_also_by_those_that_load_more() -> None:
    for seed in range(20):
        rng = random.Random(seed)
        folders, book = kept_book(rng, 240)
        made = engine(folders, n_blocks=256, read_bytes_per_s=2 * BREAK_EVEN)
        made.submit(text(rng, 1), max_tokens=90, namespace=b"b")  # makes steps short
        made.submit([*book, 1], max_tokens=3)
        some_steps(made, 6, rng)
        made.submit([*book[: rng.randrange(20, 200)], 2, 3], max_tokens=3)
        some_steps(made, 3, rng)
        made.submit([*book, 9, 9], max_tokens=2)
        run_poisoned(made)
        computed = made.sched.counts["computed_tokens"] - (1 + 90)
        assert computed < 0.5 * len(book)  # the rest is loaded


def test_what_is_on_its_way_is_not_loaded_a_second_time() -> None:
    rng = random.Random(5)
    folders, book = kept_book(rng, 200)
    made = engine(folders, n_blocks=256, read_bytes_per_s=10 * BREAK_EVEN)
    for question in range(3):
        made.submit([*book, question])
    made.step()
    blocks = list(made.cache._restorer.blocks())
    assert len(blocks) <= len(book) / BLOCK_TOKENS
    run_poisoned(made)
    assert made.cache.restored_blocks == len(blocks) == len(book) / BLOCK_TOKENS


def test_a_damaged_middle_is_computed_while_the_front_is_met() -> None:
    met = damaged = 0
    for seed in SEEDS:
        rng = random.Random(seed)
        folders, book = kept_book(rng, 240)
        made = engine(folders, n_blocks=256, read_bytes_per_s=rates(rng))
        damage_at(folders, made, rng.randrange(72, 200))
        made.submit([*book, 1])
        made.submit([*book, 2, 2])
        some_steps(made, 3, rng)
        met += meeting(made)
        run_poisoned(made)
        damaged += made.mover.stores[Tier.DISK].counts["damaged"]
        assert made.sched.counts["computed_tokens"] < len(book) + 20  # once for both
    assert met
    assert damaged


def leader_goes(seed: int) -> tuple[bool, bool]:
    """The one that computes the front is aborted while the rest is loaded, and somebody needs the
    whole pool. Whether it was met, and whether a load had begun that was given up."""
    rng = random.Random(seed)
    folders, book = kept_book(rng, 240)
    n_blocks = rng.choice([130, 140])
    rate = BREAK_EVEN * rng.choice([2.5, 3, 3.5])
    made = engine(folders, n_blocks=n_blocks, read_bytes_per_s=rate)
    leader = made.submit([*book, 1])
    some_steps(made, 7, rng)
    met = meeting(made)
    made.abort(leader)
    made.submit(text(rng, (n_blocks - 2) * BLOCK_TOKENS), max_tokens=8)
    made.submit([*book, 2, 2])
    made.step()
    given_up = bool(made.cache._restorer._given_up)
    run_poisoned(made)
    return met, given_up


def test_the_one_that_computes_the_front_may_go_at_any_time() -> None:
    results = [leader_goes(seed) for seed in range(30)]
    assert any(met for met, _ in results)
    assert any(given_up for _, given_up in results)


def test_a_load_that_nobody_wants_any_more_still_tells_of_damage() -> None:
    given_up = 0
    for steps in range(2, 8):
        rng = random.Random(1)
        folders, book = kept_book(rng, 240)
        made = engine(folders, n_blocks=256, read_bytes_per_s=3 * BREAK_EVEN)
        leader = made.submit([*book, 1])
        for _ in range(steps):
            made.step()
        for extent in list(made.cache.stored.shelf(Tier.DISK)):
            damage_at(folders, made, extent.start)
        made.abort(leader)
        made.step()
        given_up += bool(made.cache._restorer._given_up)
        made.save()
        check_stores(made)
    assert given_up


def test_a_restore_that_is_larger_than_the_room_waits_or_is_computed() -> None:
    for seed in SEEDS:
        rng = random.Random(seed)
        folders, book = kept_book(rng, 240)
        made = engine(folders, n_blocks=rng.choice([64, 66, 70]), read_bytes_per_s=rates(rng))
        busy = text(rng, rng.randrange(20, 120))
        made.submit(busy, max_tokens=rng.randrange(1, 20), namespace=b"b")
        some_steps(made, 4, rng)
        made.submit([*book, 1])
        made.submit([*book[: rng.randrange(240)], 2, 2])
        run_poisoned(made)


def test_what_a_restore_continues_is_not_evicted() -> None:
    for seed in SEEDS:
        rng = random.Random(seed)
        folders, book = kept_book(rng, 240)
        made = engine(folders, n_blocks=rng.choice([70, 90, 130]), read_bytes_per_s=rates(rng))
        made.submit(book[: rng.randrange(8, 120)], max_tokens=1)
        run_poisoned(made)
        first = made.submit([*book, 1])
        some_steps(made, 4, rng)
        made.submit(text(rng, rng.randrange(100, 240)), namespace=b"b", max_tokens=4)
        if rng.random() < 0.5:
            made.abort(first)
        run_poisoned(made)


def test_what_the_host_tier_has_evicted_comes_from_disk() -> None:
    rng = random.Random(3)
    folders: dict[Tier, Folder] = {t: RamFolder(2**20) for t in (Tier.HOST, Tier.DISK)}
    made = engine(folders, n_blocks=64)
    book = text(rng, 200)
    made.ask(book)
    made.save()
    host = made.cache.stored.shelf(Tier.HOST)
    ends_first = sorted(host, key=lambda extent: -extent.start)
    assert len(ends_first) > 4
    for extent in ends_first[:4]:
        made.cache.stored.drop(Tier.HOST, extent.name)
    made.ask(text(rng, 250), namespace=b"b")
    made.save()
    assert made.cache._tree.root(b"a").n_blocks < 20
    answer = made.ask([*book, 1, 2])
    assert reused(answer) == len(book)
    assert answer.finished is not None
    tiers = answer.finished.usage.reused_by_tier
    assert tiers[Tier.HOST] > 0
    assert tiers[Tier.DISK] > 0


def test_a_tail_that_is_replaced_while_it_is_loaded() -> None:
    gone = 0
    for wait in range(12):
        rng = random.Random(wait)
        folders, book = kept_book(rng, 203)  # a tail of three tokens
        made = engine(folders, n_blocks=256, read_bytes_per_s=2 * BREAK_EVEN)
        tail = next(e for e in made.cache.stored.shelf(Tier.DISK) if e.is_tail)
        made.submit([*book, 1, 2], max_tokens=2)
        for _ in range(wait):
            made.step()
            poison(made)
        made.cache.stored.drop(Tier.DISK, tail.name)
        gone += made.cache.loading
        run_poisoned(made)
    assert gone


def test_what_is_being_saved_while_all_is_cleared_does_not_come_back() -> None:
    for wait_s in (0.0, 0.1, 0.3, 0.5, 1.0):
        rng = random.Random(4)
        made = engine({Tier.DISK: RamFolder(2**20)}, n_blocks=256, write_bytes_per_s=2_000)
        book = text(rng, 100)
        made.ask(book)
        made.clock.advance(wait_s)
        made.step()
        assert made.cache.saving
        made.cache.keeping.clear(None, None)
        made.save()
        made.cache.check()
        check_stores(made)
        assert not made.mover.stores[Tier.DISK].records
        assert reused(made.ask([*book, 1])) == 0
