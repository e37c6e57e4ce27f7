"""The index of one stored tier: which blocks its records hold, and which records go first.

No I/O: a store has the bytes, and does what this says. One thread uses it, that of the engine.

Invariants:
- what is kept and what is set aside for saves under way never exceed the cap together;
- a record goes only when no kept record continues it, so chains lose their ends first;
- a tenant that holds its guaranteed share or less loses nothing to another;
- what lies below a block is looked up by owner and parent: two tenants' texts both begin at the
  empty parent.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right, insort
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from kvasir.core.tiers import Tier
from kvasir.kv.moves import Extent
from kvasir.kv.tree import common_length

_HIGH_PERCENT = 95  # of the cap: what would pass it has others evicted, …
_LOW_PERCENT = 90  # … until it fits below this, so that a pass over all records is rare
_SOON_S = 60.0  # what was used within this time counts as used just now
_REMEMBERED = 65_536  # evicted keys kept to say "evicted" rather than "never seen"


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


class _Record:
    """A kept record and what changes about it."""

    __slots__ = ("extent", "followers", "used_s", "uses")

    def __init__(self, extent: Extent, followers: int) -> None:
        self.extent = extent
        self.followers = followers  # kept records that continue it
        self.used_s = extent.used_s
        self.uses = 0


class _Tenant:
    """What one tenant has of the tier."""

    __slots__ = ("kept_bytes", "records", "reserved_bytes")

    def __init__(self) -> None:
        self.kept_bytes = 0
        self.reserved_bytes = 0
        self.records: dict[str, _Record] = {}


_Place = tuple[bytes, bytes]  # (namespace tag, parent key)
_Below = tuple[tuple[int, ...], Shelved]  # tokens of a block, and the block


class Shelf:
    """Records by name, their blocks by key and by what they continue, and who owns them."""

    def __init__(self, tier: Tier, cap_bytes: int) -> None:
        if cap_bytes < 0:
            raise ValueError(f"a tier cannot have {cap_bytes} bytes: give 0 or more")
        self.tier = tier
        self.cap_bytes = cap_bytes
        self.used_bytes = 0  # kept and reserved
        self.n_tokens = 0
        self.evicted_records = 0
        self._records: dict[str, _Record] = {}
        self._tenants: dict[bytes, _Tenant] = {}  # those that have or reserved something
        self._blocks: dict[bytes, list[Shelved]] = {}  # by key; records may overlap
        self._below: dict[_Place, list[_Below]] = {}  # in the order of their tokens
        self._begun: dict[_Place, int] = {}  # how many records begin at a place
        self._gone: OrderedDict[bytes, None] = OrderedDict()

    # what there is -------------------------------------------------------------------------------

    @property
    def n_records(self) -> int:
        """Kept records."""
        return len(self._records)

    def __iter__(self) -> Iterator[Extent]:
        """What is kept, with the times of the last use."""
        for record in self._records.values():
            yield replace(record.extent, used_s=record.used_s)

    def get(self, key: bytes) -> Shelved | None:
        """The block or tail of that key; of several, the one that came last."""
        blocks = self._blocks.get(key)
        return blocks[-1] if blocks else None

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

    def superseded(self, namespace_tag: bytes, parent: bytes, tokens: Sequence[int]) -> list[str]:
        """Names of the tails of that owner below ``parent`` that ``tokens`` begin with and go
        beyond: of no use when ``tokens`` are kept."""
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

    def was_evicted(self, key: bytes) -> bool:
        """Whether a block of that key was here and had to give way (bounded memory)."""
        return key in self._gone

    def n_records_of(self, namespace_tag: bytes) -> int:
        """Kept records of that tenant."""
        tenant = self._tenants.get(namespace_tag)
        return len(tenant.records) if tenant is not None else 0

    # what changes --------------------------------------------------------------------------------

    def reserve(
        self, namespace_tag: bytes, n_bytes: int, now_s: float, *, behind: Iterable[bytes] = ()
    ) -> list[str] | None:
        """Set ``n_bytes`` aside for a record to come; ``now_s`` is Unix time. What holds a block of
        ``behind`` stays: records that are being saved continue it.

        Returns the names of the records that gave way: they are forgotten, the caller has the
        store drop them. None, and nothing is changed, when there is no room that this tenant may
        take. End it with ``add`` or ``cancel``.
        """
        if n_bytes < 0:
            raise ValueError(f"cannot reserve {n_bytes} bytes: give 0 or more")
        victims = self._victims(namespace_tag, n_bytes, now_s, behind)
        if victims is None:
            return None
        for victim in victims:
            self._forget(victim)
            self._remember_evicted(victim.extent)
        self._tenant(namespace_tag).reserved_bytes += n_bytes
        self.used_bytes += n_bytes
        self._leave_if_empty(namespace_tag)
        return [victim.extent.name for victim in victims]

    def cancel(self, namespace_tag: bytes, n_bytes: int) -> None:
        """Give back what was reserved: the save came to nothing."""
        tenant = self._tenants.get(namespace_tag)
        reserved = tenant.reserved_bytes if tenant else 0
        if tenant is None or not 0 <= n_bytes <= reserved:
            raise RuntimeError(
                f"{n_bytes} bytes of the {self.tier} tier were given back of {reserved} that "
                "were reserved: a save ended twice"
            )
        tenant.reserved_bytes -= n_bytes
        self.used_bytes -= n_bytes
        self._leave_if_empty(namespace_tag)

    def add(self, extent: Extent, *, reserved: bool) -> bool:
        """Take in a record that is in the store now, in the room that was ``reserved`` for it.

        A name that is there already is left as it is. False, and the record is not taken in, when
        nothing was reserved and it would pass the cap: then the caller has it dropped.
        """
        tag = extent.namespace_tag
        if reserved:
            self.cancel(tag, extent.n_bytes)
        if extent.name in self._records:
            return True
        if self.used_bytes + extent.n_bytes > self.cap_bytes:
            return False
        record = _Record(extent, self._followers(extent))
        for before in self._continued_by(extent):
            before.followers += 1
        place = (tag, extent.parent)
        self._begun[place] = self._begun.get(place, 0) + 1
        self._records[extent.name] = record
        tenant = self._tenant(tag)
        tenant.records[extent.name] = record
        tenant.kept_bytes += extent.n_bytes
        self.used_bytes += extent.n_bytes
        self.n_tokens += len(extent.tokens)
        self._index(extent)
        return True

    def remove(self, name: str) -> Extent | None:
        """Forget a record that is to go for another reason than room; None if it is not there."""
        record = self._records.get(name)
        if record is None:
            return None
        self._forget(record)
        return record.extent

    def used(self, name: str, now_s: float) -> None:
        """Count a use of the record, if it is still there; ``now_s`` is Unix time."""
        record = self._records.get(name)
        if record is not None:
            record.uses += 1
            record.used_s = now_s

    # who goes first ------------------------------------------------------------------------------

    def _victims(
        self, asking: bytes, n_bytes: int, now_s: float, behind: Iterable[bytes]
    ) -> list[_Record] | None:
        """The records that have to give way, in order; None where that does not make the room."""
        total = self.used_bytes + n_bytes
        high, low = (self.cap_bytes * percent // 100 for percent in (_HIGH_PERCENT, _LOW_PERCENT))
        goal = low if n_bytes <= low else self.cap_bytes
        if total <= max(high, goal):
            return []
        if n_bytes > self.cap_bytes:
            return None
        held = {tag: t.kept_bytes + t.reserved_bytes for tag, t in self._tenants.items()}
        held[asking] = held.get(asking, 0) + n_bytes
        share = self._share(len(held))
        victims: dict[str, _Record] = {}
        gone_followers = {
            block.extent.name: -1 for key in behind for block in self._blocks.get(key, ())
        }
        # Where nobody has borrowed any more, the one that asks makes the room below the watermark.
        for tags, floor in ((list(held), share), ([asking], share * _LOW_PERCENT // 100)):
            order = [
                _ranked(record, now_s)
                for tag in tags
                if total > goal and held[tag] > floor and tag in self._tenants
                for name, record in self._tenants[tag].records.items()
                if name not in victims and record.followers == gone_followers.get(name, 0)
            ]
            heapq.heapify(order)
            while total > goal and order:
                *_, name, record = heapq.heappop(order)
                extent = record.extent
                if held[extent.namespace_tag] <= floor:
                    continue  # has given back what it had borrowed, and nothing adds to it here
                victims[name] = record
                held[extent.namespace_tag] -= extent.n_bytes
                total -= extent.n_bytes
                for before in self._continued_by(extent):
                    follower_of = before.extent.name
                    gone_followers[follower_of] = gone_followers.get(follower_of, 0) + 1
                    if gone_followers[follower_of] == before.followers:
                        heapq.heappush(order, _ranked(before, now_s))
        return list(victims.values()) if total <= self.cap_bytes else None

    def _share(self, n_tenants: int) -> int:
        """Bytes that each of so many tenants is guaranteed."""
        return self.cap_bytes // n_tenants

    # inside --------------------------------------------------------------------------------------

    def _place(self, namespace_tag: bytes, parent: bytes) -> _Place:
        return namespace_tag, parent

    def _tenant(self, namespace_tag: bytes) -> _Tenant:
        return self._tenants.setdefault(namespace_tag, _Tenant())

    def _leave_if_empty(self, namespace_tag: bytes) -> None:
        tenant = self._tenants[namespace_tag]
        if not tenant.records and not tenant.reserved_bytes:
            del self._tenants[namespace_tag]

    def _followers(self, extent: Extent) -> int:
        return sum(self._begun.get((extent.namespace_tag, key), 0) for key in extent.keys)

    def _continued_by(self, extent: Extent) -> list[_Record]:
        """The other kept records of its owner that hold the block before ``extent``."""
        return [
            self._records[block.extent.name]
            for block in self._blocks.get(extent.parent, ())
            if block.extent.namespace_tag == extent.namespace_tag
            and block.extent.name != extent.name
        ]

    def _forget(self, record: _Record) -> None:
        extent = record.extent
        self._unindex(extent)
        for before in self._continued_by(extent):
            before.followers -= 1
        place = (extent.namespace_tag, extent.parent)
        self._begun[place] -= 1
        if not self._begun[place]:
            del self._begun[place]
        tenant = self._tenants[extent.namespace_tag]
        del self._records[extent.name], tenant.records[extent.name]
        tenant.kept_bytes -= extent.n_bytes
        self.used_bytes -= extent.n_bytes
        self.n_tokens -= len(extent.tokens)
        self._leave_if_empty(extent.namespace_tag)

    def _index(self, extent: Extent) -> None:
        for index, key in enumerate(extent.keys):
            block = Shelved(extent, index)
            self._blocks.setdefault(key, []).append(block)
            self._gone.pop(key, None)
            below = self._below.setdefault(self._place(extent.namespace_tag, block.parent), [])
            insort(below, (block.tokens, block), key=_tokens)

    def _unindex(self, extent: Extent) -> None:
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

    def _remember_evicted(self, extent: Extent) -> None:
        self.evicted_records += 1
        for key in extent.keys:
            if key not in self._blocks:
                self._gone[key] = None
        while len(self._gone) > _REMEMBERED:
            self._gone.popitem(last=False)

    def check(self) -> None:
        """Raise ``RuntimeError`` unless all sums and indexes agree with the records."""
        extents = [record.extent for record in self._records.values()]
        kept: dict[bytes, int] = {}
        for e in extents:
            kept[e.namespace_tag] = kept.get(e.namespace_tag, 0) + e.n_bytes
        reserved = sum(tenant.reserved_bytes for tenant in self._tenants.values())
        by_key = [(b.key == key, b) for key, found in self._blocks.items() for b in found]
        by_place = [
            ((b.extent.namespace_tag, b.parent, b.tokens) == (*place, tokens), b)
            for place, found in self._below.items()
            for tokens, b in found
        ]
        agree = {
            "sum of bytes": self.used_bytes == sum(e.n_bytes for e in extents) + reserved,
            "cap": self.used_bytes <= self.cap_bytes,
            "sum of tokens": self.n_tokens == sum(len(e.tokens) for e in extents),
            "tenants": all(
                t.kept_bytes == kept.get(tag, 0) and (t.records or t.reserved_bytes > 0)
                for tag, t in self._tenants.items()
            )
            and kept.keys() <= self._tenants.keys(),
            "blocks by key": self._are_all_blocks(by_key),
            "blocks by parent": self._are_all_blocks(by_place),
            "order of blocks": all(
                a[0] <= b[0] for found in self._below.values() for a, b in pairwise(found)
            ),
            "beginnings": self._begun == Counter((e.namespace_tag, e.parent) for e in extents),
            "continued records": all(
                record.followers == self._followers(record.extent)
                for record in self._records.values()
            ),
            "evicted keys": self._gone.keys().isdisjoint(self._blocks),
        }
        wrong = [what for what, right in agree.items() if not right]
        if wrong:
            raise RuntimeError(f"the index of the {self.tier} tier is wrong: {', '.join(wrong)}")

    def _is_kept(self, block: Shelved) -> bool:
        record = self._records.get(block.extent.name)
        return record is not None and record.extent is block.extent

    def _are_all_blocks(self, listed: list[tuple[bool, Shelved]]) -> bool:
        """Whether each block of each record is listed once, in its place, and nothing else is."""
        there = {(b.extent.name, b.index) for right, b in listed if right and self._is_kept(b)}
        n_blocks = sum(len(record.extent.keys) for record in self._records.values())
        return len(there) == len(listed) == n_blocks


def _tokens(entry: _Below) -> tuple[int, ...]:
    return entry[0]


def _ranked(record: _Record, now_s: float) -> tuple[float, float, str, _Record]:
    """The record behind what orders it: the least valuable first, then the longest unused.

    Its value is the seconds that it saves per byte, times its chance of reuse, which grows with
    the uses so far and falls about as 1 / age.
    """
    extent = record.extent
    age_s = max(0.0, now_s - record.used_s)
    chance = (1 + record.uses) / (age_s + _SOON_S)
    return extent.compute_s / max(1, extent.n_bytes) * chance, record.used_s, extent.name, record
