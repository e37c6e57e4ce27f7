"""The prefix tree: which blocks hold the KV of which tokens, who holds them, which may go.

Which idle leaf goes is decided by GreedyDual (Cao & Irani, "Cost-Aware WWW Proxy Caching
Algorithms", 1997) for blocks of equal size: a block's priority is the tree's clock at its last use
plus the seconds that it is worth, the lowest goes, and the clock becomes its priority. What takes
longer to have again so stays longer, but not for ever. With one worth for all it is LRU.

Invariants:
- prefix-closed: a node's parent is in the tree for as long as the node is (eviction takes leaves);
- ``node.pins`` counts the holds (of leases, saves, restores) whose chain goes through the node,
  which is *idle* when it is 0, and then so are all nodes below it;
- a sealed node holds exactly ``block_tokens`` tokens, a tail fewer and has no children;
- every idle leaf has a valid entry in the heap of its root;
- a namespace that has its share of the blocks or less loses none as long as one that has more, or
  the one that asks for room, has idle ones.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence

from kvasir.core.tiers import Tier

_CANDIDATES = 32  # children compared for a partial match; more would cost more than it finds
_REMEMBERED = 65_536  # evicted keys kept to say "evicted" rather than "never seen"


class Node:
    """One block in the tree, or the root of a namespace (``block`` -1, no tokens)."""

    __slots__ = (
        "block",
        "children",
        "clock",
        "depth",
        "key",
        "parent",
        "pins",
        "priority",
        "restored",
        "root",
        "tail",
        "tokens",
        "transient",
        "used",
    )
    root: Root  # of its namespace

    def __init__(
        self, key: bytes, parent: Node | None, tokens: tuple[int, ...], block: int, *, tail: bool
    ) -> None:
        self.key = key
        self.parent = parent
        self.tokens = tokens
        self.block = block
        self.tail = tail
        self.depth: int = parent.depth + 1 if parent is not None else -1  # blocks before it
        self.pins = 0
        self.restored: Tier | None = None  # whence it came back, until it is first used
        self.transient = False  # whether nobody is expected to need it again
        self.used = 0  # the tree's tick at the last pin or release
        self.clock = 0.0  # the tree's clock then
        self.priority = 0.0  # clock + worth; the lowest goes first
        self.children: dict[int, list[Node]] = {}  # first token -> nodes that begin with it
        if parent is not None:
            self.root = parent.root


# (priority, used, serial, node): valid while the node is an idle leaf and has both figures
_Leaf = tuple[float, int, int, Node]


class Root(Node):
    """The root of one namespace: how many blocks it has, and which of them may go."""

    __slots__ = ("leaves", "n_blocks", "namespace")

    def __init__(self, namespace: bytes) -> None:
        self.namespace = namespace
        super().__init__(b"", None, (), -1, tail=False)
        self.root = self
        self.n_blocks = 0
        self.leaves: list[_Leaf] = []  # heap, lazily valid


class PrefixTree:
    """Nodes by key, one root per namespace, and an eviction order over the idle leaves.

    ``n_blocks`` is what the namespaces share; with 0 there are no shares, and all give way alike.
    ``worth_s`` says in how many seconds a node's block could be had again; it is asked when the
    node is used, and by ``reprice``.
    """

    def __init__(
        self, n_blocks: int = 0, *, worth_s: Callable[[Node], float] = lambda _: 1.0
    ) -> None:
        self.n_idle = 0
        self.evicted_blocks = 0
        self._n_blocks = n_blocks
        self._worth_s = worth_s
        self._nodes: dict[bytes, Node] = {}
        self._roots: dict[bytes, Root] = {}
        self._clock = 0.0
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

    def root(self, namespace: bytes) -> Root:
        """The root of ``namespace``, made on first use; it occupies no block and is never idle."""
        root = self._roots.get(namespace)
        if root is None:
            root = self._roots[namespace] = Root(namespace)
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
            length = common_length(child.tokens, tokens)
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
        node.root.n_blocks += 1
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

    def reprice(self, node: Node) -> None:
        """Ask again what ``node`` is worth, as of its last use: another tier has it now, say."""
        node.priority = node.clock + self._worth_s(node)
        if node.pins == 0 and not node.children:
            self._push(node)

    def evict(
        self, count: int, *, for_namespace: bytes | None = None, spare_others: bool = False
    ) -> list[int]:
        """Remove up to ``count`` idle leaves; returns their blocks.

        First go those of namespaces that have more than their share, which is the same for every
        namespace that has blocks or is ``for_namespace``; then those of ``for_namespace``; then the
        others' unless they are spared, because a request that was admitted must be able to run.
        Takes O(log n) a block, amortised, and O(namespaces) a call.
        """
        asking = None if for_namespace is None else self._roots.get(for_namespace)
        holders = sum(1 for root in self._roots.values() if root.n_blocks)
        if for_namespace is not None and (asking is None or not asking.n_blocks):
            holders += 1
        share = self._n_blocks // max(1, holders)
        above = [root for root in self._roots.values() if root.n_blocks > share]
        blocks = self._evict_from(above, count, down_to=share)
        if asking is not None and len(blocks) < count:
            blocks += self._evict_from([asking], count - len(blocks), down_to=0)
        if len(blocks) < count and not spare_others:
            blocks += self._evict_from(self._roots.values(), count - len(blocks), down_to=0)
        return blocks

    def below(self, top: Node) -> list[Node]:
        """``top`` and all nodes below it, each after its parent."""
        order = [top]
        for node in order:  # grows while it is gone through
            order += [child for children in node.children.values() for child in children]
        return order

    def remove_below(self, top: Node) -> list[int]:
        """Remove what is idle of ``top`` and all below it; a root itself stays. The blocks."""
        return [
            self._remove(node)
            for node in reversed(self.below(top))
            if node.parent is not None and not node.pins
        ]

    def clear(self, chosen: Callable[[bytes], bool]) -> list[int]:
        """Remove what is idle in the namespaces that are ``chosen``; the blocks."""
        roots = [root for namespace, root in self._roots.items() if chosen(namespace)]
        return [block for root in roots for block in self.remove_below(root)]

    def empty_below(self, namespace: bytes) -> bool:
        """Whether nothing at all is kept for ``namespace``."""
        root = self._roots.get(namespace)
        return root is None or not root.children

    def check(self) -> None:
        """Raise ``RuntimeError`` unless the counts per namespace and the heaps are right."""
        counts: dict[Root, int] = {}
        for node in self._nodes.values():
            counts[node.root] = counts.get(node.root, 0) + 1
        for root in self._roots.values():
            if root.n_blocks != counts.get(root, 0):
                raise RuntimeError(
                    f"a namespace counts {root.n_blocks} blocks, has {counts.get(root, 0)}"
                )
        listed = {
            entry[-1]
            for root in self._roots.values()
            for entry in root.leaves
            if self._valid(entry)
        }
        leaves = {node for node in self._nodes.values() if not node.pins and not node.children}
        if listed != leaves:
            raise RuntimeError(f"{len(listed)} idle leaves are listed, there are {len(leaves)}")

    def _evict_from(self, roots: Iterable[Root], count: int, *, down_to: int) -> list[int]:
        """Remove up to ``count`` idle leaves below ``roots``, the lowest priority first, and from
        each only while it has more than ``down_to`` blocks."""
        tops: list[tuple[_Leaf, Root]] = []
        for root in roots:
            self._push_top(tops, root)
        heapq.heapify(tops)
        blocks: list[int] = []
        while len(blocks) < count and tops:
            (priority, _, _, node), root = heapq.heappop(tops)
            if root.n_blocks <= down_to:
                continue
            heapq.heappop(root.leaves)
            self._clock = max(self._clock, priority)
            self._gone[node.key] = None
            if len(self._gone) > _REMEMBERED:
                self._gone.popitem(last=False)
            self.evicted_blocks += 1
            blocks.append(self._remove(node))
            self._push_top(tops, root)
        return blocks

    def _push_top(self, tops: list[tuple[_Leaf, Root]], root: Root) -> None:
        """Push the next idle leaf of ``root``, if there is one; drops entries that are stale."""
        while root.leaves and not self._valid(root.leaves[0]):
            heapq.heappop(root.leaves)
        if root.leaves:
            heapq.heappush(tops, (root.leaves[0], root))

    def _valid(self, entry: _Leaf) -> bool:
        priority, used, _, node = entry
        return (
            node.priority == priority
            and node.used == used
            and not node.pins
            and not node.children
            and self._nodes.get(node.key) is node
        )

    def _remove(self, node: Node) -> int:
        parent = _parent(node)
        siblings = parent.children[node.tokens[0]]
        siblings.remove(node)
        if not siblings:
            del parent.children[node.tokens[0]]
        del self._nodes[node.key]
        self.n_idle -= 1
        node.root.n_blocks -= 1
        if parent.parent is not None and parent.pins == 0 and not parent.children:
            self._push(parent)
        return node.block

    def _touch(self, node: Node) -> None:
        node.used = self._tick
        node.clock = self._clock
        node.priority = self._clock + self._worth_s(node)
        if not node.children:
            self._push(node)

    def _push(self, node: Node) -> None:
        root = node.root
        if len(root.leaves) > 4 * root.n_blocks + 64:  # mostly stale entries: start over
            valid = {entry[-1]: entry for entry in root.leaves if self._valid(entry)}
            root.leaves = list(valid.values())
            heapq.heapify(root.leaves)
        self._serial += 1
        heapq.heappush(root.leaves, (node.priority, node.used, self._serial, node))


def _parent(node: Node) -> Node:
    if node.parent is None:
        raise RuntimeError("walked above the root of the prefix tree: a lease lost its place")
    return node.parent


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common beginning of ``a`` and ``b``."""
    length = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        length += 1
    return length
