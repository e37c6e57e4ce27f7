"""KV that leaves the pool and comes back: after eviction and restarts, from every tier."""

from __future__ import annotations

import random

import pytest
from virtual_engine import Answer, VirtualEngine, text

from kvasir.core.costs import StepCosts
from kvasir.core.events import Miss
from kvasir.core.tiers import Tier
from kvasir.tiers.ram import RamFolder

CAP_BYTES = 2**20


def disk() -> dict[Tier, RamFolder]:
    return {Tier.DISK: RamFolder(CAP_BYTES)}


def kept(
    rng: random.Random, n_tokens: int, n_blocks: int = 64
) -> tuple[dict[Tier, RamFolder], list[int], VirtualEngine]:
    """A disk that keeps a text, the text, and the engine that has read it."""
    folders, book = disk(), text(rng, n_tokens)
    first = VirtualEngine(n_blocks=n_blocks, folders=folders)
    first.ask(book)
    first.save()
    return folders, book, first


def usage(answer: Answer):
    assert answer.finished is not None
    return answer.finished.usage


def test_after_a_restart_only_new_tokens_are_computed() -> None:
    rng = random.Random(1)
    folders, book, _ = kept(rng, 150)
    second = VirtualEngine(folders=folders)
    question = text(rng, 6)
    answer = second.ask([*book, *question])
    assert usage(answer).reused_tokens == len(book)
    assert usage(answer).reused_by_tier == {Tier.DISK: len(book)}
    again = second.ask([*book, *question])
    assert usage(again).reused_by_tier == {Tier.DEVICE: len(book) + len(question) - 1}


def test_a_generated_answer_comes_back_too() -> None:
    rng = random.Random(2)
    folders, prompt = disk(), text(rng, 21)
    first = VirtualEngine(folders=folders)
    answer = first.ask(prompt, max_tokens=13)
    first.save()
    follow_up = [*prompt, *answer.tokens, *text(rng, 5)]
    second = VirtualEngine(folders=folders)
    used = usage(second.ask(follow_up))
    assert used.reused_tokens == len(prompt) + len(answer.tokens) - 1  # the last has no KV yet


def test_what_was_evicted_from_the_pool_comes_back_from_disk() -> None:
    rng = random.Random(3)
    made = VirtualEngine(n_blocks=32, folders=disk())
    book = text(rng, 100)
    made.ask(book)
    made.save()
    made.ask(text(rng, 110))
    made.save()
    used = usage(made.ask([*book, 1, 2, 3]))
    assert used.reused_tokens == len(book)
    assert used.reused_by_tier[Tier.DISK] > 80


def test_a_conversation_with_restarts_computes_only_what_is_new() -> None:
    rng = random.Random(4)
    folders = disk()
    made = VirtualEngine(n_blocks=300, folders=folders)
    history: list[int] = []
    new = computed = 0
    for turn in range(40):
        if turn % 10 == 9:
            made.save()
            made = VirtualEngine(n_blocks=300, folders=folders)
        question = text(rng, rng.randrange(3, 30))
        history += question
        answer = made.ask(history, max_tokens=7)
        computed += usage(answer).computed_tokens
        new += len(question) + (1 if turn else 0)  # the last token of an answer has no KV
        history += answer.tokens
    assert computed <= 1.05 * new


@pytest.mark.parametrize(
    ("part", "miss"),
    [
        ("weights", Miss.WEIGHTS_CHANGED),
        ("numerics", Miss.NUMERICS_CHANGED),
        ("adapter", Miss.ADAPTER_CHANGED),
        ("tokenizer", Miss.TOKENIZER_CHANGED),
        ("layout", Miss.LAYOUT_CHANGED),
    ],
)
def test_another_realm_is_a_miss_that_says_so(part: str, miss: Miss) -> None:
    rng = random.Random(5)
    folders, book, _ = kept(rng, 50)
    other = VirtualEngine(folders=folders, parts={part: "another"})
    used = usage(other.ask(book))
    assert (used.reused_tokens, used.miss) == (0, miss)
    other.save()
    assert usage(VirtualEngine(folders=folders).ask([*book, 1])).reused_tokens == len(book)


