"""The facade of the KV cache: what the scheduler asks for, in one place.

A sequence holds KV through a ``Lease``. The first ``n_sealed`` entries of its block table belong to
the prefix tree and are shared; the others are its own, written by nobody else. Every block is at
any time in exactly one place: free, in one lease, or in the tree (``check`` proves it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvasir.core.events import Miss
from kvasir.core.geometry import KvGeometry
from kvasir.core.plans import Copy, Run, as_runs
from kvasir.kv.keys import NO_PARENT, KeyChain
from kvasir.kv.pool import BlockPool
from kvasir.kv.tree import Node, PrefixTree


@dataclass(frozen=True, slots=True)
class Match:
    """What of a prompt is in the cache: whole blocks, then the beginning of one more."""

    n_blocks: int
    n_tokens: int  # whole blocks and the partial one together
    partial: Node | None
    miss: Miss | None  # why nothing was found; None where something was


class Lease:
    """One sequence's hold on KV. Made by ``KvCache.admit``; the cache alone changes it."""

    __slots__ = ("blocks", "chain", "copied_from", "dirty_from", "keys", "n_sealed", "node", "root")

    def __init__(self, chain: KeyChain, root: Node, keys: list[bytes]) -> None:
        self.chain = chain
        self.root = root
        self.keys = keys  # of the full blocks known so far, matched or not
        self.node = root  # the deepest node of the tree that this lease pins
        self.n_sealed = 0
        self.blocks: list[int] = []
        self.dirty_from = 0  # the runner's copy of the table is right up to here
        self.copied_from: Node | None = None  # pinned until the copy has been made

    def take_changes(self) -> tuple[int, tuple[Run, ...]]:
        """(entries to keep, runs to append): the table's changes since the last call."""
        keep, self.dirty_from = self.dirty_from, len(self.blocks)
        return keep, as_runs(self.blocks[keep:])


