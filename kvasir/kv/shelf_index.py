"""Which blocks the records of one stored tier hold, and what continues what.

No I/O, and no accounting: ``kv.shelf`` says which records there are.

Invariant: every block of every record that was added and not removed is listed once by its key and
once by what it continues. What lies below a block is looked up by owner and parent: two tenants'
texts both begin at the empty parent.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise, takewhile

from kvasir.kv.moves import Extent
from kvasir.kv.tree import common_length


@dataclass(frozen=True, slots=True)
class Shelved:
    """One block of a record, or its tail."""

    extent: Extent
    index: int

    @property
    def key(self) -> bytes:
        """Key of the block."""
        return self.extent.keys[self.index]

    @property
    def parent(self) -> bytes:
        """Key of the block before it; empty at the beginning of a text."""
        return self.extent.parent_of(self.index)

    @property
    def tokens(self) -> tuple[int, ...]:
        """Token ids of the block."""
        return self.extent.tokens_of(self.index)

    @property
    def n_tokens(self) -> int:
        """How many of the block's positions are filled."""
        size = self.extent.block_tokens
        return min(size, len(self.extent.tokens) - self.index * size)


Place = tuple[bytes, bytes]  # (namespace tag, parent key)
_Below = tuple[tuple[int, ...], Shelved]  # tokens of a block, and the block