def test_nothing_of_one_tenant_is_there_for_another() -> None:
    rng = random.Random(6)
    folders, book = disk(), text(rng, 50)
    first = VirtualEngine(folders=folders)
    first.ask(book, namespace=b"a")
    first.save()
    second = VirtualEngine(folders=folders)
    used = usage(second.ask(book, namespace=b"b"))
    assert (used.reused_tokens, used.miss) == (0, Miss.FIRST_SEEN)
    assert usage(second.ask([*book, 7], namespace=b"a")).reused_tokens == len(book)


def test_loading_begins_while_the_request_waits() -> None:
    rng = random.Random(7)
    folders, book, _ = kept(rng, 100)
    second = VirtualEngine(n_blocks=100, folders=folders, max_running=1)
    second.submit(text(rng, 60), max_tokens=30)
    waiting = second.submit([*book, 1, 2], max_tokens=2)
    second.step()
    assert second.sched.n_waiting == 1
    assert second.cache.loading
    second.run()
    assert second.right(waiting)
    assert usage(second.answer(waiting)).reused_tokens == len(book)
    assert second.cache.restored_blocks == 25


def test_who_needs_the_same_block_next_waits_for_the_part_of_it_that_is_loaded() -> None:
    """A second choice must not compute it meanwhile, and the first one then say it was reused."""
    rng = random.Random(12)
    folders, book = disk(), text(rng, 80)
    first = VirtualEngine(block_tokens=16, folders=folders)
    first.ask(book)
    first.save()
    second = VirtualEngine(block_tokens=16, folders=folders, read_bytes_per_s=1e5)
    second.ask([*book[:48], 1])
    answer = second.ask([*book[:60], *text(rng, 30)], n=2)
    assert usage(answer).reused_by_tier == {Tier.DEVICE: 48, Tier.DISK: 12}


def test_from_a_slow_disk_the_beginning_is_computed_meanwhile() -> None:
    rng = random.Random(8)
    folders, book, first = kept(rng, 400, n_blocks=256)
    per_token_s = first.sched.costs.prefill_s(400, 0) / 400
    slow = VirtualEngine(n_blocks=256, folders=folders, read_bytes_per_s=8 / per_token_s)
    began_s = slow.clock.now_s()
    used = usage(slow.ask([*book, 1, 2, 3, 4]))
    took_s = slow.clock.now_s() - began_s
    assert 100 < used.reused_tokens < 300
    alone_s = first.sched.costs.prefill_s(404, 0)
    assert took_s < 0.8 * alone_s


def test_questions_that_are_in_no_hurry_load_all_that_is_kept() -> None:
    """Many at a time, whose loads wait for each other: none computes what another could use the
    engine for. From a disk that by itself is slower than computing, nothing is loaded for them
    either."""
    rng = random.Random(8)
    folders = disk()
    books = [text(rng, 100) for _ in range(12)]
    first = VirtualEngine(n_blocks=2048, folders=folders)
    for book in books:
        first.ask(book)
    first.save()
    per_token_s = first.sched.costs.prefill_s(100, 0) / 100
    for speed, least, most in ((2.0, 1200, 1205), (0.01, 0, 20)):
        slow = VirtualEngine(
            n_blocks=2048, folders=folders, read_bytes_per_s=8 * speed / per_token_s
        )
        asked = [slow.submit([*book, 1, 2, 3], transient=True) for book in books]
        slow.run()
        reused = sum(usage(slow.answer(name)).reused_tokens for name in asked)
        assert least <= reused <= most, "beside a token that two texts begin with alike"
        assert all(slow.right(name) for name in asked)


def test_from_a_disk_that_is_slower_than_computing_nothing_is_loaded() -> None:
    rng = random.Random(9)
    folders, book, _ = kept(rng, 100)
    slow = VirtualEngine(folders=folders, read_bytes_per_s=100)
    assert usage(slow.ask([*book, 1])).reused_tokens == 0


