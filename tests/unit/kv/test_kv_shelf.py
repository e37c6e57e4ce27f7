"""The index of a stored tier: what it finds, who gives way, and whose room it is.

Its rules one by one, then everything at random against a naive model; the last tests break the
shelf on purpose and expect to be told.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from kvasir.core.tiers import Tier
from kvasir.kv.held import Held, HeldText
from kvasir.kv.moves import Extent
from kvasir.kv.shelf import Shelf
from kvasir.kv.shelf_index import BlockIndex, Shelved

SIZE = 3  # tokens in a block
TAGS = (b"a" * 16, b"b" * 16, b"c" * 16)
A, B, C = TAGS


def key_of(tag: bytes, tokens: tuple[int, ...]) -> bytes:
    return hashlib.sha256(tag + repr(tokens).encode()).digest()


def record(
    text: list[int] | tuple[int, ...],
    *,
    skip: int = 0,
    tag: bytes = A,
    n_bytes: int = 10,
    compute_s: float = 1.0,
    used_s: float = 0.0,
    name: str = "",
) -> Extent:
    """A record of ``text`` behind its first ``skip`` blocks."""
    text = tuple(text)
    n_blocks = -(-len(text) // SIZE)
    keys = [key_of(tag, text[: (i + 1) * SIZE]) for i in range(n_blocks)]
    return Extent(
        name=name or hashlib.sha256(repr((tag, text, skip)).encode()).hexdigest()[:12],
        namespace_tag=tag,
        parent=keys[skip - 1] if skip else b"",
        keys=tuple(keys[skip:]),
        tokens=text[skip * SIZE :],
        start=skip * SIZE,
        block_tokens=SIZE,
        n_bytes=n_bytes,
        compute_s=compute_s,
        used_s=used_s,
    )


def held_text(text: list[int] | tuple[int, ...], tag: bytes = A) -> HeldText:
    text = tuple(text)
    full = range(SIZE, len(text) + 1, SIZE)
    return HeldText(tag, tuple(key_of(tag, text[:end]) for end in full), text[len(full) * SIZE :])


def BYTES_OF(n_blocks: int) -> int:  # noqa: N802 - a constant that is called
    """What so many blocks are expected to take."""
    return 7 * n_blocks


def shelf_of(*extents: Extent, cap: int = 100) -> Shelf:
    shelf = Shelf(Tier.DISK, cap)
    for extent in extents:
        assert shelf.add(extent, reserved=False)
    shelf.check()
    return shelf


def names(*extents: Extent) -> list[str]:
    return [extent.name for extent in extents]


# what is found -----------------------------------------------------------------------------------


def test_blocks_of_a_record_are_found_by_their_keys() -> None:
    extent = record([1, 2, 3, 4, 5, 6, 7, 8, 9], skip=1)
    shelf = shelf_of(extent)
    assert shelf.get(key_of(A, (1, 2, 3))) is None
    found = shelf.get(extent.keys[1])
    assert found == Shelved(extent, 1)
    assert (found.key, found.parent) == (extent.keys[1], extent.keys[0])
    assert (found.tokens, found.n_tokens) == ((7, 8, 9), 3)


def test_a_tail_says_how_much_of_its_block_it_fills() -> None:
    tail = record([1, 2, 3, 4], skip=1)
    found = shelf_of(tail).get(tail.keys[0])
    assert found is not None
    assert (found.parent, found.tokens, found.n_tokens) == (key_of(A, (1, 2, 3)), (4,), 1)


@pytest.mark.parametrize(
    ("tokens", "length"), [([1, 2, 9], 2), ([1, 2, 4], 3), ([1], 1), ([0, 1], 0), ([9], 0), ([], 0)]
)
def test_the_closest_block_shares_the_longest_beginning(tokens: list[int], length: int) -> None:
    shelf = shelf_of(record([1, 1, 1]), record([1, 2, 4]), record([1, 2]), record([1, 3, 0]))
    found, got = shelf.closest(A, b"", tokens)
    assert got == length
    assert (found is None) == (length == 0)
    if found is not None:
        assert list(found.tokens[:length]) == tokens[:length]


def test_the_closest_of_a_thousand_that_begin_alike_is_found() -> None:
    shelf = shelf_of(*[record([1, 1 + i // 40, i % 40], n_bytes=1) for i in range(1000)], cap=2000)
    for i in (0, 39, 40, 567, 999):
        found, length = shelf.closest(A, b"", [1, 1 + i // 40, i % 40, 77])
        assert length == 3
        assert found is not None
        assert found.tokens == (1, 1 + i // 40, i % 40)


def test_the_closest_continues_the_block_that_is_asked_for() -> None:
    shelf = shelf_of(record([1, 2, 3, 4, 5, 6]), record([7, 8, 9, 4, 5]))
    found, length = shelf.closest(A, key_of(A, (7, 8, 9)), [4, 5, 6])
    assert length == 2
    assert found is not None
    assert found.tokens == (4, 5)


def test_two_tenants_with_the_same_text_are_kept_apart() -> None:
    _two_tenants_with_the_same_text(Shelf)


def _two_tenants_with_the_same_text(make: Callable[[Tier, int], Shelf]) -> None:
    shelf = make(Tier.DISK, 100)
    assert shelf.add(record([1, 2, 3], tag=A), reserved=False)
    assert shelf.add(record([1, 2], tag=A), reserved=False)
    assert shelf.closest(B, b"", [1, 2, 3]) == (None, 0)
    assert shelf.superseded(B, b"", [1, 2, 3]) == []
    assert not shelf.n_records_of(B)
    assert shelf.n_records_of(A)
    shelf.check()


def test_tails_that_a_longer_text_begins_with_are_superseded() -> None:
    short, longer = record([1]), record([1, 2])
    shelf = shelf_of(short, longer, record([2]), record([1, 1]), record([1, 2, 3]))
    assert sorted(shelf.superseded(A, b"", [1, 2])) == names(short)
    assert sorted(shelf.superseded(A, b"", [1, 2, 9])) == sorted(names(short, longer))
    assert sorted(shelf.superseded(A, b"", [1, 2, 3, 4, 5, 6])) == sorted(names(short, longer))
    assert shelf.superseded(A, b"", [1]) == []
    assert shelf.superseded(A, b"", []) == []
    assert shelf.superseded(A, key_of(A, (1, 2, 3)), [1, 2, 3]) == []


def test_a_record_of_several_blocks_is_not_superseded_for_its_unfilled_last_one() -> None:
    shelf = shelf_of(record([1, 2, 3, 4]))  # format version 1 had such
    assert shelf.superseded(A, key_of(A, (1, 2, 3)), [4, 5, 6]) == []


def test_a_block_in_two_records_stays_when_one_of_them_goes() -> None:
    whole, end = record([1, 2, 3, 4, 5, 6]), record([1, 2, 3, 4, 5, 6], skip=1)
    shelf = shelf_of(whole, end)
    assert shelf.remove(end.name) == end
    shelf.check()
    assert shelf.get(end.keys[0]) == Shelved(whole, 1)
    assert shelf.closest(A, whole.keys[0], [4, 5])[0] == Shelved(whole, 1)
    assert shelf.remove(end.name) is None


def test_iterating_gives_the_time_of_the_last_use() -> None:
    extent = record([1])
    shelf = shelf_of(extent)
    shelf.used(extent.name, 7.0)
    shelf.used("gone", 8.0)
    assert [(e.name, e.used_s) for e in shelf] == [(extent.name, 7.0)]


def test_what_is_being_continued_stays() -> None:
    begun, other = record([1, 2, 3], compute_s=0.1), record([7, 8, 9], compute_s=9.0)
    shelf = shelf_of(begun, other, cap=20)
    assert shelf.reserve(A, 10, 0.0, behind=[begun.keys[0]]) == names(other)
    shelf.cancel(A, 10)
    assert shelf.reserve(A, 20, 0.0, behind=[begun.keys[0]]) is None
    assert shelf.reserve(A, 20, 0.0) == names(begun)


# holds -------------------------------------------------------------------------------------------


def test_what_is_held_stays() -> None:
    _what_is_held_stays(Shelf)


def _what_is_held_stays(make: Callable[[Tier, int], Shelf]) -> None:
    """Whether it was stored before or after, with all that it continues, and not for ever."""
    text = [1, 2, 3, 4, 5, 6, 7]
    first, second = record(text[:3], compute_s=0.1), record(text[:6], skip=1, compute_s=0.1)
    tail, other = record(text, skip=2, compute_s=0.1), record([9], compute_s=9.0)
    shelf = make(Tier.DISK, 50)
    shelf.add(first, reserved=False)
    shelf.hold(held_text(text))
    for extent in (second, tail, other):
        shelf.add(extent, reserved=False)
    assert shelf.held_bytes == 30
    assert shelf.reserve(A, 15, 100.0) == names(other), "the most valuable one gives way"
    shelf.cancel(A, 15)
    assert shelf.reserve(A, 21, 100.0) is None
    shelf.check()
    shelf.let_go(held_text(text))
    assert shelf.held_bytes == 0
    assert shelf.reserve(A, 40, 100.0) == names(tail, second, first)


def test_what_a_held_text_only_begins_with_stays_and_what_continues_it_goes() -> None:
    text = [1, 2, 3, 4, 5, 6]
    begun, more = record(text[:3]), record(text, skip=1)
    shelf = shelf_of(begun, more, cap=25)
    shelf.hold(held_text(text[:3]))
    assert shelf.reserve(A, 12, 0.0) == names(more)


def test_a_held_tail_is_not_superseded() -> None:
    short, shorter = record([1, 2]), record([1])
    shelf = shelf_of(short, shorter)
    shelf.hold(held_text([1, 2]))
    assert shelf.superseded(A, b"", [1, 2, 3]) == names(shorter)
    shelf.let_go(held_text([1, 2]))
    assert sorted(shelf.superseded(A, b"", [1, 2, 3])) == sorted(names(short, shorter))


def test_where_the_tail_is_not_stored_one_that_begins_with_it_is_held_until_it_is() -> None:
    covering, other = record([1, 2, 3]), record([1, 2, 4])
    shelf = shelf_of(covering, other, cap=60)
    shelf.hold(held_text([1, 2]))
    assert [shelf.is_held(e.name) for e in (covering, other)] == [True, False]
    shelf.remove(covering.name)
    assert shelf.is_held(other.name)
    shelf.check()
    tail = record([1, 2])
    shelf.add(tail, reserved=False)
    assert [shelf.is_held(e.name) for e in (other, tail)] == [False, True]
    assert shelf.held_bytes == 10
    shelf.check()


def test_two_holds_are_let_go_one_by_one() -> None:
    extent = record([1, 2, 3])
    shelf = shelf_of(extent)
    for _ in range(2):
        shelf.hold(held_text([1, 2, 3]))
    shelf.let_go(held_text([1, 2, 3]))
    assert shelf.is_held(extent.name)
    shelf.let_go(held_text([1, 2, 3]))
    assert not shelf.is_held(extent.name)


def test_the_room_of_what_is_promised_is_not_given_to_others() -> None:
    _the_room_of_what_is_promised_is_not_given_to_others(
        lambda tier, cap: Shelf(tier, cap, BYTES_OF)
    )


def _the_room_of_what_is_promised_is_not_given_to_others(
    make: Callable[[Tier, int], Shelf],
) -> None:
    text = list(range(18))
    shelf = make(Tier.DISK, 100)
    shelf.hold(held_text(text))  # six blocks: 42 bytes are promised
    assert (shelf.promised_bytes, shelf.room_bytes(A)) == (42, 53)
    for i in range(100, 120):
        other = record([i], tag=B)
        if shelf.reserve(B, 10, 0.0, of=other) is not None:
            shelf.add(other, reserved=True)
    assert shelf.used_bytes + shelf.promised_bytes <= 95
    extent = record(text, n_bytes=45)
    assert shelf.reserve(A, 45, 0.0, of=extent) == [], "there is room for it, as promised"
    assert shelf.add(extent, reserved=True)
    assert (shelf.promised_bytes, shelf.held_bytes) == (0, 45)
    shelf.check()


def test_what_others_use_of_their_shares_is_no_room_to_hold() -> None:
    """Two tenants: each is guaranteed 50."""
    borrowed = [record([i], tag=B) for i in range(6)]
    shelf = shelf_of(*borrowed[:3], record([1], tag=A))
    assert (shelf.room_bytes(A), shelf.room_bytes(B), shelf.room_bytes()) == (65, 85, 95)
    shelf = shelf_of(*borrowed, record([1], tag=A))
    assert shelf.room_bytes(A) == 45, "what was borrowed is to be had"
    shelf.hold(held_text([0], tag=B))
    assert shelf.room_bytes(A) == 45, "what is held was counted for the share"
    for i in range(6):
        shelf.hold(held_text([i], tag=B))
    assert (shelf.room_bytes(A), shelf.held_bytes) == (35, 60)


# sums --------------------------------------------------------------------------------------------


def test_sums_by_tier_and_tenant() -> None:
    shelf = shelf_of(record([1, 2, 3, 4]), record([1], tag=B, n_bytes=7))
    assert shelf.reserve(C, 5, 0.0) == []
    assert (shelf.used_bytes, shelf.n_records, shelf.n_tokens) == (22, 2, 5)
    assert (shelf.n_records_of(A), shelf.n_records_of(C)) == (1, 0)


def test_a_name_that_is_there_already_is_added_once_and_its_reservation_ends() -> None:
    extent = record([1, 2, 3])
    shelf = shelf_of(extent)
    shelf.reserve(A, 10, 0.0)
    assert shelf.add(extent, reserved=True)
    assert (shelf.used_bytes, shelf.n_records) == (10, 1)
    shelf.check()


def test_what_was_found_is_not_taken_in_beyond_the_cap() -> None:
    shelf = shelf_of(record([1]), cap=15)
    assert not shelf.add(record([2]), reserved=False)
    assert (shelf.used_bytes, shelf.n_records) == (10, 1)
    shelf.check()


def test_a_reservation_ends_once() -> None:
    _a_reservation_ends_once(Shelf)


def _a_reservation_ends_once(make: Callable[[Tier, int], Shelf]) -> None:
    shelf = make(Tier.DISK, 100)
    shelf.reserve(A, 10, 0.0)
    shelf.reserve(B, 10, 0.0)
    shelf.cancel(A, 10)
    assert shelf.used_bytes == 10
    with pytest.raises(RuntimeError, match="ended twice"):
        shelf.cancel(A, 10)
    shelf.check()


# who gives way -----------------------------------------------------------------------------------


def test_between_the_watermarks_nobody_gives_way_and_then_down_to_the_lower_one() -> None:
    extents = [record([i], used_s=float(i)) for i in range(9)]
    shelf = shelf_of(*extents)
    assert shelf.reserve(A, 5, 100.0) == []
    assert shelf.reserve(A, 1, 100.0) == names(extents[0])  # 96 would pass 95; 86 is below 90
    assert shelf.used_bytes == 86
    assert shelf.reserve(A, 9, 100.0) == []
    assert shelf.used_bytes == 95
    shelf.check()


def test_a_record_above_the_low_watermark_fits_under_the_cap_and_no_larger_one() -> None:
    old = record([1])
    assert shelf_of(old).reserve(A, 101, 0.0) is None
    shelf = shelf_of(old)
    assert shelf.reserve(A, 92, 0.0) == names(old)
    shelf = shelf_of(record([1], n_bytes=2))
    assert shelf.reserve(A, 98, 0.0) == []
    assert shelf.used_bytes == 100


def test_what_cannot_be_had_changes_nothing() -> None:
    shelf = shelf_of(record([1]), record([2]))
    shelf.reserve(A, 50, 0.0)
    assert shelf.reserve(A, 51, 0.0) is None
    assert (shelf.used_bytes, shelf.n_records, shelf.evicted_records) == (70, 2, 0)
    shelf.check()
    with pytest.raises(ValueError, match="reserve"):
        shelf.reserve(A, -1, 0.0)


@pytest.mark.parametrize(
    ("worse", "better"),
    [
        ({"compute_s": 1.0}, {"compute_s": 2.0}),  # longer to compute
        ({"n_bytes": 20}, {"n_bytes": 10}),  # for fewer bytes
        ({"used_s": 100.0}, {"used_s": 900.0}),  # used more recently
        (
            {"used_s": 100.0, "compute_s": 1.0},
            {"used_s": 530.0, "compute_s": 0.6},
        ),  # by the product
        ({"used_s": 530.0, "compute_s": 0.4}, {"used_s": 100.0, "compute_s": 1.0}),
    ],
)
def test_what_saves_less_by_its_bytes_and_its_chance_of_reuse_goes_first(
    worse: dict[str, float], better: dict[str, float]
) -> None:
    for order in (1, -1):
        first = record([1], name="w" if order == 1 else "x", **worse)
        second = record([2], name="x" if order == 1 else "w", **better)
        shelf = shelf_of(*[first, second][::order], cap=40)
        assert shelf.reserve(A, 40 - 4 - second.n_bytes, 1000.0) == names(first)


def test_uses_count() -> None:
    one, two = record([1], used_s=50.0), record([2], used_s=60.0)
    shelf = shelf_of(one, two, cap=40)
    shelf.used(one.name, 60.0)
    assert shelf.reserve(A, 26, 100.0) == names(two)


def test_chains_lose_their_ends_first() -> None:
    _chains_lose_their_ends_first(Shelf)


def _chains_lose_their_ends_first(make: Callable[[Tier, int], Shelf]) -> None:
    text = list(range(12))
    first = record(text[:6], compute_s=0.1)
    second = record(text[:9], skip=2, compute_s=5.0)
    third = record(text[:10], skip=3, compute_s=9.0)
    for order in ([first, second, third], [third, first, second], [second, third, first]):
        shelf = make(Tier.DISK, 100)
        for extent in order:
            shelf.add(extent, reserved=False)
        shelf.check()
        assert shelf.reserve(A, 90, 0.0) == names(third, second, first)
        shelf.check()


def test_what_is_forgotten_is_continued_no_more() -> None:
    first, second = record([1, 2, 3], compute_s=0.1), record([1, 2, 3, 4], skip=1)
    shelf = shelf_of(first, second, record([9]), cap=45)
    shelf.remove(second.name)
    shelf.check()
    assert shelf.reserve(A, 30, 0.0) == names(first)
    assert shelf.used_bytes == 40


def test_evicted_keys_are_told_from_others() -> None:
    old, new = record([1, 2, 3]), record([7], used_s=50.0)
    shelf = shelf_of(old, new, cap=25)
    assert shelf.reserve(A, 10, 50.0) == names(old)
    assert shelf.was_evicted(old.keys[0])
    assert not shelf.was_evicted(new.keys[0])
    assert shelf.evicted_records == 1
    shelf.add(old, reserved=True)
    assert not shelf.was_evicted(old.keys[0])
    shelf.remove(old.name)
    assert not shelf.was_evicted(old.keys[0])


# shares ------------------------------------------------------------------------------------------


def test_what_is_borrowed_is_reclaimed_whatever_it_is_worth() -> None:
    _what_is_borrowed_is_reclaimed(Shelf)


def _what_is_borrowed_is_reclaimed(make: Callable[[Tier, int], Shelf]) -> None:
    shelf = make(Tier.DISK, 100)
    borrowed = [record([i], tag=A, compute_s=50.0 + i) for i in range(6)]
    own = [record([i], tag=B) for i in range(3)]
    for extent in (*borrowed, *own):
        shelf.add(extent, reserved=False)
    assert shelf.reserve(B, 10, 0.0) == names(borrowed[0])
    shelf.check()


def test_a_newcomer_gets_its_share_of_a_full_tier_and_no_more_from_others() -> None:
    shelf = shelf_of(*[record([i], tag=A) for i in range(9)])
    gone: list[str] = []
    for i in range(20):
        going = shelf.reserve(B, 10, float(i))
        assert going is not None
        gone += going
        shelf.add(record([i], tag=B, used_s=float(i)), reserved=True)
        shelf.check()
    held = {tag: sum(e.n_bytes for e in shelf if e.namespace_tag == tag) for tag in (A, B)}
    assert held[A] == 50
    assert 40 <= held[B] <= 50
    assert len(gone) >= 19


def test_who_has_its_share_loses_nothing_to_one_that_wants_more_than_its_own() -> None:
    shelf = shelf_of(*[record([i], tag=A) for i in range(5)])
    assert shelf.reserve(B, 60, 0.0) is None
    assert shelf.reserve(B, 50, 0.0) == []
    assert sum(e.namespace_tag == A for e in shelf) == 5


def test_above_its_share_a_tenant_gives_way_to_itself() -> None:
    own = [record([i], tag=B, compute_s=9.0) for i in range(6)]
    shelf = shelf_of(*[record([i], tag=A) for i in range(3)], *own)
    assert shelf.reserve(B, 10, 0.0) is not None
    assert sum(e.namespace_tag == A for e in shelf) == 3


def test_what_is_reserved_counts_as_held() -> None:
    extents = [record([i], tag=A, used_s=float(i)) for i in range(4)]
    shelf = shelf_of(*extents)
    assert shelf.reserve(A, 20, 0.0) == []
    assert shelf.reserve(B, 40, 0.0) == names(extents[0])
    assert shelf.used_bytes == 90


# at random ---------------------------------------------------------------------------------------


def _starts_with(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    return max(n for n in range(min(len(a), len(b)) + 1) if a[:n] == b[:n])


class ShelfMachine(RuleBasedStateMachine):
    """The shelf beside a model that has only a list of records and looks through all of it."""

    make: Callable[[Tier, int], Shelf] = Shelf
    cap = 60

    @initialize()
    def begin(self) -> None:
        self.shelf = type(self).make(Tier.DISK, self.cap)
        self.shelf._held._bytes_of = BYTES_OF
        self.kept: dict[str, Extent] = {}
        self.last: dict[str, tuple[int, float]] = {}  # uses, time of the last
        self.reserved: list[Extent] = []
        self.evicted: set[bytes] = set()
        self.holds: list[HeldText] = []
        self.now_s = 0.0

    texts = st.lists(st.integers(0, 1), min_size=1, max_size=3 * SIZE)
    tags = st.sampled_from(TAGS)

    def held(self, tag: bytes) -> int:
        everything = [*self.kept.values(), *self.reserved]
        return sum(extent.n_bytes for extent in everything if extent.namespace_tag == tag)

    def rank(self, extent: Extent) -> tuple[float, float, str]:
        uses, used_s = self.last[extent.name]
        chance = (1 + uses) / (self.now_s - used_s + 60.0)
        return extent.compute_s / extent.n_bytes * chance, used_s, extent.name

    def leaves(self) -> list[Extent]:
        everything = self.kept.values()
        return [
            extent
            for extent in everything
            if not any(
                other.parent in extent.keys and other.name != extent.name for other in everything
            )
        ]

    def covering(self, text: HeldText) -> Extent | None:
        """The record that is held for what is behind the full blocks of ``text``."""
        found = [
            (extent.tokens_of(index), age, extent)
            for age, extent in enumerate(self.kept.values())
            for index in range(len(extent.keys))
            if (extent.namespace_tag, extent.parent_of(index)) == text.place
            and extent.tokens_of(index)[: len(text.rest)] == text.rest
        ]
        return min(found)[2] if found else None

    def held_names(self) -> set[str]:
        names = {
            extent.name
            for extent in self.kept.values()
            for text in self.holds
            if not set(extent.keys).isdisjoint(text.keys)
        }
        covering = [self.covering(text) for text in self.holds if text.rest]
        return names | {extent.name for extent in covering if extent is not None}

    def promised(self) -> int:
        keys = {(t.namespace_tag, key) for t in self.holds for key in t.keys}
        stored = {key for extent in self.kept.values() for key in extent.keys}
        rests = {(t.place, t.rest): t for t in self.holds if t.rest}
        missing = [tag for tag, key in keys if key not in stored]
        missing += [t.namespace_tag for t in rests.values() if self.covering(t) is None]
        return BYTES_OF(len(missing))

    def make_room(self, extent: Extent) -> list[str] | None:
        """Who has to go by the rules, one after another; they are gone from the model then."""
        tag, n_bytes = extent.namespace_tag, extent.n_bytes
        before = dict(self.kept)
        total = sum(self.held(t) for t in TAGS) + n_bytes
        if not any(self.is_of(extent, text) for text in self.holds):
            total += self.promised()
        held = self.held_names()
        low = self.cap * 90 // 100
        goal = low if n_bytes <= low else self.cap
        n_tenants = sum(self.held(t) > 0 or (t == tag and n_bytes > 0) for t in TAGS)
        gone: list[str] = []
        if total > max(goal, self.cap * 95 // 100):
            share = self.cap // max(1, n_tenants)
            for tags, floor in ((TAGS, share), ((tag,), share * 90 // 100)):
                while total > goal and n_bytes <= self.cap:
                    mine = {t: self.held(t) + n_bytes * (t == tag) for t in TAGS}
                    may_go = [
                        extent
                        for extent in self.leaves()
                        if extent.namespace_tag in tags
                        and mine[extent.namespace_tag] > floor
                        and extent.name not in held
                    ]
                    if not may_go:
                        break
                    victim = min(may_go, key=self.rank)
                    if victim.namespace_tag != tag:
                        assert mine[victim.namespace_tag] > share  # had borrowed
                    del self.kept[victim.name]
                    total -= victim.n_bytes
                    gone.append(victim.name)
        if total > self.cap:
            self.kept = before
            return None
        for name in gone:
            self.evicted.update(before[name].keys)
        return gone

    @rule(
        text=texts,
        tag=tags,
        first=st.integers(0, 2),
        n_bytes=st.integers(1, 25),
        compute_s=st.sampled_from([0.0, 1.0, 2.5]),
    )
    def reserve(
        self, text: list[int], tag: bytes, first: int, n_bytes: int, compute_s: float
    ) -> None:
        n_full = len(text) // SIZE
        if len(text) % SIZE:  # a tail is a record of its own
            first = n_full
        first = min(first, max(0, -(-len(text) // SIZE) - 1))
        extent = record(
            text, skip=first, tag=tag, n_bytes=n_bytes, compute_s=compute_s, used_s=self.now_s
        )
        expected = self.make_room(extent)
        assert self.shelf.reserve(tag, n_bytes, self.now_s, of=extent) == expected
        if expected is not None:
            self.reserved.append(extent)

    @rule(which=st.integers(0, 9), cancelled=st.booleans())
    def end_reservation(self, which: int, cancelled: bool) -> None:
        if not self.reserved:
            return
        extent = self.reserved.pop(which % len(self.reserved))
        if cancelled:
            self.shelf.cancel(extent.namespace_tag, extent.n_bytes)
            return
        assert self.shelf.add(extent, reserved=True)
        self.keep(extent)

    @rule(text=texts, tag=tags, n_bytes=st.integers(1, 25))
    def find(self, text: list[int], tag: bytes, n_bytes: int) -> None:
        extent = record(text, skip=(len(text) - 1) // SIZE, tag=tag, n_bytes=n_bytes)
        fits = sum(self.held(t) for t in TAGS) + n_bytes <= self.cap
        assert self.shelf.add(extent, reserved=False) == (fits or extent.name in self.kept)
        if fits:
            self.keep(extent)

    def keep(self, extent: Extent) -> None:
        if extent.name not in self.kept:
            self.kept[extent.name] = extent
            self.last[extent.name] = (0, extent.used_s)
            self.evicted.difference_update(extent.keys)

    @rule(which=st.integers(0, 9))
    def remove(self, which: int) -> None:
        if self.kept:
            name = list(self.kept)[which % len(self.kept)]
            assert self.shelf.remove(name) == self.kept.pop(name)

    @rule(which=st.integers(0, 9), seconds=st.sampled_from([0.0, 1.0, 600.0]))
    def use(self, which: int, seconds: float) -> None:
        self.now_s += seconds
        if self.kept:
            name = list(self.kept)[which % len(self.kept)]
            self.last[name] = (self.last[name][0] + 1, self.now_s)
            self.shelf.used(name, self.now_s)

    def is_of(self, extent: Extent, text: HeldText) -> bool:
        """Whether ``extent`` would have something of ``text``."""
        if not set(extent.keys).isdisjoint(text.keys):
            return True
        return bool(text.rest) and any(
            (extent.namespace_tag, extent.parent_of(index)) == text.place
            and extent.tokens_of(index)[: len(text.rest)] == text.rest
            for index in range(len(extent.keys))
        )

    @rule(text=texts, tag=tags)
    def hold(self, text: list[int], tag: bytes) -> None:
        self.holds.append(held_text(text, tag))
        self.shelf.hold(self.holds[-1])

    @rule(which=st.integers(0, 9))
    def let_go(self, which: int) -> None:
        if self.holds:
            self.shelf.let_go(self.holds.pop(which % len(self.holds)))

    @rule(tag=tags, text=texts, tokens=st.lists(st.integers(0, 1), max_size=SIZE))
    def look(self, tag: bytes, text: list[int], tokens: list[int]) -> None:
        below = tuple(text[: len(text) // SIZE * SIZE])
        parent = key_of(tag, below) if below else b""
        blocks = [
            Shelved(extent, index)
            for extent in self.kept.values()
            for index in range(len(extent.keys))
            if extent.namespace_tag == tag and extent.parent_of(index) == parent
        ]
        wanted = tuple(tokens)
        found, length = self.shelf.closest(tag, parent, tokens)
        assert length == max((_starts_with(b.tokens, wanted) for b in blocks), default=0)
        if length:
            assert found in blocks
            assert _starts_with(found.tokens, wanted) == length
        else:
            assert found is None
        assert sorted(self.shelf.superseded(tag, parent, tokens)) == sorted(
            block.extent.name
            for block in blocks
            if block.extent.is_tail
            and block.extent.name not in self.held_names()
            and len(block.tokens) < len(wanted)
            and wanted[: len(block.tokens)] == block.tokens
        )

    @invariant()
    def all_is_as_in_the_model(self) -> None:
        shelf = self.shelf
        shelf.check()
        assert {extent.name for extent in shelf} == set(self.kept)
        assert shelf.used_bytes == sum(self.held(tag) for tag in TAGS) <= self.cap
        assert shelf.n_tokens == sum(len(extent.tokens) for extent in self.kept.values())
        held = self.held_names()
        assert {name for name in self.kept if shelf.is_held(name)} == held
        assert shelf.held_bytes == sum(self.kept[name].n_bytes for name in held)
        assert shelf.promised_bytes == self.promised()
        everything: dict[bytes, list[Shelved]] = {}
        for extent in self.kept.values():
            for index, key in enumerate(extent.keys):
                everything.setdefault(key, []).append(Shelved(extent, index))
        for key, blocks in everything.items():
            assert shelf.get(key) in blocks
        for key in self.evicted - set(everything):
            assert shelf.get(key) is None
        for tag in TAGS:
            mine = [e for e in self.kept.values() if e.namespace_tag == tag]
            assert shelf.n_records_of(tag) == len(mine)
            assert [e.name for e in shelf if e.namespace_tag == tag] == [e.name for e in mine]


TestShelf = ShelfMachine.TestCase
TestShelf.settings = settings(
    max_examples=200, stateful_step_count=40, deadline=None, derandomize=True
)


# planted bugs ------------------------------------------------------------------------------------


def shelf_over(index: BlockIndex, tier: Tier, cap: int) -> Shelf:
    shelf = Shelf(tier, cap)
    shelf._index = shelf._held._index = index
    return shelf


class UnsaltedIndex(BlockIndex):
    def _place(self, namespace_tag: bytes, parent: bytes) -> tuple[bytes, bytes]:
        return b"", parent


def SaltDropped(tier: Tier, cap: int) -> Shelf:  # noqa: N802 - beside the classes below
    return shelf_over(UnsaltedIndex(), tier, cap)


class IndexThatKeeps(BlockIndex):
    def remove(self, extent: Extent) -> None:
        kept = {key: list(self._blocks[key]) for key in extent.keys}
        super().remove(extent)
        self._blocks.update(kept)


def StaleIndex(tier: Tier, cap: int) -> Shelf:  # noqa: N802
    return shelf_over(IndexThatKeeps(), tier, cap)


class DoubleFree(Shelf):
    def cancel(self, namespace_tag: bytes, n_bytes: int) -> None:
        if namespace_tag in self._tenants:
            super().cancel(namespace_tag, n_bytes)
        else:
            self.used_bytes -= n_bytes


class SharesIgnored(Shelf):
    def _share(self, n_tenants: int) -> int:
        return 0


class NotLeafFirst(Shelf):
    def _continued_by(self, extent: Extent) -> list:
        return []

    def add(self, extent: Extent, *, reserved: bool) -> bool:
        begun, self._index._begun = self._index._begun, {}
        added = super().add(extent, reserved=reserved)
        self._index._begun = begun | self._index._begun
        return added


class HoldsIgnored(Shelf):
    """Held records give way like any."""

    def __init__(self, tier: Tier, cap: int) -> None:
        super().__init__(tier, cap, BYTES_OF)
        self._held.__class__ = type("Blind", (Held,), {"__contains__": lambda *_: False})


class LaterIgnored(Shelf):
    """What is stored after it was held is not held."""

    def __init__(self, tier: Tier, cap: int) -> None:
        super().__init__(tier, cap, BYTES_OF)
        self._held.__class__ = type("Late", (Held,), {"added": lambda *_: None})


class PromiseIgnored(Shelf):
    """Others take the room of what is promised."""

    def __init__(self, tier: Tier, cap: int) -> None:
        super().__init__(tier, cap, BYTES_OF)
        self._held.__class__ = type("Careless", (Held,), {"wants": lambda *_: True})


BUGS = [
    SaltDropped,
    StaleIndex,
    DoubleFree,
    SharesIgnored,
    NotLeafFirst,
    HoldsIgnored,
    LaterIgnored,
    PromiseIgnored,
]
CAUGHT_BY = {
    SaltDropped: _two_tenants_with_the_same_text,
    DoubleFree: _a_reservation_ends_once,
    SharesIgnored: _what_is_borrowed_is_reclaimed,
    NotLeafFirst: _chains_lose_their_ends_first,
    HoldsIgnored: _what_is_held_stays,
    LaterIgnored: _what_is_held_stays,
    PromiseIgnored: _the_room_of_what_is_promised_is_not_given_to_others,
}


@pytest.mark.parametrize("bug", CAUGHT_BY)
def test_a_planted_bug_fails_the_test_of_its_rule(bug: type[Shelf]) -> None:
    with pytest.raises((AssertionError, RuntimeError, pytest.fail.Exception)):
        CAUGHT_BY[bug](bug)


@pytest.mark.parametrize("bug", [bug for bug in BUGS if bug is not DoubleFree])
def test_a_planted_bug_is_found_at_random(bug: type[Shelf]) -> None:
    machine = type("Mutant", (ShelfMachine,), {"make": bug})
    quick = settings(
        max_examples=400,  # the last mutants need both holds and records in one course
        stateful_step_count=40,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        report_multiple_bugs=False,
    )
    with pytest.raises((AssertionError, RuntimeError, KeyError)):
        run_state_machine_as_test(machine, settings=quick)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda shelf: setattr(shelf, "used_bytes", 0),
        lambda shelf: setattr(shelf, "n_tokens", 0),
        lambda shelf: setattr(shelf, "cap_bytes", 1),
        lambda shelf: shelf._index._blocks.popitem(),
        lambda shelf: shelf._index._blocks.update({b"x": [Shelved(record([5]), 0)]}),
        lambda shelf: shelf._index._below.popitem(),
        lambda shelf: shelf._index._below[A, b""].reverse(),
        lambda shelf: shelf._index._below[A, b""].append(shelf._index._below[A, b""][-1]),
        lambda shelf: shelf._index._begun.popitem(),
        lambda shelf: shelf._tenants.popitem(),
        lambda shelf: shelf._gone.update(dict.fromkeys(shelf._index._blocks)),
        lambda shelf: setattr(next(iter(shelf._records.values())), "followers", 7),
        lambda shelf: shelf._held._reasons.popitem(),
        lambda shelf: shelf._held.bytes_by_tag.update({A: 1}),
        lambda shelf: shelf._held._missing.update({A: 1}),
    ],
)
def test_the_check_finds_what_is_wrong(wrong: Callable[[Shelf], object]) -> None:
    shelf = shelf_of(record([1, 2, 3]), record([1, 2, 3, 4], skip=1), record([2]))
    shelf.hold(held_text([1, 2, 3, 4]))
    shelf.check()
    wrong(shelf)
    with pytest.raises(RuntimeError, match="is wrong"):
        shelf.check()