class BlockIndex:
    """Blocks by key and by what they continue."""

    def __init__(self) -> None:
        self._blocks: dict[bytes, list[Shelved]] = {}  # by key; records may overlap
        self._below: dict[Place, list[_Below]] = {}  # in the order of their tokens
        self._begun: dict[Place, int] = {}  # how many records begin at a place

    def __contains__(self, key: bytes) -> bool:
        return key in self._blocks

    def of(self, key: bytes) -> Sequence[Shelved]:
        """Every block or tail of that key; the one that came last is the last."""
        return self._blocks.get(key, ())

    def closest(
        self, namespace_tag: bytes, parent: bytes, tokens: Sequence[int]
    ) -> tuple[Shelved | None, int]:
        """The block of that owner below ``parent`` that shares the longest beginning with
        ``tokens``, and the length of that beginning.

        In the order of their tokens, it is a neighbour of the place where ``tokens`` would stand:
        no more than two are compared.
        """
        wanted = tuple(tokens)
        below = self._below.get(self._place(namespace_tag, parent), [])
        at = bisect_left(below, wanted, key=_tokens)
        best: Shelved | None = None
        best_length = 0
        for block_tokens, block in below[max(0, at - 1) : at + 1]:
            length = common_length(block_tokens, wanted)
            if length > best_length:
                best, best_length = block, length
        return best, best_length

    def covering(self, place: Place, tokens: tuple[int, ...]) -> Extent | None:
        """The record of the first block at ``place``, in the order of tokens, that begins with all
        of ``tokens``: of the tail that is exactly they, where there is one."""
        below = self._below.get(self._place(*place), [])
        at = bisect_left(below, tokens, key=_tokens)
        if at == len(below) or below[at][0][: len(tokens)] != tokens:
            return None
        return below[at][1].extent

    def superseded(self, namespace_tag: bytes, parent: bytes, tokens: Sequence[int]) -> list[str]:
        """Names of the tails of that owner below ``parent`` that ``tokens`` begin with and go
        beyond."""
        wanted = tuple(tokens)
        below = self._below.get(self._place(namespace_tag, parent), [])
        names = []
        at = bisect_left(below, wanted, key=_tokens)
        while at > 0:
            block_tokens, block = below[at - 1]
            length = common_length(block_tokens, wanted)
            if not length:
                break
            if length < len(block_tokens):  # nothing between it and their common beginning
                at = bisect_right(below, wanted[:length], key=_tokens)
                continue
            if block.extent.is_tail and len(block.extent.keys) == 1:
                names.append(block.extent.name)
            at -= 1
        return names

    def behind(self, namespace_tag: bytes, key: bytes) -> set[str]:
        """Names of all records that hold the block ``key`` or anything that continues it."""
        names: set[str] = set()
        keys, seen = [key], {key}
        for each in keys:  # grows while it is gone through
            followers = [b for _, b in self._below.get(self._place(namespace_tag, each), ())]
            names.update(b.extent.name for b in (*self._blocks.get(each, ()), *followers))
            keys += [b.key for b in followers if b.key not in seen]
            seen.update(b.key for b in followers)
        return names

    def going_on(self, place: Place, tokens: tuple[int, ...]) -> list[bytes]:
        """Keys of all blocks and tails at ``place`` that begin with all of ``tokens``."""
        below = self._below.get(self._place(*place), [])
        found = islice(below, bisect_left(below, tokens, key=_tokens), None)
        return [b.key for _, b in takewhile(lambda e: e[0][: len(tokens)] == tokens, found)]

    def followers(self, extent: Extent) -> int:
        """How many records continue ``extent``."""
        return sum(self._begun.get((extent.namespace_tag, key), 0) for key in extent.keys)

    def ends(self, extent: Extent) -> bool:
        """Whether no record goes on behind the last block of ``extent``."""
        last = extent.keys[-1]
        if self._begun.get((extent.namespace_tag, last)):
            return False
        return all(block.index == len(block.extent.keys) - 1 for block in self.of(last))

    def add(self, extent: Extent) -> None:
        """List the blocks of a record."""
        place = (extent.namespace_tag, extent.parent)
        self._begun[place] = self._begun.get(place, 0) + 1
        for index, key in enumerate(extent.keys):
            block = Shelved(extent, index)
            self._blocks.setdefault(key, []).append(block)
            below = self._below.setdefault(self._place(extent.namespace_tag, block.parent), [])
            insort(below, (block.tokens, block), key=_tokens)

    def remove(self, extent: Extent) -> None:
        """Forget the blocks of a record that was added."""
        place = (extent.namespace_tag, extent.parent)
        self._begun[place] -= 1
        if not self._begun[place]:
            del self._begun[place]
        for index, key in enumerate(extent.keys):
            blocks = self._blocks[key]
            blocks[:] = [block for block in blocks if block.extent is not extent]
            if not blocks:
                del self._blocks[key]
            place = self._place(extent.namespace_tag, extent.parent_of(index))
            below = self._below[place]
            at = bisect_left(below, extent.tokens_of(index), key=_tokens)
            while below[at][1].extent is not extent:  # the same block in another record
                at += 1
            del below[at]
            if not below:
                del self._below[place]

    def wrong(self, kept: Mapping[str, Extent], gone: Container[bytes]) -> list[str]:
        """In what this does not agree with the records that are ``kept`` by name and the keys of
        those that are ``gone``."""
        by_key = [(b.key == key, b) for key, found in self._blocks.items() for b in found]
        by_place = [
            ((b.extent.namespace_tag, b.parent, b.tokens) == (*place, tokens), b)
            for place, found in self._below.items()
            for tokens, b in found
        ]
        begun = Counter((e.namespace_tag, e.parent) for e in kept.values())
        agree = {
            "blocks by key": _are_all_blocks(by_key, kept),
            "blocks by parent": _are_all_blocks(by_place, kept),
            "order of blocks": all(
                a[0] <= b[0] for found in self._below.values() for a, b in pairwise(found)
            ),
            "beginnings": self._begun == begun,
            "evicted keys": not any(key in gone for key in self._blocks),
        }
        return [what for what, right in agree.items() if not right]

    def _place(self, namespace_tag: bytes, parent: bytes) -> Place:
        return namespace_tag, parent


def _are_all_blocks(listed: list[tuple[bool, Shelved]], kept: Mapping[str, Extent]) -> bool:
    """Whether each block of each record is listed once, in its place, and nothing else is."""
    there = {
        (b.extent.name, b.index)
        for right, b in listed
        if right and kept.get(b.extent.name) is b.extent
    }
    return len(there) == len(listed) == sum(len(extent.keys) for extent in kept.values())


def _tokens(entry: _Below) -> tuple[int, ...]:
    return entry[0]
