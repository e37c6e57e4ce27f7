"""Brings stored blocks back into the pool, where that is sooner done than computing them.

Every block that is on its way belongs to one restore until it joins the prefix tree, as an idle
node, or is given back. A restore pins what it continues. If a piece fails, what is behind it is
given up too; what is before it still joins.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

from kvasir.core.realm import namespace_tag
from kvasir.core.tiers import Tier
from kvasir.kv.blocks import DeviceBlocks
from kvasir.kv.keys import NO_PARENT, KeyChain
from kvasir.kv.moves import Extent, Load, Moved
from kvasir.kv.restore import Piece, Restore, Seconds, Stage, best_split
from kvasir.kv.stored import StoredTiers
from kvasir.kv.tree import Node

log = logging.getLogger(__name__)


class Restorer:
    """All restores under way."""

    def __init__(
        self,
        device: DeviceBlocks,
        stored: StoredTiers,
        compute_s: Seconds,
        chain_of: Callable[[bytes], KeyChain],
        restored: Callable[[Node], None],
    ) -> None:
        """``chain_of`` gives the keys of a namespace. ``restored`` is told of each block that has
        joined the tree."""
        self.restored_blocks = 0
        self._device = device
        self._stored = stored
        self._compute_s = compute_s
        self._chain_of = chain_of
        self._restored = restored
        self._active: list[Restore] = []
        self._loading: dict[int, tuple[Restore, Piece]] = {}  # by load, begun or queued
        self._given_up: dict[int, Piece] = {}  # into whose blocks a load still writes
        self._keys: dict[bytes, int] = {}  # on their way -> how many pieces bring them

    # what there is -------------------------------------------------------------------------------

    @property
    def moving(self) -> bool:
        """Whether a load is under way."""
        return bool(self._loading or self._given_up)

    def brings(self, key: bytes) -> bool:
        """Whether the block ``key`` is on its way."""
        return key in self._keys

    def blocks(self) -> Iterator[int]:
        """Every block that belongs to a restore; for the conservation check."""
        for restore in self._active:
            for piece in restore.pieces:
                yield from piece.blocks
        for piece in self._given_up.values():
            yield from piece.blocks

    def anchors(self) -> Iterator[Node]:
        """Every node that a restore pins, once per pin."""
        return (restore.anchor for restore in self._active)

    # a restore's life ----------------------------------------------------------------------------

    def begin(
        self,
        namespace: bytes,
        tokens: Sequence[int],
        keys: Sequence[bytes],
        anchor: Node,
        depth: int,
        partial: int,
        spare: int,
        patient: bool = False,
    ) -> Restore | None:
        """Begin to load what is stored of ``tokens`` behind its first ``depth`` blocks, of which
        ``anchor`` is the last, and is not on its way already. None where nothing is, where
        computing all of it takes less time, or where there is no room now. Who is ``patient`` does
        not count the loads that are queued before."""
        tag = namespace_tag(namespace)
        pieces = self._stored.continuation(tag, tokens, keys, depth, partial, self._is_had)
        computed = pieces[0].start + partial if pieces else 0
        load_s = self._load_alone_s if patient else self._load_s
        if not pieces or best_split(pieces, computed, self._compute_s, load_s) == len(pieces):
            return None
        tree = self._device.tree
        root = tree.root(namespace)
        tree.pin(anchor, down_from=root)
        wanted = sum(piece.count for piece in pieces)
        blocks = self._device.take(wanted, namespace, spare=spare)
        if blocks is None:
            tree.unpin(anchor)
            return None
        restore = Restore(anchor, root, self._chain_of(namespace), pieces)
        for piece in pieces:
            self._stored.used(piece.tier, piece.extent.name)
            piece.blocks, blocks = blocks[: piece.count], blocks[piece.count :]
            for key in piece.keys:
                self._keys[key] = self._keys.get(key, 0) + 1
        self._active.append(restore)
        for piece in reversed(pieces):
            self._queue(restore, piece)
        return restore

    def split(self, restore: Restore, computed: int) -> int:
        """How many pieces of ``restore`` are better computed, from position ``computed`` on."""
        queued = [piece for piece in restore.pieces if piece.stage is Stage.QUEUED]
        counted = sum(piece.n_bytes for piece in queued)

        def load_s(n_bytes: int, tier: Tier) -> float:
            return self._load_s(n_bytes - counted, tier)  # they are in the mover's queue already

        return best_split(queued, computed, self._compute_s, load_s)

    def leave(self, restore: Restore, count: int) -> None:
        """Do not load the first ``count`` pieces, as far as they have not landed: they are going to
        be computed."""
        for _ in range(count):
            if restore.pieces[0].stage is not Stage.QUEUED:
                return
            self._let_go(restore.pieces.popleft())

    def give_up(self, restore: Restore) -> None:
        """End ``restore``; what has not joined the tree is given back."""
        self._cut(restore, 0)
        self._end_if_done(restore)

    def moved(self, moved: Moved) -> bool:
        """Take note that a load has ended; False where it was none of ours."""
        doomed = self._given_up.pop(moved.id, None)
        if doomed is not None:
            self._device.give(doomed.blocks)
            if moved.problem:
                self._failed(doomed, moved)
            return True
        if moved.id not in self._loading:
            return False
        restore, piece = self._loading.pop(moved.id)
        piece.stage = Stage.LANDED
        if moved.problem:
            self._failed(piece, moved)
            self._cut(restore, restore.pieces.index(piece))
        return True

    def adopt(self) -> None:
        """Let everything join the tree that has landed and continues what is there."""
        for restore in tuple(self._active):
            while restore.pieces and restore.pieces[0].stage is Stage.LANDED:
                if not self._is_right(restore, restore.pieces[0]):
                    self._stored.lost(
                        restore.pieces[0].tier, restore.pieces[0].extent.name, damaged=True
                    )
                    self._cut(restore, 0)
                elif self._join(restore, restore.pieces[0]):
                    self._forget(restore.pieces.popleft())
                else:
                    break
            self._end_if_done(restore)

    def give_way(self) -> bool:
        """Give up the restore that was begun last and that nobody computes towards, for somebody
        who needs room now; False where there is none."""
        for restore in reversed(self._active):
            if not restore.met:
                self.give_up(restore)
                return True
        return False

    # inside --------------------------------------------------------------------------------------

    def _is_had(self, key: bytes) -> bool:
        return self.brings(key) or self._device.tree.get(key) is not None

    def _failed(self, piece: Piece, moved: Moved) -> None:
        log.warning("stored KV is not used, and computed again: %s", moved.problem)
        if moved.damaged:
            self._stored.lost(piece.tier, piece.extent.name, damaged=True)
        else:
            self._stored.drop(piece.tier, piece.extent.name)

    def _is_right(self, restore: Restore, piece: Piece) -> bool:
        """Whether the keys of ``piece`` are those of its tokens in this realm and namespace: an
        index finds beginnings by tokens alone."""
        extent = piece.extent
        return all(
            key == restore.chain.key(extent.parent_of(index), extent.tokens_of(index))
            for index, key in enumerate(piece.keys, start=piece.first)
        )

    def _load_s(self, n_bytes: int, tier: Tier) -> float:
        return self._stored.mover.load_s(n_bytes, tier)

    def _load_alone_s(self, n_bytes: int, tier: Tier) -> float:
        return self._load_s(n_bytes, tier) - self._load_s(0, tier)

    def _queue(self, restore: Restore, piece: Piece) -> None:
        piece.load_id = self._stored.next_id()
        self._loading[piece.load_id] = (restore, piece)
        self._stored.mover.load(
            Load(
                id=piece.load_id,
                tier=piece.tier,
                record=piece.extent.name,
                first=piece.first,
                blocks=tuple(piece.blocks),
                n_bytes=piece.n_bytes,
            )
        )

    def _withdraw(self, piece: Piece) -> bool:
        """Whether the piece's load has not begun and will not."""
        if not self._stored.mover.withdraw(piece.load_id):
            return False
        del self._loading[piece.load_id]
        return True

    def _cut(self, restore: Restore, index: int) -> None:
        """Give up the pieces from ``index`` on."""
        while len(restore.pieces) > index:
            self._let_go(restore.pieces.pop())

    def _let_go(self, piece: Piece) -> None:
        """Give the blocks of ``piece`` back; where they are written into, when that has ended."""
        self._forget(piece)
        if piece.stage is Stage.LANDED or self._withdraw(piece):
            self._device.give(piece.blocks)
        else:
            del self._loading[piece.load_id]
            self._given_up[piece.load_id] = piece

    def _forget(self, piece: Piece) -> None:
        for key in piece.keys:
            self._keys[key] -= 1
            if not self._keys[key]:
                del self._keys[key]

    def _end_if_done(self, restore: Restore) -> None:
        if restore.done and restore in self._active:
            self._active.remove(restore)
            self._device.tree.unpin(restore.anchor)

    def _join(self, restore: Restore, piece: Piece) -> bool:
        """Put the blocks of ``piece`` into the tree; False where what is before is not there."""
        tree = self._device.tree
        parent_key = piece.extent.parent_of(piece.first)
        parent = restore.root if parent_key == NO_PARENT else tree.get(parent_key)
        if parent is None:
            return False
        node = parent
        for offset, key in enumerate(piece.keys):
            block, piece.blocks = piece.blocks[0], piece.blocks[1:]
            node = self._join_block(
                node, key, piece.extent, piece.first + offset, block, piece.tier
            )
        if node.tail and node.parent is not None:  # a tail continues nothing
            node = node.parent
        tree.pin(node, down_from=restore.root)
        tree.unpin(restore.anchor)
        restore.anchor = node
        return True

    def _join_block(
        self, parent: Node, key: bytes, extent: Extent, index: int, block: int, tier: Tier
    ) -> Node:
        tree = self._device.tree
        known = tree.get(key)
        if known is not None:
            self._device.give([block])
            return known
        tokens = extent.tokens_of(index)
        self._device.give(tree.take_superseded(parent, tokens))
        tail = len(tokens) < extent.block_tokens
        node = tree.add(key, parent, tokens, block, tail=tail)
        node.restored = tier
        self.restored_blocks += 1
        self._restored(node)
        return node
