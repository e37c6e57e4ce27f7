"""What of one stored tier must stay, because somebody holds texts: which records, which bytes.

A hold names the full blocks of a text and what follows them, its rest. Every record that has one of
these blocks is held, and of those that begin with the rest one: the tail that is exactly it where
there is one, else a block that goes on. What is not stored yet is *promised*: room is kept for it.

Invariant: a record is held exactly while such a reason is left, whatever was stored or held first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from kvasir.kv.keys import NO_PARENT
from kvasir.kv.moves import Extent
from kvasir.kv.shelf_index import BlockIndex, Place


@dataclass(frozen=True, slots=True)
class HeldText:
    """A text as an index knows it: the keys of its full blocks, and the ids behind them."""

    namespace_tag: bytes
    keys: tuple[bytes, ...]
    rest: tuple[int, ...]

    @property
    def place(self) -> Place:
        """Where the rest is."""
        return self.namespace_tag, self.keys[-1] if self.keys else NO_PARENT


@dataclass(slots=True)
class _Rest:
    """A held rest: how often, and in which record it is."""

    holds: int
    extent: Extent | None = None


class Held:
    """The holds on the records of one index."""

    def __init__(self, index: BlockIndex, bytes_of: Callable[[int], int]) -> None:
        """``bytes_of`` says what so many blocks take once they are stored."""
        self.bytes_by_tag: Counter[bytes] = Counter()  # of held records
        self._index = index
        self._bytes_of = bytes_of
        self._keys: dict[bytes, int] = {}  # held blocks -> how many texts hold them
        self._rests: dict[Place, dict[tuple[int, ...], _Rest]] = {}
        self._reasons: Counter[str] = Counter()  # by name of the record
        self._missing: Counter[bytes] = Counter()  # blocks by namespace tag
        self._missing_rests: Counter[bytes] = Counter()

    def __contains__(self, name: object) -> bool:
        """Whether the record of that name is held."""
        return name in self._reasons

    @property
    def n_bytes(self) -> int:
        """Bytes of all held records."""
        return self.bytes_by_tag.total()

    @property
    def promised_bytes(self) -> int:
        """What all that is held and not stored is expected to take."""
        if not self._missing and not self._missing_rests:
            return 0  # as after almost every step of the engine, which asks for it
        return sum(self.promised_to(tag) for tag in self._missing | self._missing_rests)

    def promised_to(self, tag: bytes) -> int:
        """What of it is the namespace's with that tag."""
        missing, rests = self._missing[tag], self._missing_rests[tag]
        n_bytes = self._bytes_of(missing) if missing else 0
        return n_bytes + (rests * self._bytes_of(1) if rests else 0)  # each is a record of its own

    def wants(self, extent: Extent) -> bool:
        """Whether a record like ``extent`` would be held, or could be."""
        if any(key in self._keys for key in extent.keys):
            return True
        for index in range(len(extent.keys)):
            rests = self._rests.get((extent.namespace_tag, extent.parent_of(index)))
            tokens = extent.tokens_of(index)
            if rests and any(tokens[: len(rest)] == rest for rest in rests):
                return True
        return False

    def holds(self, key: bytes) -> bool:
        """Whether the full block ``key`` is held."""
        return key in self._keys

    def hold(self, text: HeldText) -> None:
        """Count one hold more on ``text``."""
        for key in text.keys:
            self._keys[key] = self._keys.get(key, 0) + 1
            if self._keys[key] == 1:
                blocks = self._index.of(key)
                self._missing[text.namespace_tag] += not blocks
                for block in blocks:
                    self._more(block.extent)
        if text.rest:
            rests = self._rests.setdefault(text.place, {})
            if text.rest not in rests:
                rests[text.rest] = _Rest(0)
                self._missing_rests[text.namespace_tag] += 1
                self._find(text.place, text.rest)
            rests[text.rest].holds += 1

    def let_go(self, text: HeldText) -> None:
        """Count one hold less on ``text``, which is held."""
        for key in text.keys:
            self._keys[key] -= 1
            if not self._keys[key]:
                del self._keys[key]
                blocks = self._index.of(key)
                _less_by(self._missing, text.namespace_tag, not blocks)
                for block in blocks:
                    self._less(block.extent)
        if text.rest:
            rests = self._rests[text.place]
            rest = rests[text.rest]
            rest.holds -= 1
            if not rest.holds:
                self._lose(text.namespace_tag, rest)
                _less_by(self._missing_rests, text.namespace_tag, 1)
                del rests[text.rest]
                if not rests:
                    del self._rests[text.place]

    def added(self, extent: Extent) -> None:
        """A record is in the index since just now."""
        for key in extent.keys:
            if key in self._keys:
                self._more(extent)
                _less_by(self._missing, extent.namespace_tag, len(self._index.of(key)) == 1)
        self._find_all(extent)

    def removed(self, extent: Extent) -> None:
        """A record is in the index no more since just now."""
        for key in extent.keys:
            if key in self._keys:
                self._less(extent)
                self._missing[extent.namespace_tag] += key not in self._index
        self._find_all(extent)

    def is_right(self, kept: dict[str, Extent]) -> bool:
        """Whether exactly those of the ``kept`` records are held that have to be, and the sums
        agree; looks through all."""
        reasons: Counter[str] = Counter()
        for extent in kept.values():
            reasons[extent.name] += sum(key in self._keys for key in extent.keys)
        for place, rests in self._rests.items():
            for tokens in rests:
                found = self._index.covering(place, tokens)
                if found is not None:
                    reasons[found.name] += 1
        sums: Counter[bytes] = Counter()
        for name in +reasons:
            sums[kept[name].namespace_tag] += kept[name].n_bytes
        all_rests = [rest for rests in self._rests.values() for rest in rests.values()]
        missing = sum(key not in self._index for key in self._keys)
        return (
            +reasons == self._reasons
            and sums == +self.bytes_by_tag
            and self._missing.total() == missing
            and self._missing_rests.total() == sum(r.extent is None for r in all_rests)
        )

    # inside --------------------------------------------------------------------------------------

    def _find_all(self, extent: Extent) -> None:
        """Look again where the rests are that ``extent`` may have, or may have had."""
        for index in range(len(extent.keys)) if self._rests else ():
            place = (extent.namespace_tag, extent.parent_of(index))
            for tokens in self._rests.get(place, ()):
                self._find(place, tokens)

    def _find(self, place: Place, tokens: tuple[int, ...]) -> None:
        rest = self._rests[place][tokens]
        found = self._index.covering(place, tokens)
        if found is rest.extent:
            return
        self._lose(place[0], rest)
        if found is not None:
            rest.extent = found
            self._more(found)
            _less_by(self._missing_rests, place[0], 1)

    def _lose(self, tag: bytes, rest: _Rest) -> None:
        if rest.extent is not None:
            self._less(rest.extent)
            self._missing_rests[tag] += 1
            rest.extent = None

    def _more(self, extent: Extent) -> None:
        self._reasons[extent.name] += 1
        if self._reasons[extent.name] == 1:
            self.bytes_by_tag[extent.namespace_tag] += extent.n_bytes

    def _less(self, extent: Extent) -> None:
        self._reasons[extent.name] -= 1
        if not self._reasons[extent.name]:
            del self._reasons[extent.name]
            self.bytes_by_tag[extent.namespace_tag] -= extent.n_bytes


def _less_by(counts: Counter[bytes], tag: bytes, count: int) -> None:
    counts[tag] -= count
    if not counts[tag]:
        del counts[tag]
