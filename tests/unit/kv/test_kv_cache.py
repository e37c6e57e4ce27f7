"""The cache facade: sharing to the token, the len - 1 rule, tails, eviction, conservation."""

from __future__ import annotations

import pytest
from realms import realm
from virtual_engine import geometry

from kvasir.core.events import Miss
from kvasir.core.plans import Run
from kvasir.kv.cache import KvCache, Lease


class Writer:
    """Admits, computes and releases prompts by hand."""

    def __init__(self, n_blocks: int = 16, block_tokens: int = 4) -> None:
        self.cache = KvCache(geometry(n_blocks, block_tokens), realm())

    def open(self, tokens: list[int], namespace: bytes = b"a", **options: int):
        chain = self.cache.chain(namespace)
        keys: list[bytes] = []
        chain.extend(keys, tokens, self.cache.geometry.block_tokens)
        taken = self.cache.admit(namespace, chain, tokens, keys, **options)
        self.cache.check()
        return taken

    def write(self, tokens: list[int], namespace: bytes = b"a") -> int:
        """Read ``tokens`` wholly and end; gives how many of them were reused."""
        lease, match, _ = self.open(tokens, namespace)
        self.finish(lease, tokens)
        return match.n_tokens

    def finish(self, lease: Lease, tokens: list[int]) -> None:
        self.cache.copied(lease)
        self.cache.seal(lease, tokens, len(tokens))
        self.cache.check()
        self.cache.release(lease, tokens, len(tokens))
        self.cache.check()


def test_the_same_prompt_reuses_all_but_its_last_token() -> None:
    writer = Writer()
    for n in (1, 2, 3, 4, 5, 8, 9, 11):
        tokens = [n * 100 + i for i in range(n)]
        assert writer.write(tokens) == 0
        assert writer.write(tokens) == n - 1


def test_a_longer_prompt_reuses_sealed_blocks_and_the_tail() -> None:
    writer = Writer()
    writer.write([1, 2, 3, 4, 5, 6])
    assert writer.write([1, 2, 3, 4, 5, 6, 7, 8, 9]) == 6
    assert writer.write([1, 2, 3, 4, 5, 6, 7, 8, 9, 10]) == 9


def test_the_common_beginning_of_a_different_block_is_copied() -> None:
    writer = Writer()
    writer.write([1, 2, 3, 4, 5, 6, 7, 8])
    lease, match, copy = writer.open([1, 2, 3, 4, 5, 6, 99, 98])
    assert (match.n_blocks, match.n_tokens) == (1, 6)
    assert copy is not None
    assert copy.n_tokens == 2
    assert copy.target in lease.blocks
    assert copy.source not in lease.blocks


def test_the_source_of_a_copy_is_not_evicted_before_it_is_copied() -> None:
    writer = Writer(n_blocks=4)
    writer.write([1, 2, 3, 4, 5, 6])  # a sealed block and a tail
    lease, _, copy = writer.open([1, 2, 3, 4, 5, 6, 7])
    assert copy is not None
    assert writer.open([50, 51, 52, 53, 54]) is None  # one is free, two are needed, none may go
    writer.cache.copied(lease)
    assert writer.open([50, 51, 52, 53, 54]) is not None


def test_namespaces_share_nothing() -> None:
    writer = Writer()
    tokens = list(range(10))
    assert writer.write(tokens, b"a") == 0
    assert writer.write(tokens, b"b") == 0
    assert writer.write(tokens, b"b") == 9


def test_numerics_and_layout_are_part_of_the_key() -> None:
    chains = [
        KvCache(geometry(4, size), realm(geometry(4, size), numerics=numerics)).chain(b"a")
        for size, numerics in ((4, "x"), (4, "y"), (8, "x"))
    ]
    assert len({chain.key(b"", [1, 2, 3, 4]) for chain in chains}) == 3


def test_leaves_go_first_and_the_least_recently_used_before_others() -> None:
    writer = Writer(n_blocks=5)
    writer.write([1, 2, 3, 4, 5, 6, 7, 8])
    writer.write([21, 22, 23, 24])
    writer.write([1, 2, 3, 4, 9, 10, 11])  # the shared first block is used again
    writer.write([31, 32, 33, 34, 35, 36, 37, 38])
    assert writer.cache.matched_blocks(_keys(writer, [1, 2, 3, 4, 9, 9]), 6) == 1
    assert writer.cache.evicted_blocks == 1
    assert writer.cache.matched_blocks(_keys(writer, [1, 2, 3, 4, 5, 6, 7, 8, 9]), 9) == 1
    assert writer.cache.matched_blocks(_keys(writer, [21, 22, 23, 24, 25]), 5) == 1


