"""Copies sealed blocks and tails to the stored tiers, a run of neighbours at a time.

What is to be saved waits unpinned, so waiting never keeps anybody from the pool; only while a run
is being copied is it pinned, with what is before it. At most an eighth of the pool is copied at a
time. What is evicted before its turn is not saved, and counted. A tier in which writing has failed
is left alone.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from kvasir.core.realm import namespace_tag
from kvasir.core.tiers import Tier
from kvasir.kv.blocks import DeviceBlocks
from kvasir.kv.lease import chain_of
from kvasir.kv.moves import Extent, Moved, Save
from kvasir.kv.restore import Seconds
from kvasir.kv.shelf import Shelf
from kvasir.kv.stored import StoredTiers, run_blocks
from kvasir.kv.tree import Node

log = logging.getLogger(__name__)

_MOST_UNDER_WAY_BYTES = 128 * 2**20
_POOL_SHARE = 8


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Neighbouring nodes of one text that are to be saved in one tier."""

    shelf: Shelf
    namespace: bytes
    nodes: tuple[Node, ...]
    start: int  # position of the first token


@dataclass(frozen=True, slots=True)
class _UnderWay:
    """A save that the mover has."""

    shelf: Shelf
    extent: Extent
    node: Node | None  # the deepest: pinned, and so all before it; none where bytes were given
    ended: Callable[[str], None] = lambda _: None  # is told the problem; empty where none is


