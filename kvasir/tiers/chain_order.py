"""Which records go first where all are too many, so that no beginning goes before what follows."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Mapping

from kvasir.tiers.record import Record


def ends_first(records: Mapping[str, Record]) -> Iterator[str]:
    """The names of ``records``, whose order is that of age: again and again the oldest that nothing
    left continues, that is, of whose keys none is the parent of a record that is left.

    O(n log n) in the records and linear in their keys. Where records continue each other in a
    circle, as no text does, the oldest of them goes.
    """
    names = list(records)
    followers = Counter(record.parent for record in records.values())  # of those left, by parent
    holders: dict[bytes, list[int]] = {key: [] for key in followers}
    continued = [0] * len(names)  # how many of its keys have followers
    for age, record in enumerate(records.values()):
        for key in {key for key in record.keys if key in holders}:
            holders[key].append(age)
            continued[age] += 1
    ends = [age for age, keys in enumerate(continued) if not keys]  # sorted, so a heap
    gone = [False] * len(names)
    oldest = 0
    while True:
        while oldest < len(names) and gone[oldest]:
            oldest += 1
        if oldest == len(names):
            return
        age = heapq.heappop(ends) if ends else oldest
        if gone[age]:
            continue
        gone[age] = True
        yield names[age]
        parent = records[names[age]].parent
        followers[parent] -= 1
        if not followers[parent]:
            for holder in holders[parent]:
                continued[holder] -= 1
                if not continued[holder]:
                    heapq.heappush(ends, holder)