def test_an_aborted_request_leaves_what_it_had_loaded_in_order() -> None:
    rng = random.Random(10)
    folders, book, _ = kept(rng, 200, n_blocks=256)
    for steps in range(1, 12):
        second = VirtualEngine(n_blocks=128, folders=folders, read_bytes_per_s=30_000)
        name = second.submit([*book, 1])
        for _ in range(steps):
            second.step()
            second.cache.check()
        second.abort(name)
        second.run()
        second.ask([*book, 1])


def test_the_audit_finds_a_block_that_is_stored_wrongly() -> None:
    rng = random.Random(11)
    folders, book = disk(), text(rng, 40)
    first = VirtualEngine(folders=folders, run_blocks=100)
    first.ask(book)
    first.slots[10] ^= 1  # wrong before it is saved: every digest will be right
    first.save()
    second = VirtualEngine(folders=folders, audit_one_in=1)
    second.submit([*book, 1, 2, 3])
    second.run()
    assert not second.engine.rest()  # what is being saved is not touched
    second.save()
    while second.engine.rest():
        pass
    assert second.engine.status().audit_failures == 1
    second.cache.check()
    used = usage(second.ask([*book, 4, 5]))  # rightly answered
    assert used.reused_tokens == 8
    second.save()
    assert usage(VirtualEngine(folders=folders).ask([*book, 4, 5])).reused_tokens > 40


def test_a_text_with_many_branches_does_not_load_what_is_there_again_and_again() -> None:
    rng = random.Random(12)
    made = VirtualEngine(n_blocks=400, folders=disk())
    stem = text(rng, 8)
    branches = [[*stem, 9, i, 50, 51] for i in range(45)]  # one block each, with one first token
    for branch in branches:
        made.ask([*branch, 1, 2])
        made.save()
    for branch in branches[:12]:  # older than the children that the pool compares
        made.ask([*branch[:-1], 77, 3, 4])


def test_all_that_was_computed_behind_a_wrong_block_is_discarded_in_every_tier() -> None:
    rng = random.Random(13)
    folders, book = disk(), text(rng, 40)
    first = VirtualEngine(folders=folders, run_blocks=100)
    first.ask(book, max_tokens=1)
    first.slots[10] ^= 1  # and all that follows is computed from it
    first.tagged.known.clear()
    for question in ([1, 2, 3], [4, 5, 6, 7, 8, 9, 10]):
        first.submit([*book, *question], max_tokens=1)
        first.run()
    first.save()
    second = VirtualEngine(folders=folders, audit_one_in=1)
    second.submit([*book, 1, 2, 3, 30], max_tokens=1)
    second.run()
    second.save()
    while second.engine.rest():
        pass
    assert second.engine.status().audit_failures >= 1
    second.save()
    third = VirtualEngine(folders=folders)
    for question in ([1, 2, 3, 31], [4, 5, 6, 7, 8, 9, 10, 31]):
        third.ask([*book, *question])


def test_an_audit_that_cannot_be_computed_costs_nobody_anything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = random.Random(14)
    folders, book, _ = kept(rng, 40)
    second = VirtualEngine(folders=folders, audit_one_in=1)
    second.ask([*book, 1])
    second.save()

    def fails(_audit: object) -> bool:
        raise MemoryError("no memory for an audit")

    monkeypatch.setattr(second.tagged, "audit", fails)
    while second.engine.rest():
        pass
    second.cache.check()
    second.ask([*book, 2])


def test_who_needs_room_that_a_save_holds_waits_for_it_asleep() -> None:
    rng = random.Random(15)
    made = VirtualEngine(n_blocks=16, folders=disk(), write_bytes_per_s=100)
    made.submit(text(rng, 52), max_tokens=1)
    while made.engine.status().finished["length"] < 1:
        made.step()
    made.submit(text(rng, 52), max_tokens=1)
    began_s = made.clock.now_s()
    steps = 0
    while made.engine.status().finished["length"] < 2:
        made.step()
        steps += 1
    assert made.clock.now_s() - began_s > 0.5  # the save took its time
    assert steps < 20


