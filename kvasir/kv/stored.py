"""The stored tiers as one: where a text goes on in them, and what is told of what is not there.

Records of another realm lie in the same tiers and count for their room. They are never found by a
text; they only explain why it was not found.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from kvasir.core.geometry import KvGeometry
from kvasir.core.tiers import KeptRecord, Tier, TierStatus
from kvasir.kv.keys import NO_PARENT
from kvasir.kv.moves import Extent, Mover
from kvasir.kv.restore import Piece
from kvasir.kv.shelf import Shelf
from kvasir.kv.shelf_index import Shelved

RUN_BYTES = 16 * 2**20  # of a record: large enough for a disk's sequential speed (ADR 5)
_FOREIGN_PARENT = b"another realm"  # no key: nothing continues from it
_REMEMBERED = 65_536  # damaged keys kept to say so


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A record as it was found in a tier, and the parts of the realm in which it differs."""

    tier: Tier
    extent: Extent
    differs_in: tuple[str, ...]


def run_blocks(geometry: KvGeometry) -> int:
    """How many blocks a record has at most."""
    return max(1, RUN_BYTES // geometry.block_bytes)


def bytes_of_blocks(
    geometry: KvGeometry, record_bytes: Callable[[int, int], int], n_blocks: int
) -> int:
    """What ``n_blocks`` neighbouring full blocks take, in as few records as they need."""
    size, longest = geometry.block_tokens, run_blocks(geometry)
    full, rest = divmod(n_blocks, longest)
    n_bytes = full * record_bytes(longest, longest * size) if full else 0
    return n_bytes + (record_bytes(rest, rest * size) if rest else 0)


class StoredTiers:
    """Shelves by tier, the fastest first, and the mover between them and the pool."""

    def __init__(
        self,
        shelves: Sequence[Shelf],
        mover: Mover,
        geometry: KvGeometry,
        *,
        record_bytes: Callable[[int, int], int],
        records: Iterable[StoredRecord] = (),
        now_s: Callable[[], float] = time.time,
    ) -> None:
        """``record_bytes(n_blocks, n_tokens)`` is what a record takes; ``records`` are there
        already, the least recently used first."""
        self.shelves = tuple(shelves)
        self.mover = mover
        self.geometry = geometry
        self.record_bytes = record_bytes
        self.now_s = now_s
        self.foreign: dict[tuple[Tier, str], StoredRecord] = {}
        self._by_tier = {shelf.tier: shelf for shelf in shelves}
        self._ids = itertools.count(1)
        self._damaged: OrderedDict[bytes, None] = OrderedDict()
        for record in records:
            self._find(record)

    def next_id(self) -> int:
        """A number for the next move."""
        return next(self._ids)

    def kept(self) -> list[KeptRecord]:
        """Every record, as the owner of the home sees it."""
        return [self._describe(shelf.tier, extent) for shelf in self.shelves for extent in shelf]

    def status(self, unsaved_blocks: Mapping[Tier, int]) -> tuple[TierStatus, ...]:
        """How each tier is doing."""
        return tuple(
            dataclasses.replace(
                status,
                used_bytes=self.shelf(status.tier).used_bytes,
                records=self.shelf(status.tier).n_records,
                tokens=self.shelf(status.tier).n_tokens,
                evicted_records=self.shelf(status.tier).evicted_records,
                unsaved_blocks=unsaved_blocks[status.tier],
                held_bytes=self.shelf(status.tier).held_bytes,
                promised_bytes=self.shelf(status.tier).promised_bytes,
                room_bytes=self.shelf(status.tier).room_bytes(),
            )
            for status in self.mover.status()
        )

    def bytes_of(self, n_tokens: int) -> int:
        """What a text of so many tokens takes, of which nothing is stored yet."""
        n_blocks, rest = divmod(n_tokens, self.geometry.block_tokens)
        n_bytes = bytes_of_blocks(self.geometry, self.record_bytes, n_blocks)
        return n_bytes + (self.record_bytes(1, rest) if rest else 0)

    @property
    def lasting(self) -> Shelf | None:
        """The most lasting tier's, where what is held stays; None where nothing is stored."""
        return self.shelves[-1] if self.shelves else None

    def failure(self, tier: Tier) -> str:
        """Why nothing is written to ``tier`` any more; empty while all is well."""
        return next((s.failure for s in self.mover.status() if s.tier is tier), "")

    def shelf(self, tier: Tier) -> Shelf:
        """That tier's."""
        return self._by_tier[tier]

    def get(self, key: bytes) -> tuple[Shelf, Shelved] | None:
        """The fastest tier that has the block or tail ``key``."""
        for shelf in self.shelves:
            found = shelf.get(key)
            if found is not None:
                return shelf, found
        return None

    def closest(
        self, namespace_tag: bytes, parent: bytes, tokens: Sequence[int]
    ) -> tuple[Shelf | None, Shelved | None, int]:
        """The block or tail below ``parent`` that shares the longest beginning with ``tokens``."""
        best: tuple[Shelf | None, Shelved | None, int] = (None, None, 0)
        for shelf in self.shelves:
            found, length = shelf.closest(namespace_tag, parent, tokens)
            if length > best[2]:
                best = (shelf, found, length)
        return best

    def continuation(
        self,
        namespace_tag: bytes,
        tokens: Sequence[int],
        keys: Sequence[bytes],
        depth: int,
        partial: int,
        coming: Callable[[bytes], bool] = lambda _: False,
    ) -> list[Piece]:
        """What of ``tokens`` is stored behind its first ``depth`` blocks, with ``keys``, as pieces:
        whole blocks, then one more of which a beginning is of use (more than ``partial`` tokens of
        it where no whole blocks come before). At most ``len - 1`` tokens, and nothing from the
        first block on that is ``coming`` anyway."""
        size = self.geometry.block_tokens
        pieces: list[Piece] = []
        index = depth
        blocks: list[tuple[Shelf, Shelved]] = []
        while index < len(keys) and (index + 1) * size < len(tokens) and not coming(keys[index]):
            found = self.get(keys[index])
            if found is None:
                break
            blocks.append(found)
            index += 1
        for offset, found in enumerate(blocks, start=depth):
            self._append(pieces, found, offset * size)
        if index < len(keys) and coming(keys[index]):
            return pieces
        parent = keys[index - 1] if index else NO_PARENT
        rest = tokens[index * size : min(len(tokens) - 1, (index + 1) * size)]
        shelf, last, length = self.closest(namespace_tag, parent, rest)
        least = 0 if pieces else partial
        if shelf is not None and last is not None and length > least and not coming(last.key):
            self._append(pieces, (shelf, last), index * size)
        return pieces

    def lost(self, tier: Tier, record: str, *, damaged: bool) -> None:
        """A record is gone."""
        extent = self.shelf(tier).remove(record)
        self.foreign.pop((tier, record), None)
        if extent is not None and damaged:
            for key in extent.keys:
                self._damaged[key] = None
            while len(self._damaged) > _REMEMBERED:
                self._damaged.popitem(last=False)

    def reload_s(self) -> float:
        """Seconds that reading one block takes, by itself."""
        if not self.shelves:
            return 0.0
        tier, n_bytes = self.shelves[-1].tier, self.geometry.block_bytes
        return self.mover.load_s(n_bytes, tier) - self.mover.load_s(0, tier)

    def used(self, tier: Tier, record: str) -> None:
        """A record has been of use."""
        self.shelf(tier).used(record, self.now_s())
        self.mover.use(tier, record)

    def drop(self, tier: Tier, record: str) -> None:
        """Remove a record that is not needed any more."""
        self.lost(tier, record, damaged=False)
        self.mover.drop(tier, record)

    def drop_behind(self, namespace_tag: bytes, key: bytes) -> None:
        """Remove every record that holds the block ``key`` or anything that continues it."""
        for shelf in self.shelves:
            for name in shelf.behind(namespace_tag, key):
                self.drop(shelf.tier, name)

    def has_nothing_of(self, namespace_tag: bytes) -> bool:
        """Whether nothing at all is stored for it in this realm."""
        foreign = sum(r.extent.namespace_tag == namespace_tag for r in self.foreign.values())
        return foreign == sum(shelf.n_records_of(namespace_tag) for shelf in self.shelves)

    def was_damaged(self, key: bytes) -> bool:
        """Whether the block ``key`` was stored, and what was stored did not verify."""
        return key in self._damaged

    def was_evicted(self, key: bytes) -> bool:
        """Whether the block ``key`` was stored and had to give way."""
        return any(shelf.was_evicted(key) for shelf in self.shelves)

    # inside --------------------------------------------------------------------------------------

    def _find(self, record: StoredRecord) -> None:
        extent = record.extent
        if record.differs_in:
            self.foreign[record.tier, extent.name] = record
            if not extent.parent:
                extent = dataclasses.replace(extent, parent=_FOREIGN_PARENT)
        if not self.shelf(record.tier).add(extent, reserved=False):
            self.drop(record.tier, extent.name)

    def _describe(self, tier: Tier, extent: Extent) -> KeptRecord:
        foreign = self.foreign.get((tier, extent.name))
        return KeptRecord(
            tier=tier,
            name=extent.name,
            namespace_tag=extent.namespace_tag,
            tokens=len(extent.tokens),
            start=extent.start,
            n_bytes=extent.n_bytes,
            used_s=extent.used_s,
            compute_s=extent.compute_s,
            format_version=extent.format_version,
            differs_in=foreign.differs_in if foreign is not None else (),
        )

    def _append(self, pieces: list[Piece], found: tuple[Shelf, Shelved], start: int) -> None:
        """Put a block behind ``pieces``: into the last of them where it is its neighbour."""
        shelf, block = found
        n_bytes = block.n_tokens * self.geometry.token_bytes
        last = pieces[-1] if pieces else None
        if (
            last is not None
            and last.tier == shelf.tier
            and last.extent is block.extent
            and last.first + last.count == block.index
        ):
            last.count += 1
            last.n_tokens += block.n_tokens
            last.n_bytes += n_bytes
            return
        pieces.append(
            Piece(
                tier=shelf.tier,
                extent=block.extent,
                first=block.index,
                count=1,
                start=start,
                n_tokens=block.n_tokens,
                n_bytes=n_bytes,
            )
        )
