"""The device tier's blocks: which are free, and which are in the prefix tree and may give way."""

from __future__ import annotations

from collections.abc import Iterable

from kvasir.kv.pool import BlockPool
from kvasir.kv.tree import PrefixTree

_BATCH = 64  # 1/64 of the pool is free after an eviction, so that there are long runs


class DeviceBlocks:
    """Free blocks, and idle ones that become free when room is needed."""

    def __init__(self, n_blocks: int, tree: PrefixTree) -> None:
        self.pool = BlockPool(n_blocks)
        self.tree = tree
        self._batch = n_blocks // _BATCH

    def take(
        self,
        count: int,
        namespace: bytes,
        *,
        spare: int = 0,
        wish: int = 0,
        after: int | None = None,
    ) -> list[int] | None:
        """``count`` blocks for ``namespace``, in the order in which they are to be used; None, and
        nothing changed, where they cannot be had while ``spare`` remain for others. Up to ``wish``
        more where they are free."""
        if self.pool.n_free + self.tree.n_idle < count + spare:
            return None
        if self.pool.n_free < count:
            self.give(self.tree.evict(count - self.pool.n_free, for_namespace=namespace))
            ahead = self._batch - (self.pool.n_free - count)
            self.give(self.tree.evict(max(0, ahead), for_namespace=namespace, spare_others=True))
        if self.pool.n_free < count:
            return None
        extra = max(0, min(wish, self.pool.n_free - count - spare))
        return self.pool.take(count + extra, after=after)

    def give(self, blocks: Iterable[int]) -> None:
        """Return blocks to the pool."""
        self.pool.give(blocks)