def test_a_disk_that_hangs_does_not_hold_a_request_up(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(16)
    folders, book, _ = kept(rng, 100)
    second = VirtualEngine(folders=folders, read_bytes_per_s=20_000)
    name = second.submit([*book, 1, 2], max_tokens=2)
    second.step()
    assert second.cache.loading
    # what is being read now takes for ever, and the mover notices
    monkeypatch.setattr(second.mover, "take_moved", list)
    monkeypatch.setattr(second.mover, "withdraw", lambda _id: False)
    monkeypatch.setattr(second.mover, "load_s", lambda n_bytes, _tier: 30.0 + n_bytes / 1e6)
    for _ in range(30):
        second.step()
    assert second.answer(name).finished is not None
    assert second.right(name)
    second.cache.check()


def test_running_answers_come_before_what_is_loaded_ahead() -> None:
    rng = random.Random(17)
    folders, book, _ = kept(rng, 36)
    second = VirtualEngine(
        n_blocks=20, folders=folders, read_bytes_per_s=1_000, answer_room_tokens=0, max_running=1
    )
    running = second.submit(text(rng, 30), max_tokens=40)
    second.step()
    second.cache.fit.costs = StepCosts((0.0, 1.0, 0.0, 1e-3, 0.0))  # loading is always sooner
    second.submit([*book, 1], max_tokens=2)
    second.step()
    assert second.cache.loading
    second.run()
    assert second.right(running)
    assert second.engine.status().preemptions == 0


def test_a_record_whose_tokens_are_not_those_of_its_keys_is_not_used() -> None:
    rng = random.Random(18)
    folders, book = disk(), text(rng, 50)
    first = VirtualEngine(folders=folders, parts={"weights": "others"})
    first.ask(book)
    first.save()
    second = VirtualEngine(folders=folders)
    for record in list(second.cache.stored.foreign.values()):  # as if its realm did not tell
        shelf = second.cache.stored.shelf(record.tier)
        shelf.remove(record.extent.name)
        shelf.add(record.extent, reserved=False)
    assert usage(second.ask([*book, 1])).reused_tokens == 0
    assert second.cache.restored_blocks == 0


def test_what_is_missing_behind_a_common_beginning_has_its_reason_too() -> None:
    rng = random.Random(19)
    folders, book, first = kept(rng, 40)
    used = usage(first.ask([*book[:20], 300, *book[21:]]))
    assert (used.reused_tokens, used.miss, used.differs_at) == (20, Miss.DIFFERENT_TEXT, 20)
    assert used.kept_token == book[20]
    assert usage(first.ask([*book[:22], 301])).kept_token is None  # all that counts was there
    other = VirtualEngine(folders=folders, parts={"weights": "others"})
    other.ask([*book[:10], *text(rng, 20)])
    used = usage(other.ask(book))
    assert (used.reused_tokens, used.miss) == (10, Miss.WEIGHTS_CHANGED)
    assert usage(other.ask(text(rng, 30))).miss is Miss.DIFFERENT_TEXT


def test_after_meeting_the_first_different_token_is_behind_what_was_loaded() -> None:
    rng = random.Random(8)
    folders, book, first = kept(rng, 400, n_blocks=256)
    per_token_s = first.sched.costs.prefill_s(400, 0) / 400
    slow = VirtualEngine(n_blocks=256, folders=folders, read_bytes_per_s=8 / per_token_s)
    used = usage(slow.ask([*book, 1, 2, 3, 4]))
    assert used.reused_tokens < 300
    assert used.differs_at is not None
    assert used.differs_at >= 400


def test_what_a_later_choice_computes_is_not_reused_by_the_first() -> None:
    folders = disk()
    first = VirtualEngine(folders=folders)
    first.ask([5, 6, 7], max_tokens=1)
    first.save()
    second = VirtualEngine(folders=folders, read_bytes_per_s=3_300)
    name = second.submit([5, 9, 9], max_tokens=1, n=2)  # over before the tail has landed
    second.run()
    assert second.right(name)
    assert second.cache.restored_blocks == 1
    assert usage(second.answer(name)).reused_tokens == 1
