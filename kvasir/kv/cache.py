"""The facade of the KV cache: what the scheduler asks for, in one place.

A sequence holds KV through a ``Lease``. The first ``n_sealed`` entries of its block table belong to
the prefix tree and are shared; the others are its own, written by nobody else. Every block is at
any time in exactly one place: free, in one lease, in one restore, or in the tree (``check`` proves
it). What is sealed is copied to the stored tiers in the background, and comes back from there.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence

from kvasir.core.costs import CostFit
from kvasir.core.events import Miss
from kvasir.core.geometry import KvGeometry
from kvasir.core.plans import Audit, Copy
from kvasir.core.realm import Realm
from kvasir.core.tiers import TierStatus
from kvasir.kv.audit import Auditor
from kvasir.kv.blocks import DeviceBlocks
from kvasir.kv.conservation import check_places, check_tree
from kvasir.kv.explain import why_not_more
from kvasir.kv.keeping import Keeping
from kvasir.kv.keys import NO_PARENT, KeyChain
from kvasir.kv.lease import Lease, Match, chain_of, kept_token, taken_from
from kvasir.kv.moves import Moved, NoMover
from kvasir.kv.restore import Restore
from kvasir.kv.restorer import Restorer
from kvasir.kv.saver import Saver
from kvasir.kv.stored import StoredTiers
from kvasir.kv.tree import Node, PrefixTree

log = logging.getLogger(__name__)

_NOT_WORTH_S = 2.0**-40  # less than any block that somebody may need again


class KvCache:
    """Where the KV of which tokens is; reserves, seals, shares, saves, restores and evicts."""

    def __init__(
        self,
        geometry: KvGeometry,
        realm: Realm,
        *,
        fit: CostFit | None = None,
        stored: StoredTiers | None = None,
        audit_one_in: int = 0,
    ) -> None:
        """``fit`` says what computing costs. Without ``stored`` the device is the only tier. One in
        ``audit_one_in`` restored blocks is compared (0: none)."""
        self.geometry = geometry
        self.realm = realm
        self.fit = fit or CostFit()
        self.stored = stored or StoredTiers((), NoMover(), geometry, record_bytes=lambda *_: 0)
        self._tree = PrefixTree(geometry.n_blocks, worth_s=self._worth_s)
        self._device = DeviceBlocks(geometry.n_blocks, self._tree)
        self._leases: set[Lease] = set()
        self._reload_s = self.stored.reload_s()  # of one block, as measured last
        self.auditor = Auditor(self._device, audit_one_in)
        self._restorer = Restorer(
            self._device, self.stored, self.fit.alone_s, self.chain, self.auditor.restored
        )
        self._saver = Saver(self._device, self.stored, self.fit.alone_s)
        self.keeping = Keeping(self._device, self.stored, self._saver)

    # what there is -------------------------------------------------------------------------------

    @property
    def free_blocks(self) -> int:
        """Blocks that hold nothing."""
        return self._device.pool.n_free

    @property
    def idle_blocks(self) -> int:
        """Blocks kept for reuse that nobody holds; they give way when room is needed."""
        return self._tree.n_idle

    @property
    def evicted_blocks(self) -> int:
        """Blocks evicted so far."""
        return self._tree.evicted_blocks

    @property
    def restored_blocks(self) -> int:
        """Blocks that came back from a stored tier so far."""
        return self._restorer.restored_blocks

    @property
    def loading(self) -> bool:
        """Whether stored KV is on its way into the pool."""
        return self._restorer.moving

    @property
    def moving(self) -> bool:
        """Whether a move is under way that will give blocks back or bring some."""
        return self.loading or self._saver.moving

    @property
    def saving(self) -> bool:
        """Whether something is still to be copied to a stored tier."""
        return not self._saver.idle

    def tiers(self) -> tuple[TierStatus, ...]:
        """How each stored tier is doing."""
        return self.stored.status(self._saver.unsaved_blocks)

    def chain(self, namespace: bytes) -> KeyChain:
        """The maker of block keys for ``namespace`` in this cache's realm."""
        return KeyChain(namespace, self.realm)

    def matched_blocks(self, keys: Sequence[bytes], n_tokens: int, known: int = 0) -> int:
        """Whole blocks of a prompt of ``n_tokens`` that could be shared now; changes nothing.

        ``known`` is an earlier answer, from which the search starts.
        """
        most = min(len(keys), max(0, n_tokens - 1) // self.geometry.block_tokens)
        return self._tree.depth(keys, at_most=most, from_depth=known)

    def match(
        self, namespace: bytes, tokens: Sequence[int], keys: Sequence[bytes], known: int = 0
    ) -> Match:
        """The longest beginning of ``tokens`` that is in the pool, at most ``len - 1`` tokens."""
        size = self.geometry.block_tokens
        depth, node, partial, length = self._closest(namespace, tokens, keys, known)
        found = depth * size + length
        kept = kept_token(node, partial, length) if found < len(tokens) - 1 else None
        miss = why_not_more(
            self._tree, self.stored, namespace, tokens, keys, (depth, found), kept is not None
        )
        return Match(depth, found, partial, miss, kept)

    def _closest(
        self, namespace: bytes, tokens: Sequence[int], keys: Sequence[bytes], known: int
    ) -> tuple[int, Node, Node | None, int]:
        """Whole blocks of ``tokens`` in the pool, the last one, the closest below it, how close."""
        size = self.geometry.block_tokens
        depth = self.matched_blocks(keys, len(tokens), known)
        node = self._node_at(namespace, keys, depth)
        rest = tokens[depth * size : min(len(tokens) - 1, (depth + 1) * size)]
        return depth, node, *self._tree.closest_child(node, rest)

    # tiers ---------------------------------------------------------------------------------------

    def poll(self) -> list[Moved]:
        """Take note of moves that have ended, and begin others. What was nobody's move here is
        returned."""
        others = [
            moved
            for moved in self.stored.mover.take_moved()
            if not self._restorer.moved(moved) and not self._saver.moved(moved)
        ]
        self._restorer.adopt()
        self.keeping.drop_again()
        self._saver.issue()
        self._reload_s = self.stored.reload_s()
        return others

    def save(self) -> None:
        """Begin to copy what was sealed or released to the stored tiers."""
        self._saver.issue()

    def brings(self, key: bytes) -> bool:
        """Whether the block ``key`` is on its way into the pool."""
        return self._restorer.brings(key)

    def restore(
        self,
        namespace: bytes,
        tokens: Sequence[int],
        keys: Sequence[bytes],
        *,
        known: int = 0,
        spare_blocks: int = 0,
        patient: bool = False,
    ) -> Restore | None:
        """Begin to bring back what is stored of ``tokens``, as ``Restorer.begin`` says, where there
        is room for it beside ``spare_blocks``."""
        depth, node, _, length = self._closest(namespace, tokens, keys, known)
        found = (node, depth, length)
        return self._restorer.begin(namespace, tokens, keys, *found, spare_blocks, patient)

    def give_way(self) -> bool:
        """Give up a restore, where there is one that nobody computes towards; room comes of it now
        or, where it is being written into, soon."""
        return self._restorer.give_way()

    def worth_meeting(self, restore: Restore, computed: int) -> bool:
        """Whether the beginning of ``restore`` is better computed than waited for, by somebody who
        has computed up to position ``computed``."""
        return self._restorer.split(restore, computed) > 0

    def meet(self, lease: Lease, restore: Restore, computed: int) -> None:
        """Have ``lease`` compute towards ``restore``, as far as that is worth it."""
        if restore.done:
            return
        lease.restore = restore
        restore.met = True
        self._restorer.leave(restore, self._restorer.split(restore, computed))

    def follow(self, lease: Lease, tokens: Sequence[int], computed: int) -> int:
        """Share what has come to be in the tree right behind the ``computed`` tokens of ``lease``;
        how many are computed with it. At most ``len - 1`` tokens."""
        size = self.geometry.block_tokens
        while computed == lease.n_sealed * size and computed + size < len(tokens):
            if lease.n_sealed >= len(lease.keys):
                break
            node = self._tree.get(lease.keys[lease.n_sealed])
            if node is None:
                break
            self._share(lease, node)
            lease.reused_by_tier[taken_from(node)] += size
            computed += size
        if lease.restore is not None and lease.restore.done:
            lease.restore = None
        return computed

    def audit(self, compare: Callable[[Audit], bool]) -> bool:
        """Have one restored block computed again; False where none is waiting for it, or something
        holds blocks. A block that is not right is forgotten in every tier."""
        if self._leases or self.loading or self.saving:
            return False
        finding = self.auditor.compare_one(compare)
        if finding is None:
            return False
        if not finding.right:
            log.error("AUDIT FAILED: a restored block is not what computing gives; it is discarded")
            self.keeping.discard(finding.node)
        return True

    # a lease's life ------------------------------------------------------------------------------

    def admit(
        self,
        namespace: bytes,
        chain: KeyChain,
        tokens: Sequence[int],
        keys: list[bytes],
        *,
        reuse: bool = True,
        transient: bool = False,
        known: int = 0,
        spare_blocks: int = 0,
        wish_blocks: int = 0,
    ) -> tuple[Lease, Match, Copy | None] | None:
        """Share what is there and reserve the rest for ``tokens``; None when it does not fit now.

        ``keys`` are those of the full blocks of ``tokens`` (the lease keeps the list). At least
        ``spare_blocks`` stay available to others. Up to ``wish_blocks`` more are reserved from what
        is free, so that an answer can grow side by side. The ``Copy`` must be carried out before
        the lease's own tokens are written; then ``copied`` ends the hold on its source. What is
        computed under a ``transient`` lease is not stored.
        """
        match = Match(0, 0, None, Miss.PROMPT_LOGPROBS)
        if reuse:
            match = self.match(namespace, tokens, keys, known)
        wanted = (spare_blocks, wish_blocks, transient)
        lease = self._reserve(namespace, chain, tokens, keys, match, *wanted)
        if lease is None and match.partial is not None:
            # The source of the copy is kept from eviction meanwhile; do without it.
            size = self.geometry.block_tokens
            found = match.n_blocks * size
            match = Match(match.n_blocks, found, None, Miss.EVICTED)
            lease = self._reserve(namespace, chain, tokens, keys, match, *wanted)
        if lease is None:
            return None
        copy = None
        if match.partial is not None:
            target = lease.blocks[match.n_blocks]
            n_tokens = match.n_tokens - match.n_blocks * self.geometry.block_tokens
            copy = Copy(match.partial.block, target, n_tokens)
            lease.reused_by_tier[taken_from(match.partial)] += n_tokens
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
        last = lease.blocks[-1] if lease.blocks else None
        blocks = self._device.take(missing, lease.namespace, wish=wish_blocks, after=last)
        if blocks is None:
            return False
        lease.blocks += blocks
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
                if not lease.transient:
                    self._device.give(self._tree.take_superseded(lease.node, block_tokens))
                node = self._tree.add(
                    key, lease.node, block_tokens, lease.blocks[index], tail=False
                )
                node.transient = lease.transient
                self._pin_next(lease, node)
            else:
                self._share(lease, node)
        if lease.n_sealed - lease.n_wanted >= self._saver.run_blocks:
            self._want_saved(lease)

    def release(self, lease: Lease, tokens: Sequence[int], computed: int) -> None:
        """End a lease. Its sealed blocks stay for reuse, and so does its tail; the rest is free."""
        self.copied(lease)
        if lease.restore is not None:
            self._restorer.give_up(lease.restore)
            lease.restore = None
        self._want_saved(lease)
        size = self.geometry.block_tokens
        first = lease.n_sealed * size
        own = lease.blocks[lease.n_sealed :]
        tail = () if lease.transient else tokens[first:computed]
        if tail and own and self._keep_tail(lease, tail, own[0]):
            own = own[1:]
        self._device.give(own)
        self._tree.unpin(lease.node)
        self._leases.discard(lease)

    def check(self, *, shelves: bool = True) -> None:
        """Raise ``RuntimeError`` unless every block has one place and every pin a holder, and, with
        ``shelves``, unless the indexes of the stored tiers agree (slow where much is stored)."""
        places = list(self._device.pool.free_blocks())
        holders: list[Node] = []
        for lease in self._leases:
            places += lease.blocks[lease.n_sealed :]
            holders += [n for n in (lease.node, lease.copied_from) if n is not None]
        places += self._restorer.blocks()
        holders += [*self._restorer.anchors(), *self._saver.pinned()]
        places += [node.block for node in self._tree]
        check_places(places, self.geometry.n_blocks)
        check_tree(self._tree, holders)
        for shelf in self.stored.shelves if shelves else ():
            shelf.check()

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
        transient: bool,
    ) -> Lease | None:
        root = self._tree.root(namespace)
        lease = Lease(namespace, chain, root, keys)
        lease.node = self._node_at(namespace, keys, match.n_blocks)
        lease.n_sealed = lease.n_wanted = match.n_blocks
        self._tree.pin(lease.node, down_from=root)
        if match.partial is not None:
            self._tree.pin(match.partial, down_from=root)
            lease.copied_from = match.partial
        chain_nodes = chain_of(lease.node)
        lease.blocks = [n.block for n in chain_nodes]
        blocks = self._device.take(
            self.geometry.blocks_for(len(tokens)) - match.n_blocks,
            namespace,
            spare=spare_blocks,
            wish=wish_blocks,
            after=lease.blocks[-1] if lease.blocks else None,
        )
        if blocks is None:
            self.copied(lease)
            self._tree.unpin(lease.node)
            return None
        lease.blocks += blocks
        for node in chain_nodes:
            lease.reused_by_tier[taken_from(node)] += len(node.tokens)
            node.transient = node.transient and transient
        lease.transient = transient
        self._leases.add(lease)
        return lease

    def _share(self, lease: Lease, node: Node) -> None:
        """Put the tree's block in the place of the lease's own next one."""
        index = lease.n_sealed
        node.transient = node.transient and lease.transient
        self._device.give([lease.blocks[index]])
        lease.blocks[index] = node.block
        lease.dirty_from = min(lease.dirty_from, index)
        self._pin_next(lease, node)

    def _pin_next(self, lease: Lease, node: Node) -> None:
        self._tree.pin(node, down_from=lease.node)
        lease.node = node
        lease.n_sealed += 1

    def _want_saved(self, lease: Lease) -> None:
        """Have everything saved that the lease has sealed; of a transient one, what is held."""
        if lease.n_sealed > lease.n_wanted:
            node = self.keeping.deepest_held(lease.node) if lease.transient else lease.node
            self._saver.want(lease.namespace, node, (node.depth + 1) * self.geometry.block_tokens)
            lease.n_wanted = lease.n_sealed

    def _keep_tail(self, lease: Lease, tokens: Sequence[int], block: int) -> bool:
        """Put the unfilled last block into the tree, unless what is there holds its tokens, and
        will be stored."""
        covering, length = self._tree.closest_child(lease.node, tokens)
        if length == len(tokens) and covering is not None and not covering.transient:
            end = lease.n_sealed * self.geometry.block_tokens + len(covering.tokens)
            self._saver.want(lease.namespace, covering, end)
            return False
        self._device.give(self._tree.take_superseded(lease.node, tokens))
        key = lease.chain.key(lease.node.key, tokens)
        node = self._tree.add(key, lease.node, tokens, block, tail=True)
        end = lease.n_sealed * self.geometry.block_tokens + len(tokens)
        self._saver.want(lease.namespace, node, end)
        return True

    def _worth_s(self, node: Node) -> float:
        """In how many seconds a block could be had again, as a power of two: among those that cost
        about the same, the least recently used goes first."""
        if node.transient:
            return _NOT_WORTH_S
        start = node.depth * self.geometry.block_tokens
        seconds = self.fit.costs.prefill_s(len(node.tokens), start)
        if self.stored.get(node.key) is not None:
            seconds = min(seconds, self._reload_s)
        return math.ldexp(1.0, math.frexp(seconds)[1])

    def _node_at(self, namespace: bytes, keys: Sequence[bytes], depth: int) -> Node:
        root = self._tree.root(namespace)
        node = self._tree.get(keys[depth - 1]) if depth else root
        if node is None:
            raise RuntimeError("a matched block is no longer in the prefix tree")
        return node