def test_what_is_held_is_never_evicted() -> None:
    writer = Writer(n_blocks=3)
    lease, _, _ = writer.open([1, 2, 3, 4, 5, 6, 7, 8])
    writer.cache.seal(lease, [1, 2, 3, 4, 5, 6, 7, 8], 8)
    assert writer.open([9, 9, 9, 9, 9]) is None
    assert writer.open([9, 9, 9]) is not None


def test_a_prompt_that_fills_the_pool_fits_even_when_its_copy_would_not() -> None:
    writer = Writer(n_blocks=2)
    writer.write([1, 2, 3, 4, 5, 6, 7, 8])
    taken = writer.open([1, 2, 9, 9, 9, 9, 9, 9])
    assert taken is not None
    _, match, copy = taken
    assert copy is None
    assert (match.n_tokens, match.miss) == (0, Miss.EVICTED)


def test_the_first_to_seal_wins_and_the_other_shares_its_block() -> None:
    writer = Writer()
    tokens = [1, 2, 3, 4, 5]
    first, _, _ = writer.open(tokens)
    second, _, _ = writer.open(tokens)
    assert first.take_changes()[0] == second.take_changes()[0] == 0
    writer.cache.seal(first, tokens, 4)
    writer.cache.seal(second, tokens, 4)
    writer.cache.check()
    assert second.blocks[0] == first.blocks[0]
    keep, runs = second.take_changes()
    assert keep == 0
    assert runs[0] == Run(first.blocks[0], 1)
    assert first.take_changes() == (2, ())


def test_every_miss_has_its_reason() -> None:
    writer = Writer(n_blocks=3)
    reasons = []
    for tokens in ([1, 2, 3, 4, 5], [7], list(range(50, 62)), [1, 2, 3, 4, 5]):
        lease, match, _ = writer.open(tokens)
        reasons.append(match.miss)
        writer.finish(lease, tokens)
    assert reasons == [Miss.FIRST_SEEN, Miss.TOO_SHORT, Miss.DIFFERENT_TEXT, Miss.EVICTED]


def test_spare_blocks_are_left_to_others_and_wishes_only_take_what_is_free() -> None:
    writer = Writer(n_blocks=8)
    assert writer.open([1] * 20, spare_blocks=4) is None
    lease, _, _ = writer.open([1] * 16, spare_blocks=2, wish_blocks=9)
    assert len(lease.blocks) == 6  # four needed, two more, two spared
    assert writer.cache.free_blocks == 2


def test_growing_continues_side_by_side_and_fails_without_change() -> None:
    writer = Writer(n_blocks=4)
    lease, _, _ = writer.open([1, 2, 3])
    assert writer.cache.grow(lease, 12)
    assert lease.take_changes() == (0, (Run(0, 3),))
    assert not writer.cache.grow(lease, 17)
    assert len(lease.blocks) == 3
    assert writer.cache.grow(lease, 16)
    assert lease.take_changes() == (3, (Run(3, 1),))


def test_a_longer_tail_replaces_the_one_that_it_continues() -> None:
    writer = Writer()
    writer.write([1, 2])
    writer.write([1, 2, 3])
    assert writer.cache.idle_blocks == 1
    writer.write([1, 2])  # what is there holds it already
    assert writer.cache.idle_blocks == 1


@pytest.mark.parametrize("break_it", ["lost", "twice", "pins"])
def test_the_conservation_check_finds_what_is_wrong(break_it: str) -> None:
    writer = Writer()
    writer.write([1, 2, 3, 4, 5])
    lease, _, _ = writer.open([1, 2, 3, 4, 6, 7])
    if break_it == "lost":
        lease.blocks.pop()
    elif break_it == "twice":
        lease.blocks.append(lease.blocks[-1])
    else:
        lease.node.pins += 1
    with pytest.raises(RuntimeError):
        writer.cache.check()


def test_only_what_is_computed_is_sealed() -> None:
    writer = Writer()
    tokens = list(range(1, 13))
    lease, _, _ = writer.open(tokens)
    for computed, sealed in ((3, 0), (4, 1), (7, 1), (11, 2), (12, 3)):
        writer.cache.seal(lease, tokens, computed)
        assert lease.n_sealed == sealed
        assert writer.cache.matched_blocks(_keys(writer, [*tokens, 99]), 13) == sealed


def _keys(writer: Writer, tokens: list[int]) -> list[bytes]:
    keys: list[bytes] = []
    writer.cache.chain(b"a").extend(keys, tokens, 4)
    return keys
