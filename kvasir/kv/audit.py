"""A sample of the blocks that came back from a stored tier, to be computed again and compared.

Digests say that bytes are what was stored; only computing says that what was stored was right.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from kvasir.core.plans import Audit, as_runs
from kvasir.kv.blocks import DeviceBlocks
from kvasir.kv.tree import Node, PrefixTree

_MOST_WAITING = 64


@dataclass(frozen=True, slots=True)
class Finding:
    """A block that was compared, and whether it was right."""

    node: Node
    right: bool


class Auditor:
    """Chooses restored blocks, and has one after another compared while the engine is idle."""

    def __init__(self, device: DeviceBlocks, one_in: int, seed: int = 0) -> None:
        """``one_in`` 0 chooses none."""
        self.audited_blocks = 0
        self.failures = 0
        self._device = device
        self._one_in = one_in
        self._random = random.Random(seed)  # noqa: S311 - a sample, not a secret
        self._waiting: deque[Node] = deque(maxlen=_MOST_WAITING)

    def restored(self, node: Node) -> None:
        """A block has come back; it may be chosen. Tails are not: they are soon outgrown."""
        if self._one_in and not node.tail and self._random.randrange(self._one_in) == 0:
            self._waiting.append(node)

    def compare_one(self, compare: Callable[[Audit], bool]) -> Finding | None:
        """Have the next chosen block compared; None where there is none, or no block is free to
        compute it in."""
        node = self._next() if self._device.pool.n_free else None
        if node is None:
            return None
        scratch = self._device.pool.take(1)
        try:
            right = compare(_audit(node, scratch[0]))
        finally:
            self._device.give(scratch)
        self.audited_blocks += 1
        self.failures += not right
        return Finding(node, right)

    def _next(self) -> Node | None:
        tree: PrefixTree = self._device.tree
        while self._waiting:
            node = self._waiting.popleft()
            if tree.get(node.key) is node:
                return node
        return None


def _audit(node: Node, scratch: int) -> Audit:
    before: list[int] = []
    at = node.parent
    while at is not None and at.parent is not None:
        before.append(at.block)
        at = at.parent
    before.reverse()
    start = len(before) * len(node.tokens)
    return Audit(
        before=as_runs(before), start=start, tokens=node.tokens, block=node.block, scratch=scratch
    )
