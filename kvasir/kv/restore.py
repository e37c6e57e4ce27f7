"""A restore: stored blocks of one text on their way back into the pool, and who computes meanwhile.

Pieces are loaded from the back to the front. Somebody who computes from the front may take pieces
back that have not begun (``best_split``): both meet in the middle. Blocks join the prefix tree
from the front on, so what is loaded first waits for what is before it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum

from kvasir.core.tiers import Tier
from kvasir.kv.keys import KeyChain
from kvasir.kv.moves import Extent
from kvasir.kv.tree import Node

Seconds = Callable[[int, int], float]  # (tokens, position of the first) -> seconds to compute them


_WORTH = 0.8


class Stage(Enum):
    """How far a piece is."""

    QUEUED = "queued"
    LANDED = "landed"


@dataclass(slots=True, eq=False, kw_only=True)
class Piece:
    """Neighbouring blocks of one record: one load."""

    tier: Tier
    extent: Extent
    first: int  # index of the first block in the record
    count: int
    start: int  # position of the first token
    n_tokens: int
    n_bytes: int
    load_id: int = 0
    blocks: list[int] = field(default_factory=list)
    stage: Stage = Stage.QUEUED

    @property
    def keys(self) -> tuple[bytes, ...]:
        return self.extent.keys[self.first : self.first + self.count]

    @property
    def end(self) -> int:
        """Position behind the last token."""
        return self.start + self.n_tokens


class Restore:
    """The pieces that are still to join the tree, in the order of the text."""

    def __init__(self, anchor: Node, root: Node, chain: KeyChain, pieces: Iterable[Piece]) -> None:
        self.chain = chain
        self.met = False  # whether somebody computes towards it
        self.anchor = anchor  # pinned: the deepest node that the pieces continue
        self.root = root
        self.pieces = deque(pieces)

    @property
    def done(self) -> bool:
        """Whether nothing is on its way any more."""
        return not self.pieces

    @property
    def front(self) -> int:
        """Position of the first token that is not to be computed but loaded."""
        return self.pieces[0].start


def best_split(
    pieces: list[Piece],
    computed: int,
    compute_s: Seconds,
    load_s: Callable[[int, Tier], float],
) -> int:
    """The number of leading ``pieces`` with which the later of (computing them, loading the rest)
    ends first. None where that saves less than a fifth of the time of loading all of them: others
    may need the engine, and predictions err."""
    left = sum(piece.n_bytes for piece in pieces)
    loading_s = load_s(left, pieces[0].tier) if pieces else 0.0
    best, best_s = 0, loading_s
    for count, piece in enumerate(pieces, start=1):
        left -= piece.n_bytes
        rest_s = load_s(left, piece.tier) if left else 0.0
        ends_s = max(rest_s, compute_s(piece.end - computed, computed))
        if ends_s < best_s:
            best, best_s = count, ends_s
    return best if best_s < _WORTH * loading_s else 0
