"""Who gives way in a stored tier: the choice alone, nothing is changed here.

Invariants:
- a record goes only when no kept record continues it, so chains lose their ends first;
- a held record stays, and so does all that it continues;
- a tenant that holds its guaranteed share or less loses nothing to another.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass

from kvasir.kv.moves import Extent

HIGH_PERCENT = 95  # of the cap: what would pass it has others evicted, …
LOW_PERCENT = 90  # … until it fits below this, so that a pass over all records is rare
_SOON_S = 60.0  # what was used within this time counts as used just now


class Kept:
    """A kept record and what changes about it."""

    __slots__ = ("extent", "followers", "used_s", "uses")

    def __init__(self, extent: Extent, followers: int) -> None:
        self.extent = extent
        self.followers = followers  # kept records that continue it
        self.used_s = extent.used_s
        self.uses = 0


class Tenant:
    """What one tenant has of the tier."""

    __slots__ = ("kept_bytes", "records", "reserved_bytes")

    def __init__(self) -> None:
        self.kept_bytes = 0
        self.reserved_bytes = 0
        self.records: dict[str, Kept] = {}

    @property
    def n_bytes(self) -> int:
        """Kept and reserved."""
        return self.kept_bytes + self.reserved_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Who asks for how much room, and when (Unix time)."""

    tag: bytes
    n_bytes: int
    now_s: float
    continued: Iterable[str]  # names of records that are about to be continued: they stay
    held: Container[str]  # names of records that stay because they are held


def victims(
    asked: Asked,
    tenants: Mapping[bytes, Tenant],
    *,
    cap_bytes: int,
    used_bytes: int,
    share: Callable[[int], int],
    continued_by: Callable[[Extent], Iterable[Kept]],
) -> list[Kept] | None:
    """The records that have to give way, in order; None where that does not make the room.

    ``used_bytes`` are taken or spoken for, ``share`` is what each of so many tenants is guaranteed,
    and ``continued_by`` gives the records that a record continues.
    """
    n_bytes = asked.n_bytes
    total = used_bytes + n_bytes
    high, low = (cap_bytes * percent // 100 for percent in (HIGH_PERCENT, LOW_PERCENT))
    goal = low if n_bytes <= low else cap_bytes
    if total <= max(high, goal):
        return []
    if n_bytes > cap_bytes:
        return None
    has = {tag: tenant.n_bytes for tag, tenant in tenants.items()}
    has[asked.tag] = has.get(asked.tag, 0) + n_bytes
    guaranteed = share(len(has))
    chosen: dict[str, Kept] = {}
    gone_followers = Counter(dict.fromkeys(asked.continued, -1))
    # Where nobody has borrowed any more, the one that asks makes the room below the watermark.
    rounds = ((list(has), guaranteed), ([asked.tag], guaranteed * LOW_PERCENT // 100))
    for tags, floor in rounds:
        order = [
            _ranked(record, asked.now_s)
            for tag in tags
            if total > goal and has[tag] > floor and tag in tenants
            for name, record in tenants[tag].records.items()
            if name not in chosen
            and record.followers == gone_followers[name]
            and name not in asked.held
        ]
        heapq.heapify(order)
        while total > goal and order:
            *_, name, record = heapq.heappop(order)
            extent = record.extent
            if has[extent.namespace_tag] <= floor:
                continue  # has given back what it had borrowed, and nothing adds to it here
            chosen[name] = record
            has[extent.namespace_tag] -= extent.n_bytes
            total -= extent.n_bytes
            for before in continued_by(extent):
                above = before.extent.name
                gone_followers[above] += 1
                if gone_followers[above] == before.followers and above not in asked.held:
                    heapq.heappush(order, _ranked(before, asked.now_s))
    return list(chosen.values()) if total <= cap_bytes else None


def _ranked(record: Kept, now_s: float) -> tuple[float, float, str, Kept]:
    """The record behind what orders it: the least valuable first, then the longest unused.

    Its value is the seconds that it saves per byte, times its chance of reuse, which grows with
    the uses so far and falls about as 1 / age.
    """
    extent = record.extent
    age_s = max(0.0, now_s - record.used_s)
    chance = (1 + record.uses) / (age_s + _SOON_S)
    return extent.compute_s / max(1, extent.n_bytes) * chance, record.used_s, extent.name, record
