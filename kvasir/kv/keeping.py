"""What somebody wants kept or forgotten on purpose: holds, where a text is, drops.

A hold is for the most lasting tier, where what is held stays; elsewhere blocks come and go by what
they are worth. Invariant: what is dropped is what neither a hold nor another kept text needs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from kvasir.core.realm import namespace_tag
from kvasir.core.tiers import KeptText, Residence, Tier
from kvasir.kv.blocks import DeviceBlocks
from kvasir.kv.held import HeldText
from kvasir.kv.keys import NO_PARENT
from kvasir.kv.moves import Extent
from kvasir.kv.saver import Saver
from kvasir.kv.shelf import Shelf
from kvasir.kv.stored import StoredTiers
from kvasir.kv.text import KeyedText
from kvasir.kv.transport import Transport
from kvasir.kv.tree import Node

_PREVIEW_TOKENS = 64


class Keeping:
    """Who holds which texts. Used by the engine's thread."""

    def __init__(self, device: DeviceBlocks, stored: StoredTiers, saver: Saver) -> None:
        self._device = device
        self._stored = stored
        self._saver = saver
        self.transport = Transport(stored, saver)
        self._size = stored.geometry.block_tokens
        self._holders: dict[str, list[tuple[HeldText, bytes]]] = {}  # with the keys of tails
        self._tails: Counter[bytes] = Counter()  # held ones by key
        # Dropped texts of which something was just being saved, by those saves.
        self._dropped: list[tuple[tuple[KeyedText, ...], frozenset[int]]] = []

    # holds ---------------------------------------------------------------------------------------

    def hold(self, holder: str, texts: Sequence[KeyedText]) -> None:
        """Keep what is, and will be, stored of ``texts`` until ``holder`` lets go; in the place of
        what that one held before. What of them is in the pool alone is saved."""
        before = self._holders.pop(holder, [])
        shelf = self._stored.lasting
        if shelf is not None:
            for text in texts:
                shelf.hold(text.held)
        self._tails.update(text.tail_key for text in texts)
        self._let_go(before)
        self._holders[holder] = [(text.held, text.tail_key) for text in texts]
        for text in texts:
            self._want(text)
        self._saver.issue()

    def let_go(self, holder: str) -> bool:
        """End the hold; False where there is none."""
        if holder not in self._holders:
            return False
        self._let_go(self._holders.pop(holder))
        return True

    def holds(self, key: bytes) -> bool:
        """Whether somebody holds the full block ``key``."""
        shelf = self._stored.lasting
        return shelf is not None and shelf.holds(key)

    def deepest_held(self, node: Node) -> Node:
        """The deepest held one of ``node`` and all before it; the root where none is."""
        while node.parent is not None and not self.holds(node.key):
            node = node.parent
        return node

    def room_bytes(self, namespace: bytes) -> int:
        """How many bytes more could be held for ``namespace``, whatever others do."""
        shelf = self._stored.lasting
        return 0 if shelf is None else shelf.room_bytes(namespace_tag(namespace))

    # where texts are -----------------------------------------------------------------------------

    def residence(self, text: KeyedText) -> Residence:
        """Where ``text`` is now."""
        lasting = self._stored.lasting
        stored = {shelf.tier: self._stored_of(shelf, text) for shelf in self._stored.shelves}
        held = all(self.holds(key) for key in text.keys) and self._tails[text.tail_key] > 0
        return Residence(
            n_tokens=len(text.tokens),
            device_tokens=self._on_device(text),
            stored={tier: n_tokens for tier, (n_tokens, _) in stored.items()},
            stored_bytes={tier: n_bytes for tier, (_, n_bytes) in stored.items()},
            saving=lasting is not None and self._is_saving(lasting, text),
            held=lasting is not None and held,
            failure=self._stored.failure(lasting.tier) if lasting is not None else "",
        )

    def texts(self, namespace: bytes) -> list[KeptText]:
        """The longest texts that are stored of ``namespace``, the last used first."""
        tag = namespace_tag(namespace)
        found: dict[str, KeptText] = {}
        for shelf in reversed(self._stored.shelves):
            for end in shelf.ends(tag):
                text = self._text_to(shelf, end)
                if text is not None:
                    found.setdefault(text.id, text)
        return sorted(found.values(), key=lambda text: (-text.used_s, text.id))

    # forgetting ----------------------------------------------------------------------------------

    def drop(self, texts: Iterable[KeyedText]) -> None:
        """Forget what is stored and idle of ``texts`` and of what continues them, but for what is
        held and what another kept text shares with them. What of it is just being saved is
        forgotten when that has ended."""
        together = tuple(texts)
        for shelf in self._stored.shelves:
            # what one of them begins with may be what another continues: it goes after that
            while sum(self._drop_stored(shelf, text) for text in together):
                pass
        keys = {key for text in together for key in text.all_keys}
        for text in together:
            keys.update(self._drop_from_pool(text))
        saves = self._saver.saves_of(keys)
        if saves:
            self._dropped.append((together, saves))

    def drop_again(self) -> None:
        """Forget what was saved while it was dropped."""
        ended = [texts for texts, saves in self._dropped if not self._saver.any_under_way(saves)]
        if ended:
            self._dropped = [d for d in self._dropped if self._saver.any_under_way(d[1])]
            for texts in ended:
                self.drop(texts)

    def clear(self, tier: Tier | None, tag: bytes | None) -> int:
        """Forget the records of ``tier`` (None: all) whose namespace has ``tag`` (None: any), and
        without ``tier`` idle blocks in the pool too, held or not; how many records."""
        n_records = 0
        for shelf in self._stored.shelves:
            if tier in (None, shelf.tier):
                names = [e.name for e in shelf if tag in (None, e.namespace_tag)]
                for name in names:
                    self._stored.drop(shelf.tier, name)
                n_records += len(names)
        self._saver.clear(tier, tag)
        if tier is None:
            tree = self._device.tree
            gone = tree.clear(lambda namespace: tag in (None, namespace_tag(namespace)))
            self._device.give(gone)
        return n_records

    def discard(self, node: Node) -> None:
        """Forget a block that is wrong, and everything that was computed behind it."""
        self._stored.drop_behind(namespace_tag(node.root.namespace), node.key)
        self._device.give(self._device.tree.remove_below(node))

    # inside --------------------------------------------------------------------------------------

    def _let_go(self, texts: list[tuple[HeldText, bytes]]) -> None:
        shelf = self._stored.lasting
        for text, tail_key in texts:
            if shelf is not None:
                shelf.let_go(text)
            self._tails[tail_key] -= 1
            if not self._tails[tail_key]:
                del self._tails[tail_key]

    def _deepest(self, text: KeyedText) -> Node:
        """The deepest node of the pool that is of ``text`` alone; the root where nothing is."""
        tree = self._device.tree
        depth = tree.depth(text.keys, at_most=len(text.keys))
        tail = tree.get(text.tail_key) if depth == len(text.keys) else None
        node = tail or (tree.get(text.keys[depth - 1]) if depth else None)
        return node or tree.root(text.namespace)

    def _want(self, text: KeyedText) -> None:
        """Have saved what of ``text`` is in the pool and was not, for whatever reason."""
        node = self._deepest(text)
        if node.parent is None:
            return
        at: Node | None = node
        while at is not None and at.parent is not None:
            if at.transient:
                at.transient = False
                self._device.tree.reprice(at)
            at = at.parent
        self._saver.want(text.namespace, node, node.depth * self._size + len(node.tokens))

    def _on_device(self, text: KeyedText) -> int:
        node = self._deepest(text)
        if node.tail or (node.depth + 1 == len(text.keys) and not text.rest):
            return len(text.tokens)
        at = (node.depth + 1) * self._size
        _, length = self._device.tree.closest_child(node, text.tokens[at : at + self._size])
        return at + length

    def _stored_of(self, shelf: Shelf, text: KeyedText) -> tuple[int, int]:
        """(tokens from the beginning, bytes of the records that have them)."""
        records: dict[str, int] = {}
        parent, index = NO_PARENT, 0
        for key in text.keys:
            block = shelf.get(key)
            if block is None:
                break
            records[block.extent.name] = block.extent.n_bytes
            parent, index = key, index + 1
        at = index * self._size
        following, length = shelf.closest(text.tag, parent, text.tokens[at : at + self._size])
        if following is not None:
            records[following.extent.name] = following.extent.n_bytes
        return at + length, sum(records.values())

    def _is_saving(self, shelf: Shelf, text: KeyedText) -> bool:
        if any(self._saver.saves(shelf.tier, key) for key in text.all_keys):
            return True
        node = self._deepest(text)
        if not text.rest or node.tail or node.depth + 1 != len(text.keys):
            return False
        covering, length = self._device.tree.closest_child(node, text.rest)
        whole = covering is not None and length == len(text.rest)
        return whole and covering is not None and self._saver.saves(shelf.tier, covering.key)

    def _text_to(self, shelf: Shelf, end: Extent) -> KeptText | None:
        """The text that ends with record ``end``; None where its beginning is not there, or where
        it is of another realm."""
        if (shelf.tier, end.name) in self._stored.foreign:
            return None
        parts = list(_chain(shelf, end))
        if parts[-1][0].parent != NO_PARENT:
            return None
        own_bytes = 0
        for extent, _ in parts:
            if shelf.followers(extent.name) > (extent is not end):
                break  # others share it, and what is before it
            own_bytes += extent.n_bytes
        first_ids: list[int] = []
        for extent, count in reversed(parts):
            first_ids += extent.tokens[: min(count, _PREVIEW_TOKENS - len(first_ids))]
        return KeptText(
            id=end.keys[-1].hex()[:32],
            tier=shelf.tier,
            n_tokens=sum(count for _, count in parts),
            first_ids=tuple(first_ids),
            n_bytes=own_bytes,
            used_s=end.used_s,
            held=shelf.is_held(end.name),
        )

    def _drop_stored(self, shelf: Shelf, text: KeyedText) -> int:
        """How many records of ``text`` and of what continues it went."""
        behind = shelf.going_on(text.held)
        of_text = [b.extent for key in reversed(text.all_keys) for b in shelf.all_of(key)]
        gone: set[str] = set()
        for extent in (*behind, *of_text):
            if extent.name in gone:
                continue
            # what else is in it is of texts that branch off within it, which are not held
            if not (shelf.is_held(extent.name) or shelf.followers(extent.name)):
                self._stored.drop(shelf.tier, extent.name)
                gone.add(extent.name)
        return len(gone)

    def _drop_from_pool(self, text: KeyedText) -> set[bytes]:
        """The keys of what continued ``text`` there."""
        tree = self._device.tree
        depth = tree.depth(text.keys, at_most=len(text.keys))
        node = tree.get(text.keys[depth - 1]) if depth else tree.root(text.namespace)
        if node is None:
            return set()
        n_rest = len(text.rest)
        behind = [
            below
            for children in (node.children.values() if depth == len(text.keys) else ())
            for child in children
            if child.tokens[:n_rest] == text.rest
            for below in tree.below(child)
        ]
        keys = {below.key for below in behind}
        for below in reversed(behind):
            self._drop_leaf(below)
        while node.parent is not None:
            parent = node.parent
            if not self._drop_leaf(node):
                break
            node = parent
        return keys

    def _drop_leaf(self, node: Node) -> bool:
        """Forget a block of the pool that nothing continues, uses or holds; whether it went."""
        if node.pins or node.children or self.holds(node.key) or self._tails[node.key]:
            return False
        self._device.give(self._device.tree.remove_below(node))
        return True


def _chain(shelf: Shelf, end: Extent) -> Iterator[tuple[Extent, int]]:
    """The records of the text that ends with ``end``, from the back, and how many of the tokens of
    each are of it; as far as they are there."""
    yield end, len(end.tokens)
    at = end
    for _ in range(shelf.n_records):  # where records go in a circle, as no text does, it ends too
        block = shelf.get(at.parent) if at.parent != NO_PARENT else None
        if block is None:
            return
        at = block.extent
        yield at, (block.index + 1) * at.block_tokens
