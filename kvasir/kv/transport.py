"""KV on its way out of the stored tiers and into them, beside the pool: for export and import.

The bytes travel with the mover, as all others do. Invariant: what is taken in continues what is
stored, under keys that were derived here from its tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kvasir.core.errors import NotStored, ParcelRefused
from kvasir.core.tiers import Tier
from kvasir.kv.keys import NO_PARENT
from kvasir.kv.moves import Extent, Load, Moved
from kvasir.kv.restore import Piece
from kvasir.kv.saver import Saver
from kvasir.kv.stored import StoredTiers
from kvasir.kv.text import KeyedText
from kvasir.kv.tree import common_length

Ended = Callable[[str], None]  # is told the problem; empty where there is none
_NO_FURTHER = -1  # behind a text's last token, which is looked for too


@dataclass(frozen=True, slots=True)
class _Fetch:
    """A load into memory that is under way."""

    tier: Tier
    record: str
    ended: Ended


class Transport:
    """Reads pieces of texts and keeps such as come from elsewhere. Used by the engine's thread."""

    def __init__(self, stored: StoredTiers, saver: Saver) -> None:
        self._stored = stored
        self._saver = saver
        self._fetches: dict[int, _Fetch] = {}

    def pieces(self, text: KeyedText) -> list[Piece]:
        """Where all of ``text`` is stored; the last piece may go on beyond it. Raises ``NotStored``
        where something is not."""
        longer = [*text.tokens, _NO_FURTHER]
        found = self._stored.continuation(text.tag, longer, text.keys, 0, 0)
        stored = 0
        if found:
            last, size = found[-1], self._stored.geometry.block_tokens
            there = last.extent.tokens[last.first * size :]
            stored = last.start + common_length(there, text.tokens[last.start :])
        if stored < len(text.tokens):
            raise NotStored(
                f"Only {stored} of {len(text.tokens)} tokens are stored. Have the text read again, "
                "and export it once it is completed."
            )
        return found

    def fetch(self, piece: Piece, into: memoryview, ended: Ended) -> None:
        """Read and verify the blocks of ``piece`` into ``into`` [n_planes * plane bytes]."""
        load_id = self._stored.next_id()
        self._fetches[load_id] = _Fetch(piece.tier, piece.extent.name, ended)
        self._stored.mover.load(
            Load(
                id=load_id,
                tier=piece.tier,
                record=piece.extent.name,
                first=piece.first,
                blocks=(),
                n_bytes=piece.n_bytes,
                into=into,
                count=piece.count,
            )
        )

    def moved(self, moved: Moved) -> bool:
        """Take note that a fetch has ended; False where it was none of ours."""
        fetch = self._fetches.pop(moved.id, None)
        if fetch is None:
            return False
        if moved.damaged:
            self._stored.lost(fetch.tier, fetch.record, damaged=True)
        fetch.ended(moved.problem)
        return True

    def keep(self, text: KeyedText, start: int, planes: memoryview, ended: Ended) -> None:
        """Store ``planes``, those of ``text`` from position ``start`` on, in the most lasting tier.
        Raises ``NotStored`` where there is none, and ``ParcelRefused`` where what comes before is
        not stored."""
        shelf = self._stored.lasting
        if shelf is None:
            raise NotStored(
                "There is no stored tier to import into. Start with --disk-gib above 0."
            )
        first = start // self._stored.geometry.block_tokens
        keys = text.all_keys[first:]
        parent = text.keys[first - 1] if first else NO_PARENT
        if parent != NO_PARENT and shelf.get(parent) is None:
            raise ParcelRefused(
                f"The piece begins at token {start}, and what comes before is not stored here. "
                "Import the pieces in their order, from the first one on."
            )
        if all(shelf.get(key) is not None for key in keys):
            ended("")
            return
        extent = Extent(
            name="",
            namespace_tag=text.tag,
            parent=parent,
            keys=keys,
            tokens=text.tokens[start:],
            start=start,
            block_tokens=self._stored.geometry.block_tokens,
            n_bytes=self._stored.record_bytes(len(keys), len(text.tokens) - start),
            compute_s=self._saver.compute_s(len(text.tokens) - start, start),
            used_s=self._stored.now_s(),
        )
        self._saver.keep(shelf, extent, planes, ended)