class KvCache:
    """Where the KV of which tokens is; reserves, seals, shares and evicts blocks."""

    def __init__(self, geometry: KvGeometry, numerics_id: str) -> None:
        self.geometry = geometry
        self._numerics_id = numerics_id
        self._pool = BlockPool(geometry.n_blocks)
        self._tree = PrefixTree()
        self._leases: set[Lease] = set()

    # what there is -------------------------------------------------------------------------------

    @property
    def free_blocks(self) -> int:
        """Blocks that hold nothing."""
        return self._pool.n_free

    @property
    def idle_blocks(self) -> int:
        """Blocks kept for reuse that nobody holds; they give way when room is needed."""
        return self._tree.n_idle

    @property
    def evicted_blocks(self) -> int:
        """Blocks evicted so far."""
        return self._tree.evicted_blocks

    def chain(self, namespace: bytes) -> KeyChain:
        """The maker of block keys for ``namespace`` under this cache's numerics and layout."""
        return KeyChain(namespace, self._numerics_id, self.geometry.layout_id)

    def matched_blocks(self, keys: Sequence[bytes], n_tokens: int, known: int = 0) -> int:
        """Whole blocks of a prompt of ``n_tokens`` that could be shared now; changes nothing.

        ``known`` is an earlier answer, from which the search starts.
        """
        most = min(len(keys), max(0, n_tokens - 1) // self.geometry.block_tokens)
        return self._tree.depth(keys, at_most=most, from_depth=known)

    def match(
        self, namespace: bytes, tokens: Sequence[int], keys: Sequence[bytes], known: int = 0
    ) -> Match:
        """The longest beginning of ``tokens`` that is in the cache, at most ``len - 1`` tokens."""
        size = self.geometry.block_tokens
        depth = self.matched_blocks(keys, len(tokens), known)
        node = self._node_at(namespace, keys, depth)
        rest = tokens[depth * size : min(len(tokens) - 1, (depth + 1) * size)]
        partial, length = self._tree.closest_child(node, rest)
        found = depth * size + length
        return Match(depth, found, partial, None if found else self._miss(namespace, tokens, keys))

    # a lease's life ------------------------------------------------------------------------------

    def admit(
        self,
        namespace: bytes,
        chain: KeyChain,
        tokens: Sequence[int],
        keys: list[bytes],
        *,
        reuse: bool = True,
        known: int = 0,
        spare_blocks: int = 0,
        wish_blocks: int = 0,
    ) -> tuple[Lease, Match, Copy | None] | None:
        """Share what is there and reserve the rest for ``tokens``; None when it does not fit now.

        ``keys`` are those of the full blocks of ``tokens`` (the lease keeps the list). At least
        ``spare_blocks`` stay available to others. Up to ``wish_blocks`` more are reserved from what
        is free, so that an answer can grow side by side. The ``Copy`` must be carried out before
        the lease's own tokens are written; then ``copied`` ends the hold on its source.
        """
        match = (
            self.match(namespace, tokens, keys, known)
            if reuse
            else Match(0, 0, None, Miss.PROMPT_LOGPROBS)
        )
        lease = self._reserve(namespace, chain, tokens, keys, match, spare_blocks, wish_blocks)
        if lease is None and match.partial is not None:
            # The source of the copy is kept from eviction meanwhile; do without it.
            size = self.geometry.block_tokens
            found = match.n_blocks * size
            match = Match(match.n_blocks, found, None, None if found else Miss.EVICTED)
            lease = self._reserve(namespace, chain, tokens, keys, match, spare_blocks, wish_blocks)
        if lease is None:
            return None
        copy = None
        if match.partial is not None:
            target = lease.blocks[match.n_blocks]
            n_tokens = match.n_tokens - match.n_blocks * self.geometry.block_tokens
            copy = Copy(match.partial.block, target, n_tokens)
        return lease, match, copy

    def copied(self, lease: Lease) -> None:
        """The lease's copy has been made: its source may be evicted again."""
        if lease.copied_from is not None:
            self._tree.unpin(lease.copied_from)
            lease.copied_from = None

    def grow(self, lease: Lease, n_tokens: int, *, wish_blocks: int = 0) -> bool:
        """Make room for ``n_tokens`` in all; False, and nothing changed, when there is none."""
        missing = self.geometry.blocks_for(n_tokens) - len(lease.blocks)
        if missing <= 0:
            return True
        if not self._make_room(missing):
            return False
        extra = min(wish_blocks, self._pool.n_free - missing)
        last = lease.blocks[-1] if lease.blocks else None
        lease.blocks += self._pool.take(missing + extra, after=last)
        return True

    def seal(self, lease: Lease, tokens: Sequence[int], computed: int) -> None:
        """Publish every block of ``tokens`` that became full within ``computed`` tokens.

        Where another sequence sealed the same block first, the lease gives up its own copy and
        shares that one.
        """
        size = self.geometry.block_tokens
        while (lease.n_sealed + 1) * size <= computed:
            index = lease.n_sealed
            block_tokens = tokens[index * size : (index + 1) * size]
            if len(lease.keys) == index:
                parent = lease.keys[-1] if lease.keys else NO_PARENT
                lease.keys.append(lease.chain.key(parent, block_tokens))
            key = lease.keys[index]
            node = self._tree.get(key)
            if node is None:
                self._pool.give(self._tree.take_superseded(lease.node, block_tokens))
                node = self._tree.add(
                    key, lease.node, block_tokens, lease.blocks[index], tail=False
                )
            else:
                self._pool.give([lease.blocks[index]])
                lease.blocks[index] = node.block
                lease.dirty_from = min(lease.dirty_from, index)
            self._tree.pin(node, down_from=lease.node)
            lease.node = node
            lease.n_sealed += 1

    def release(self, lease: Lease, tokens: Sequence[int], computed: int) -> None:
        """End a lease. Its sealed blocks stay for reuse, and so does its tail; the rest is free."""
        self.copied(lease)
        size = self.geometry.block_tokens
        first = lease.n_sealed * size
        own = lease.blocks[lease.n_sealed :]
        if computed > first and own and self._keep_tail(lease, tokens[first:computed], own[0]):
            own = own[1:]
        self._pool.give(own)
        self._tree.unpin(lease.node)
        self._leases.discard(lease)

    def check(self) -> None:
        """Raise ``RuntimeError`` unless every block has one place and every pin a holder."""
        places = list(self._pool.free_blocks())
        pins: dict[bytes, int] = {}
        for lease in self._leases:
            places += lease.blocks[lease.n_sealed :]
            for held in (lease.node, lease.copied_from):
                node = held
                while node is not None and node.parent is not None:
                    pins[node.key] = pins.get(node.key, 0) + 1
                    node = node.parent
        for node in self._tree:
            places.append(node.block)
            if node.pins != pins.get(node.key, 0):
                raise RuntimeError(
                    f"block {node.block} counts {node.pins} holders, has {pins.get(node.key, 0)}"
                )
            if node.parent is None or (
                node.parent.parent is not None and self._tree.get(node.parent.key) is None
            ):
                raise RuntimeError(f"block {node.block} is in the tree and its parent is not")
        if sorted(places) != list(range(self.geometry.n_blocks)):
            raise RuntimeError(
                f"{len(places)} places for {self.geometry.n_blocks} blocks: "
                f"{self.free_blocks} free, {len(self._tree)} in the tree, "
                f"{len(self._leases)} leases"
            )
        idle = sum(1 for node in self._tree if node.pins == 0)
        if idle != self.idle_blocks:
            raise RuntimeError(f"{idle} blocks are idle, {self.idle_blocks} are counted")

    # inside --------------------------------------------------------------------------------------

    def _reserve(
        self,
        namespace: bytes,
        chain: KeyChain,
        tokens: Sequence[int],
        keys: list[bytes],
        match: Match,
        spare_blocks: int,
        wish_blocks: int,
    ) -> Lease | None:
        root = self._tree.root(namespace)
        lease = Lease(chain, root, keys)
        lease.node = self._node_at(namespace, keys, match.n_blocks)
        lease.n_sealed = match.n_blocks
        self._tree.pin(lease.node, down_from=root)
        if match.partial is not None:
            self._tree.pin(match.partial, down_from=root)
            lease.copied_from = match.partial
        missing = self.geometry.blocks_for(len(tokens)) - match.n_blocks
        if not self._make_room(missing, spare_blocks):
            self.copied(lease)
            self._tree.unpin(lease.node)
            return None
        extra = max(0, min(wish_blocks, self._pool.n_free - missing - spare_blocks))
        lease.blocks = [n.block for n in _chain_of(lease.node)]
        last = lease.blocks[-1] if lease.blocks else None
        lease.blocks += self._pool.take(missing + extra, after=last)
        self._leases.add(lease)
        return lease

    def _make_room(self, count: int, spare_blocks: int = 0) -> bool:
        """Evict until ``count`` blocks are free, if that leaves ``spare_blocks`` to be had."""
        if self._pool.n_free + self._tree.n_idle < count + spare_blocks:
            return False
        if self._pool.n_free < count:
            self._pool.give(self._tree.evict(count - self._pool.n_free))
        return self._pool.n_free >= count

    def _keep_tail(self, lease: Lease, tokens: Sequence[int], block: int) -> bool:
        """Put the unfilled last block into the tree, unless what is there holds its tokens."""
        _, length = self._tree.closest_child(lease.node, tokens)
        if length == len(tokens):
            return False
        self._pool.give(self._tree.take_superseded(lease.node, tokens))
        key = lease.chain.key(lease.node.key, tokens)
        self._tree.add(key, lease.node, tokens, block, tail=True)
        return True

    def _node_at(self, namespace: bytes, keys: Sequence[bytes], depth: int) -> Node:
        root = self._tree.root(namespace)
        node = self._tree.get(keys[depth - 1]) if depth else root
        if node is None:
            raise RuntimeError("a matched block is no longer in the prefix tree")
        return node

    def _miss(self, namespace: bytes, tokens: Sequence[int], keys: Sequence[bytes]) -> Miss:
        if len(tokens) < 2:
            return Miss.TOO_SHORT
        if keys and self._tree.was_evicted(keys[0]):
            return Miss.EVICTED
        if self._tree.empty_below(namespace):
            return Miss.FIRST_SEEN
        return Miss.DIFFERENT_TEXT


def _chain_of(node: Node) -> list[Node]:
    """The nodes from below the root to ``node``, in order."""
    chain: list[Node] = []
    while node.parent is not None:
        chain.append(node)
        node = node.parent
    chain.reverse()
    return chain
