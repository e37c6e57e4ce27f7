"""What the cache and a mover say to each other about blocks that travel between tiers.

The cache decides what is moved, on the engine's thread; a mover carries it out, and says what came
of it when it is asked. Until a move has ended its blocks belong to it: a mover reads the blocks of
a ``Save`` and writes those of a ``Load``, and nobody else changes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from kvasir.core.tiers import Tier, TierStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """What a record says of itself: neighbouring blocks of one sequence.

    The blocks are full, or there is one that is not, a tail. ``n_bytes`` is what the record takes
    in its tier.
    """

    name: str
    namespace_tag: bytes  # whose it is; the namespace itself is a secret
    parent: bytes  # key of the block before the first; empty at the beginning of a text
    keys: tuple[bytes, ...]
    tokens: tuple[int, ...]
    start: int  # position of the first token
    block_tokens: int
    n_bytes: int
    compute_s: float  # predicted seconds in which it could be computed again
    used_s: float  # Unix time of the last use
    format_version: int = 0  # of a record that was found; 0 for one that is still to be written

    @property
    def is_tail(self) -> bool:
        """Whether it is one unfilled block."""
        return len(self.tokens) < len(self.keys) * self.block_tokens

    def tokens_of(self, index: int) -> tuple[int, ...]:
        """Token ids of block ``index``."""
        return self.tokens[index * self.block_tokens : (index + 1) * self.block_tokens]

    def parent_of(self, index: int) -> bytes:
        """Key of the block before block ``index``; empty at the beginning of a text."""
        return self.keys[index - 1] if index else self.parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Read blocks ``first`` … ``first + len(blocks) - 1`` of a record into ``blocks``. Where there
    are none: ``count`` of them into the memory ``into``, plane after plane; and where there is none
    either, read and verify the whole record and keep nothing of it."""

    id: int
    tier: Tier
    record: str
    first: int
    blocks: tuple[int, ...]
    n_bytes: int
    into: memoryview | None = None
    count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Save:
    """Keep ``blocks`` of the pool as the record that ``extent`` describes (its name is empty: the
    tier gives one); or, where there are none, ``planes``, one after another."""

    id: int
    tier: Tier
    extent: Extent
    blocks: tuple[int, ...]
    planes: memoryview | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """A move has ended. ``record`` is the name under which a ``Save`` is kept.

    ``problem`` says why it came to nothing; then the blocks of a ``Load`` hold nothing of use.
    ``damaged`` says that its record could not be read or did not verify, and is gone.
    """

    id: int
    record: str = ""
    problem: str = ""
    damaged: bool = False


class Mover(Protocol):
    """Carries blocks between the pool and the stored tiers. Its methods return at once and are
    called by one thread, that of the engine."""

    def load(self, load: Load) -> None:
        """Queue ``load``; loads begin in the order in which they are queued, before saves."""
        ...

    def withdraw(self, load_id: int) -> bool:
        """Take back a load that has not begun; False where it has."""
        ...

    def save(self, save: Save) -> None:
        """Queue ``save``."""
        ...

    def drop(self, tier: Tier, record: str) -> None:
        """Queue the removal of ``record``, before what is queued to be saved later."""
        ...

    def use(self, tier: Tier, record: str) -> None:
        """Remember that ``record`` was of use just now."""
        ...

    def take_moved(self) -> Sequence[Moved]:
        """What has ended since the last call."""
        ...

    def load_s(self, n_bytes: int, tier: Tier) -> float:
        """Predicted seconds until a load of ``n_bytes`` that is queued now would have ended.
        Negative where so many bytes of what is queued are not going to be loaded."""
        ...

    def status(self) -> Sequence[TierStatus]:
        """How each stored tier is doing, as far as the mover knows: ``used_bytes`` and ``records``
        are those of the cache."""
        ...


class NoMover:
    """The mover where the device is the only tier."""

    def load(self, load: Load) -> None:
        raise RuntimeError(f"nothing is stored in tier {load.tier}")

    def withdraw(self, load_id: int) -> bool:
        raise RuntimeError(f"there is no load {load_id}")

    def save(self, save: Save) -> None:
        raise RuntimeError(f"there is no tier {save.tier} to save in")

    def drop(self, tier: Tier, record: str) -> None:
        raise RuntimeError(f"there is no record {record[:16]} in tier {tier}")

    def use(self, tier: Tier, record: str) -> None:
        raise RuntimeError(f"there is no record {record[:16]} in tier {tier}")

    def take_moved(self) -> Sequence[Moved]:
        return ()

    def load_s(self, n_bytes: int, tier: Tier) -> float:
        raise RuntimeError(f"{n_bytes} bytes cannot come from tier {tier}: it is not there")

    def status(self) -> Sequence[TierStatus]:
        return ()
