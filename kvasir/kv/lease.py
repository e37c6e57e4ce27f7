"""A sequence's hold on KV, and what of a prompt was found in the pool."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from kvasir.core.events import Miss
from kvasir.core.plans import Run, as_runs
from kvasir.core.tiers import Tier
from kvasir.kv.keys import KeyChain
from kvasir.kv.restore import Restore
from kvasir.kv.tree import Node


@dataclass(frozen=True, slots=True)
class Match:
    """What of a prompt is in the pool: whole blocks, then the beginning of one more."""

    n_blocks: int
    n_tokens: int  # whole blocks and the partial one together
    partial: Node | None
    miss: Miss | None  # why not more was found, where something is known of it
    kept_token: int | None = None  # what the closest text has where the prompt begins to differ


class Lease:
    """One sequence's hold on KV. Made by ``KvCache.admit``; the cache alone changes it."""

    __slots__ = (
        "blocks",
        "chain",
        "copied_from",
        "dirty_from",
        "keys",
        "n_sealed",
        "n_wanted",
        "namespace",
        "node",
        "restore",
        "reused_by_tier",
        "root",
        "transient",
    )

    def __init__(self, namespace: bytes, chain: KeyChain, root: Node, keys: list[bytes]) -> None:
        self.namespace = namespace
        self.chain = chain
        self.root = root
        self.keys = keys  # of the full blocks known so far, matched or not
        self.node = root  # the deepest node of the tree that this lease pins
        self.n_sealed = 0
        self.n_wanted = 0  # of the sealed blocks, those that are in, or on the way to, other tiers
        self.blocks: list[int] = []
        self.dirty_from = 0  # the runner's copy of the table is right up to here
        self.copied_from: Node | None = None  # pinned until the copy has been made
        self.restore: Restore | None = None  # which this lease computes towards
        self.reused_by_tier: Counter[Tier] = Counter()  # tokens
        self.transient = False  # whether what it computes is not to be stored

    def take_changes(self) -> tuple[int, tuple[Run, ...]]:
        """(entries to keep, runs to append): the table's changes since the last call."""
        keep, self.dirty_from = self.dirty_from, len(self.blocks)
        return keep, as_runs(self.blocks[keep:])


def chain_of(node: Node) -> list[Node]:
    """The nodes from below the root to ``node``, in order."""
    chain: list[Node] = []
    while node.parent is not None:
        chain.append(node)
        node = node.parent
    chain.reverse()
    return chain


def taken_from(node: Node) -> Tier:
    """Where the block was before this use of it; later ones find it on the device."""
    tier, node.restored = node.restored or Tier.DEVICE, None
    return tier


def kept_token(node: Node, closest: Node | None, length: int) -> int | None:
    """What the closest text below ``node`` has behind the ``length`` tokens that it shares."""
    if closest is not None:
        return closest.tokens[length] if length < len(closest.tokens) else None
    return next(iter(node.children), None)