class Saver:
    """What is to be saved, and what is being saved."""

    def __init__(
        self,
        device: DeviceBlocks,
        stored: StoredTiers,
        compute_s: Seconds,
    ) -> None:
        geometry = stored.geometry
        self.run_blocks = run_blocks(geometry)
        self.unsaved_blocks = dict.fromkeys((shelf.tier for shelf in stored.shelves), 0)
        self._device = device
        self._stored = stored
        self.compute_s = compute_s
        self._queue: deque[_Wanted] = deque()
        self._wanted: set[tuple[Tier, bytes]] = set()  # queued or under way
        self._under_way: dict[int, _UnderWay] = {}
        # Saves under way that are to be dropped when they end; whether in the pool too.
        self._cleared: dict[int, bool] = {}
        self._most_bytes = min(_MOST_UNDER_WAY_BYTES, geometry.pool_bytes // _POOL_SHARE)
        self._bytes = 0
        self._closed: set[Tier] = set()

    @property
    def idle(self) -> bool:
        """Whether nothing is queued or under way."""
        return not self._queue and not self._under_way

    @property
    def moving(self) -> bool:
        """Whether a save is under way."""
        return bool(self._under_way)

    def pinned(self) -> Iterator[Node]:
        """Every node that a save pins, once per pin."""
        return (save.node for save in self._under_way.values() if save.node is not None)

    def saves(self, tier: Tier, key: bytes) -> bool:
        """Whether the block or tail ``key`` is to be saved in ``tier``, or being saved."""
        return (tier, key) in self._wanted

    def saves_of(self, keys: Collection[bytes]) -> frozenset[int]:
        """The saves under way that copy a block or tail of ``keys``."""
        wanted = set(keys)
        return frozenset(
            save_id
            for save_id, save in self._under_way.items()
            if not wanted.isdisjoint(save.extent.keys)
        )

    def any_under_way(self, saves: frozenset[int]) -> bool:
        """Whether one of ``saves`` has not ended."""
        return not saves.isdisjoint(self._under_way)

    def want(self, namespace: bytes, node: Node, end: int) -> None:
        """Save ``node``, whose tokens end at position ``end``, and all before it that is not saved:
        a record may have been lost while those behind it, which are of no use alone, are kept."""
        for shelf in self._stored.shelves:
            for nodes, first in self._not_kept(shelf, node, end):
                start = first
                for run in self._runs(nodes):
                    self._queue.append(_Wanted(shelf, namespace, run, start))
                    self._wanted.update((shelf.tier, n.key) for n in run)
                    start += sum(len(n.tokens) for n in run)

    def keep(
        self, shelf: Shelf, extent: Extent, planes: memoryview, ended: Callable[[str], None]
    ) -> None:
        """Save bytes that come from elsewhere as ``extent``; ``ended`` is told the problem, empty
        once they are kept."""
        if shelf.tier in self._closed or not self._make_room(shelf, extent):
            ended(self._stored.failure(shelf.tier) or "there is no room for it")
            return
        save_id = self._stored.next_id()
        self._under_way[save_id] = _UnderWay(shelf, extent, None, ended)
        self._bytes += extent.n_bytes
        self._wanted.update((shelf.tier, key) for key in extent.keys)
        self._stored.mover.save(
            Save(id=save_id, tier=shelf.tier, extent=extent, blocks=(), planes=planes)
        )

    def clear(self, tier: Tier | None, tag: bytes | None) -> None:
        """What is on its way to ``tier`` (None: any) of the namespace with ``tag`` (None: any) is
        dropped as soon as it is there, and without ``tier`` forgotten in the pool: until then it
        is pinned."""
        queue, self._queue = self._queue, deque()
        for wanted in queue:
            if tier in (None, wanted.shelf.tier) and tag in (None, namespace_tag(wanted.namespace)):
                self._wanted.difference_update((wanted.shelf.tier, n.key) for n in wanted.nodes)
            else:
                self._queue.append(wanted)
        for save_id, save in self._under_way.items():
            if tier in (None, save.shelf.tier) and tag in (None, save.extent.namespace_tag):
                self._cleared[save_id] = tier is None or self._cleared.get(save_id, False)

    def issue(self) -> None:
        """Give the mover as much as may be under way at a time."""
        while self._queue and (not self._under_way or self._bytes < self._most_bytes):
            self._begin(self._queue.popleft())

    def moved(self, moved: Moved) -> bool:
        """Take note that a save has ended; False where it was none of ours."""
        save = self._under_way.pop(moved.id, None)
        if save is None:
            return False
        shelf, extent = save.shelf, save.extent
        if save.node is not None:
            self._device.tree.unpin(save.node)
        self._bytes -= extent.n_bytes
        self._wanted.difference_update((shelf.tier, key) for key in extent.keys)
        cleared = self._cleared.pop(moved.id, None)
        if cleared and save.node is not None:  # all before it was pinned with it
            top = chain_of(save.node)[0]
            self._device.give(self._device.tree.remove_below(top))
        if moved.problem:
            shelf.cancel(extent.namespace_tag, extent.n_bytes)
            self._failed(shelf, len(extent.keys), moved.problem)
            save.ended(moved.problem)
            return True
        shelf.add(dataclasses.replace(extent, name=moved.record), reserved=True)
        if cleared is not None:
            self._stored.drop(shelf.tier, moved.record)
            save.ended("it was cleared meanwhile")
            return True
        self._supersede(shelf, extent)
        save.ended("")
        return True

    # inside --------------------------------------------------------------------------------------

    def _supersede(self, shelf: Shelf, extent: Extent) -> None:
        """Price anew what has just been stored, and drop the tails that are of no use beside it."""
        for index, key in enumerate(extent.keys):
            node = self._device.tree.get(key)
            if node is not None:
                self._device.tree.reprice(node)
            tag, parent = extent.namespace_tag, extent.parent_of(index)
            for name in shelf.superseded(tag, parent, extent.tokens_of(index)):
                self._stored.drop(shelf.tier, name)

    def _runs(self, nodes: list[Node]) -> Iterator[tuple[Node, ...]]:
        """``nodes`` as the records that they will be; a tail is one of its own, because the next
        longer one replaces it."""
        full = [node for node in nodes if not node.tail]
        for index in range(0, len(full), self.run_blocks):
            yield tuple(full[index : index + self.run_blocks])
        yield from ((node,) for node in nodes if node.tail)

    def _not_kept(self, shelf: Shelf, node: Node, end: int) -> list[tuple[list[Node], int]]:
        """What of ``node`` and all before it is not kept: neighbours, and where they start."""
        gaps: list[tuple[list[Node], int]] = []
        gap: list[Node] = []
        at, start = node, end
        while at.parent is not None:
            if not self._kept(shelf, at):
                gap.append(at)
            elif gap:
                gaps.append((gap[::-1], start))
                gap = []
            start -= len(at.tokens)
            at = at.parent
        if gap:
            gaps.append((gap[::-1], start))
        return gaps[::-1]

    def _kept(self, shelf: Shelf, node: Node) -> bool:
        return shelf.get(node.key) is not None or self.saves(shelf.tier, node.key)

    def _begin(self, wanted: _Wanted) -> None:
        shelf, tree = wanted.shelf, self._device.tree
        nodes = [node for node in wanted.nodes if tree.get(node.key) is node]
        gone = wanted.nodes[len(nodes) :]
        self._wanted.difference_update((shelf.tier, node.key) for node in gone)
        self.unsaved_blocks[shelf.tier] += sum(not node.tail for node in gone)
        if not nodes:
            return
        extent = self._extent(wanted, nodes)
        if shelf.tier in self._closed or not self._make_room(shelf, extent):
            self._wanted.difference_update((shelf.tier, key) for key in extent.keys)
            self.unsaved_blocks[shelf.tier] += len(nodes)
            return
        tree.pin(nodes[-1], down_from=tree.root(wanted.namespace))
        save_id = self._stored.next_id()
        self._under_way[save_id] = _UnderWay(shelf, extent, nodes[-1])
        self._bytes += extent.n_bytes
        self._stored.mover.save(
            Save(
                id=save_id,
                tier=shelf.tier,
                extent=extent,
                blocks=tuple(node.block for node in nodes),
            )
        )

    def _extent(self, wanted: _Wanted, nodes: list[Node]) -> Extent:
        tokens = tuple(token for node in nodes for token in node.tokens)
        parent = nodes[0].parent
        return Extent(
            name="",
            namespace_tag=namespace_tag(wanted.namespace),
            parent=parent.key if parent is not None else b"",
            keys=tuple(node.key for node in nodes),
            tokens=tokens,
            start=wanted.start,
            block_tokens=self._stored.geometry.block_tokens,
            n_bytes=self._stored.record_bytes(len(nodes), len(tokens)),
            compute_s=self.compute_s(len(tokens), wanted.start),
            used_s=self._stored.now_s(),
        )

    def _make_room(self, shelf: Shelf, extent: Extent) -> bool:
        saving = [save.extent for save in self._under_way.values() if save.shelf is shelf]
        going = shelf.reserve(
            extent.namespace_tag,
            extent.n_bytes,
            self._stored.now_s(),
            behind=[one.parent for one in (extent, *saving)],
            of=extent,
        )
        if going is None:
            return False
        for name in going:
            self._stored.drop(shelf.tier, name)
        return True

    def _failed(self, shelf: Shelf, n_blocks: int, problem: str) -> None:
        self.unsaved_blocks[shelf.tier] += n_blocks
        failure = self._stored.failure(shelf.tier)
        if failure:
            self._closed.add(shelf.tier)
        log.warning("KV was not saved to %s: %s", shelf.tier, failure or problem)
