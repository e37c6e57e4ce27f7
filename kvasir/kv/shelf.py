"""The index of one stored tier: which blocks its records hold, and which records go first.

No I/O: a store has the bytes, and does what this says. One thread uses it, that of the engine.

Invariants:
- what is kept and what is set aside for saves under way never exceed the cap together;
- what is held stays, and others do not take the room of what is promised (``kv.held``);
- who gives way is chosen by ``kv.eviction``, ends of chains first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from kvasir.core.tiers import Tier
from kvasir.kv.eviction import HIGH_PERCENT, Asked, Kept, Tenant, victims
from kvasir.kv.held import Held, HeldText
from kvasir.kv.moves import Extent
from kvasir.kv.shelf_index import BlockIndex, Shelved

_REMEMBERED = 65_536  # evicted keys kept to say "evicted" rather than "never seen"


class Shelf:
    """Records by name, their blocks by key and by what they continue, and who owns them."""

    def __init__(
        self, tier: Tier, cap_bytes: int, bytes_of: Callable[[int], int] = lambda _: 0
    ) -> None:
        """``bytes_of`` says what so many blocks take, of which nothing is stored yet."""
        if cap_bytes < 0:
            raise ValueError(f"a tier cannot have {cap_bytes} bytes: give 0 or more")
        self.tier = tier
        self.cap_bytes = cap_bytes
        self.used_bytes = 0  # kept and reserved
        self.n_tokens = 0
        self.evicted_records = 0
        self._records: dict[str, Kept] = {}
        self._tenants: dict[bytes, Tenant] = {}  # those that have or reserved something
        self._index = BlockIndex()
        self._held = Held(self._index, bytes_of)
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
        blocks = self._index.of(key)
        return blocks[-1] if blocks else None

    def all_of(self, key: bytes) -> list[Shelved]:
        """Every block or tail of that key."""
        return list(self._index.of(key))

    def closest(
        self, namespace_tag: bytes, parent: bytes, tokens: Sequence[int]
    ) -> tuple[Shelved | None, int]:
        """The block of that owner below ``parent`` that shares the longest beginning with
        ``tokens``, and the length of that beginning."""
        return self._index.closest(namespace_tag, parent, tokens)

    def superseded(self, namespace_tag: bytes, parent: bytes, tokens: Sequence[int]) -> list[str]:
        """Names of the tails of that owner below ``parent`` that ``tokens`` begin with and go
        beyond: of no use when ``tokens`` are kept, unless they are held."""
        names = self._index.superseded(namespace_tag, parent, tokens)
        return [name for name in names if name not in self._held]

    def behind(self, namespace_tag: bytes, key: bytes) -> set[str]:
        """Names of all records that hold the block ``key`` or anything that continues it."""
        return self._index.behind(namespace_tag, key)

    def going_on(self, text: HeldText) -> list[Extent]:
        """The records that have what continues all of ``text``, those furthest on first."""
        keys = self._index.going_on(text.place, text.rest)
        names = {name for key in keys for name in self.behind(text.namespace_tag, key)}
        return sorted((self._records[n].extent for n in names), key=lambda e: -e.start)

    def was_evicted(self, key: bytes) -> bool:
        """Whether a block of that key was here and had to give way (bounded memory)."""
        return key in self._gone

    def n_records_of(self, namespace_tag: bytes) -> int:
        """Kept records of that tenant."""
        tenant = self._tenants.get(namespace_tag)
        return len(tenant.records) if tenant is not None else 0

    def ends(self, namespace_tag: bytes) -> list[Extent]:
        """That tenant's records whose last block nothing continues, with the times of the last
        use."""
        tenant = self._tenants.get(namespace_tag)
        records = tenant.records.values() if tenant is not None else ()
        return [replace(r.extent, used_s=r.used_s) for r in records if self._index.ends(r.extent)]

    def followers(self, name: str) -> int:
        """How many kept records continue record ``name``, which is kept."""
        return self._records[name].followers

    # what stays ----------------------------------------------------------------------------------

    @property
    def held_bytes(self) -> int:
        """Bytes of the records that are held."""
        return self._held.n_bytes

    @property
    def promised_bytes(self) -> int:
        """Bytes that are expected of what is held and not stored yet."""
        return self._held.promised_bytes

    def room_bytes(self, namespace_tag: bytes | None = None) -> int:
        """How many bytes more that tenant can hold for sure: what others hold, or use of what they
        are guaranteed, is not to be had, nor is the last twentieth of the cap. Without a tenant
        nobody's guarantee counts."""
        taken = self.held_bytes + self.promised_bytes
        if namespace_tag is not None:
            share = self._share(len(self._tenants.keys() | {namespace_tag}))
            for tag, tenant in self._tenants.items():
                if tag != namespace_tag:
                    held = self._held.bytes_by_tag[tag]
                    taken += max(0, min(tenant.n_bytes, share) - held)
        return max(0, self.cap_bytes * HIGH_PERCENT // 100 - taken)

    def hold(self, text: HeldText) -> None:
        """Do not evict what is stored of ``text``, now and later. Counted: let go as often."""
        self._held.hold(text)

    def let_go(self, text: HeldText) -> None:
        """End one hold on ``text``."""
        self._held.let_go(text)

    def is_held(self, name: str) -> bool:
        """Whether record ``name`` stays."""
        return name in self._held

    def holds(self, key: bytes) -> bool:
        """Whether the full block ``key``, stored or not, is held."""
        return self._held.holds(key)

    # what changes --------------------------------------------------------------------------------

    def reserve(
        self,
        namespace_tag: bytes,
        n_bytes: int,
        now_s: float,
        *,
        behind: Iterable[bytes] = (),
        of: Extent | None = None,
    ) -> list[str] | None:
        """Set ``n_bytes`` aside for a record to come; ``now_s`` is Unix time. What holds a block of
        ``behind`` stays: records that are being saved continue it. ``of``, where given, is that
        record: what is held may take the room that was promised.

        Returns the names of the records that gave way: they are forgotten, the caller has the
        store drop them. None, and nothing is changed, when there is no room that this tenant may
        take. End it with ``add`` or ``cancel``.
        """
        if n_bytes < 0:
            raise ValueError(f"cannot reserve {n_bytes} bytes: give 0 or more")
        promised = of is None or not self._held.wants(of)
        going = victims(
            Asked(
                tag=namespace_tag,
                n_bytes=n_bytes,
                now_s=now_s,
                continued=[b.extent.name for key in behind for b in self._index.of(key)],
                held=self._held,
            ),
            self._tenants,
            cap_bytes=self.cap_bytes,
            used_bytes=self.used_bytes + (self._held.promised_bytes if promised else 0),
            share=self._share,
            continued_by=self._continued_by,
        )
        if going is None:
            return None
        for victim in going:
            self._forget(victim)
            self._remember_evicted(victim.extent)
        self._tenant(namespace_tag).reserved_bytes += n_bytes
        self.used_bytes += n_bytes
        self._leave_if_empty(namespace_tag)
        return [victim.extent.name for victim in going]

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
        record = Kept(extent, self._index.followers(extent))
        for before in self._continued_by(extent):
            before.followers += 1
        self._records[extent.name] = record
        tenant = self._tenant(tag)
        tenant.records[extent.name] = record
        tenant.kept_bytes += extent.n_bytes
        self.used_bytes += extent.n_bytes
        self.n_tokens += len(extent.tokens)
        self._index.add(extent)
        self._held.added(extent)
        for key in extent.keys:
            self._gone.pop(key, None)
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

    # inside --------------------------------------------------------------------------------------

    def _share(self, n_tenants: int) -> int:
        """Bytes that each of so many tenants is guaranteed."""
        return self.cap_bytes // n_tenants

    def _tenant(self, namespace_tag: bytes) -> Tenant:
        return self._tenants.setdefault(namespace_tag, Tenant())

    def _leave_if_empty(self, namespace_tag: bytes) -> None:
        tenant = self._tenants[namespace_tag]
        if not tenant.records and not tenant.reserved_bytes:
            del self._tenants[namespace_tag]

    def _continued_by(self, extent: Extent) -> list[Kept]:
        """The other kept records of its owner that hold the block before ``extent``."""
        return [
            self._records[block.extent.name]
            for block in self._index.of(extent.parent)
            if block.extent.namespace_tag == extent.namespace_tag
            and block.extent.name != extent.name
        ]

    def _forget(self, record: Kept) -> None:
        extent = record.extent
        self._index.remove(extent)
        self._held.removed(extent)
        for before in self._continued_by(extent):
            before.followers -= 1
        tenant = self._tenants[extent.namespace_tag]
        del self._records[extent.name], tenant.records[extent.name]
        tenant.kept_bytes -= extent.n_bytes
        self.used_bytes -= extent.n_bytes
        self.n_tokens -= len(extent.tokens)
        self._leave_if_empty(extent.namespace_tag)

    def _remember_evicted(self, extent: Extent) -> None:
        self.evicted_records += 1
        for key in extent.keys:
            if key not in self._index:
                self._gone[key] = None
        while len(self._gone) > _REMEMBERED:
            self._gone.popitem(last=False)

    def check(self) -> None:
        """Raise ``RuntimeError`` unless all sums and indexes agree with the records."""
        extents = {name: record.extent for name, record in self._records.items()}
        kept: dict[bytes, int] = {}
        for e in extents.values():
            kept[e.namespace_tag] = kept.get(e.namespace_tag, 0) + e.n_bytes
        reserved = sum(tenant.reserved_bytes for tenant in self._tenants.values())
        agree = {
            "sum of bytes": self.used_bytes == sum(kept.values()) + reserved,
            "cap": self.used_bytes <= self.cap_bytes,
            "sum of tokens": self.n_tokens == sum(len(e.tokens) for e in extents.values()),
            "tenants": all(
                t.kept_bytes == kept.get(tag, 0) and (t.records or t.reserved_bytes > 0)
                for tag, t in self._tenants.items()
            )
            and kept.keys() <= self._tenants.keys(),
            "continued records": all(
                record.followers == self._index.followers(record.extent)
                for record in self._records.values()
            ),
        }
        wrong = [what for what, right in agree.items() if not right]
        wrong += self._index.wrong(extents, self._gone)
        if not wrong and not self._held.is_right(extents):
            wrong = ["held records"]
        if wrong:
            raise RuntimeError(f"the index of the {self.tier} tier is wrong: {', '.join(wrong)}")
