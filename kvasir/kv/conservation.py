"""The proof that no block is lost, owned twice or held by nobody; run when the engine is idle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from kvasir.kv.tree import Node, PrefixTree


def check_places(places: Iterable[int], n_blocks: int) -> None:
    """Raise ``RuntimeError`` unless ``places`` names each block of the pool exactly once."""
    counts = Counter(places)
    twice = sorted(block for block, count in counts.items() if count > 1)
    lost = sorted(set(range(n_blocks)) - counts.keys())
    if twice or lost or len(counts) != n_blocks:
        raise RuntimeError(f"blocks in two places: {twice[:8]}; in none: {lost[:8]} of {n_blocks}")


def check_tree(tree: PrefixTree, holders: Iterable[Node]) -> None:
    """Raise ``RuntimeError`` unless every pin has a holder, every node a parent in the tree, and
    idle ones are counted. ``holders`` names the deepest node of each hold."""
    pins: Counter[bytes] = Counter()
    for holder in holders:
        node: Node | None = holder
        while node is not None and node.parent is not None:
            pins[node.key] += 1
            node = node.parent
    for node in tree:
        if node.pins != pins[node.key]:
            raise RuntimeError(
                f"block {node.block} counts {node.pins} holders, has {pins[node.key]}"
            )
        above = node.parent
        if above is None or (above.parent is not None and tree.get(above.key) is None):
            raise RuntimeError(f"block {node.block} is in the tree and its parent is not")
    idle = sum(1 for node in tree if node.pins == 0)
    if idle != tree.n_idle:
        raise RuntimeError(f"{idle} blocks are idle, {tree.n_idle} are counted")
