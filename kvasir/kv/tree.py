"""The prefix tree: which blocks hold the KV of which tokens, who holds them, which may go.

Invariants:
- prefix-closed: a node's parent is in the tree for as long as the node is (eviction takes leaves);
- ``node.pins`` is the number of leases whose chain goes through the node; a node is *idle* when it
  is 0, and then so are all nodes below it;
- a sealed node holds exactly ``block_tokens`` tokens, a tail fewer and has no children.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterator, Sequence

from kvasir.core.tiers import Tier

_CANDIDATES = 32  # children compared for a partial match; more would cost more than it finds
_REMEMBERED = 65_536  # evicted keys kept to say "evicted" rather than "never seen"


class Node:
    """One block in the tree, or the root of a namespace (``block`` -1, no tokens)."""

    __slots__ = ("block", "children", "key", "parent", "pins", "restored", "tail", "tokens", "used")

    def __init__(
        self, key: bytes, parent: Node | None, tokens: tuple[int, ...], block: int, *, tail: bool
    ) -> None:
        self.key = key
        self.parent = parent
        self.tokens = tokens
        self.block = block
        self.tail = tail
        self.pins = 0
        self.restored: Tier | None = None  # whence it came back, until it is first used
        self.used = 0  # the tree's tick at the last pin or release
        self.children: dict[int, list[Node]] = {}  # first token -> nodes that begin with it


class PrefixTree:
    """Nodes by key, one root per namespace, and an eviction order over the idle leaves."""

    def __init__(self) -> None:
        self.n_idle = 0
        self.evicted_blocks = 0
        self._nodes: dict[bytes, Node] = {}
        self._roots: dict[bytes, Node] = {}
        self._leaves: list[tuple[int, int, Node]] = []  # heap of (used, serial, node), lazily valid
        self._tick = 0
        self._serial = 0
        self._gone: OrderedDict[bytes, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes.values())

    def get(self, key: bytes) -> Node | None:
        """The sealed node or tail of that key."""
        return self._nodes.get(key)

    def root(self, namespace: bytes) -> Node:
        """The root of ``namespace``, made on first use; it occupies no block and is never idle."""
        root = self._roots.get(namespace)
        if root is None:
            root = self._roots[namespace] = Node(b"", None, (), -1, tail=False)
        return root

    def was_evicted(self, key: bytes) -> bool:
        """Whether a block of that key was here and had to give way (bounded memory)."""
        return key in self._gone

    def depth(self, keys: Sequence[bytes], *, at_most: int, from_depth: int = 0) -> int:
        """How many leading ``keys`` are in the tree, at most ``at_most``.

        Prefix-closed, so a gallop from a depth that was right a moment ago suffices.
        """
        depth = min(from_depth, at_most)
        while depth > 0 and keys[depth - 1] not in self._nodes:
            depth -= 1
        while depth < at_most and keys[depth] in self._nodes:
            depth += 1
        return depth

    def closest_child(self, node: Node, tokens: Sequence[int]) -> tuple[Node | None, int]:
        """The child of ``node`` that shares the longest beginning with ``tokens``, and its length.

        The KV of that beginning is the same whatever follows, so it may be copied.
        """
        best: Node | None = None
        best_length = 0
        if not tokens:
            return best, best_length
        for child in node.children.get(tokens[0], ())[-_CANDIDATES:]:
            length = _common(child.tokens, tokens)
            if length > best_length:
                best, best_length = child, length
        return best, best_length

    def add(
        self, key: bytes, parent: Node, tokens: Sequence[int], block: int, *, tail: bool
    ) -> Node:
        """Put a block into the tree as an idle leaf below ``parent``; the key must be new.

        Idle tails below the same parent whose tokens the new node begins with are superseded; the
        caller takes their blocks from ``take_superseded`` first.
        """
        self._tick += 1
        node = Node(key, parent, tuple(tokens), block, tail=tail)
        self._nodes[key] = node
        parent.children.setdefault(node.tokens[0], []).append(node)
        self.n_idle += 1
        self._gone.pop(key, None)
        self._touch(node)
        return node

    def take_superseded(self, parent: Node, tokens: Sequence[int]) -> list[int]:
        """Remove idle tails below ``parent`` that ``tokens`` begin with; returns their blocks."""
        ordered = tuple(tokens)
        old = [
            tail
            for tail in parent.children.get(ordered[0], ())
            if tail.tail and tail.pins == 0 and ordered[: len(tail.tokens)] == tail.tokens
        ]
        return [self._remove(tail) for tail in old]

    def pin(self, node: Node, *, down_from: Node) -> None:
        """Count one more holder on every node from below ``down_from`` to ``node``."""
        while node is not down_from:
            if node.pins == 0:
                self.n_idle -= 1
            node.pins += 1
            node = _parent(node)

    def unpin(self, node: Node) -> None:
        """Count one holder less on ``node`` and all nodes above it."""
        self._tick += 1
        while node.parent is not None:
            node.pins -= 1
            if node.pins == 0:
                self.n_idle += 1
                self._touch(node)
            node = node.parent

    def evict(self, count: int) -> list[int]:
        """Remove up to ``count`` idle leaves, least recently used first; returns their blocks."""
        blocks: list[int] = []
        while len(blocks) < count and self._leaves:
            used, _, node = heapq.heappop(self._leaves)
            stale = node.used != used or node.pins or node.children
            if stale or self._nodes.get(node.key) is not node:
                continue
            self._gone[node.key] = None
            if len(self._gone) > _REMEMBERED:
                self._gone.popitem(last=False)
            self.evicted_blocks += 1
            blocks.append(self._remove(node))
        return blocks

    def empty_below(self, namespace: bytes) -> bool:
        """Whether nothing at all is kept for ``namespace``."""
        root = self._roots.get(namespace)
        return root is None or not root.children

    def _remove(self, node: Node) -> int:
        parent = _parent(node)
        siblings = parent.children[node.tokens[0]]
        siblings.remove(node)
        if not siblings:
            del parent.children[node.tokens[0]]
        del self._nodes[node.key]
        self.n_idle -= 1
        if parent.parent is not None and parent.pins == 0 and not parent.children:
            self._push(parent)
        return node.block

    def _touch(self, node: Node) -> None:
        node.used = self._tick
        if not node.children:
            self._push(node)

    def _push(self, node: Node) -> None:
        if len(self._leaves) > 4 * len(self._nodes) + 1024:  # mostly stale entries: start over
            idle = [n for n in self._nodes.values() if n.pins == 0 and not n.children]
            self._leaves = [(n.used, serial, n) for serial, n in enumerate(idle)]
            heapq.heapify(self._leaves)
            self._serial = len(idle)
        self._serial += 1
        heapq.heappush(self._leaves, (node.used, self._serial, node))


def _parent(node: Node) -> Node:
    if node.parent is None:
        raise RuntimeError("walked above the root of the prefix tree: a lease lost its place")
    return node.parent


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common beginning."""
    length = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        length += 1
    return length
