"""The places where KV can be, from the fastest to the most lasting, and what is known of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Tier(StrEnum):
    """Where a block's bytes are."""

    DEVICE = "device"  # the pool that attention reads
    HOST = "host"  # memory beside a device that has its own
    DISK = "disk"


STORED_TIERS = (Tier.HOST, Tier.DISK)  # the faster first


@dataclass(frozen=True, slots=True, kw_only=True)
class TierStatus:
    """A snapshot of one stored tier. What is counted only grows."""

    tier: Tier
    cap_bytes: int
    used_bytes: int
    records: int
    tokens: int
    saved_bytes: int = 0
    loaded_bytes: int = 0
    evicted_records: int = 0
    damaged_records: int = 0
    unsaved_blocks: int = 0  # that were not saved, for want of room or time
    held_bytes: int = 0  # of ``used_bytes``, what stays because it is held
    promised_bytes: int = 0  # expected of what is held and not stored yet
    room_bytes: int = 0  # that could still be held if nobody's share stood against it
    read_bytes_per_s: float = 0.0  # as measured
    write_bytes_per_s: float = 0.0
    failure: str = ""  # why nothing is written any more


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptRecord:
    """One record of a stored tier, as the owner of the home sees it."""

    tier: Tier
    name: str
    namespace_tag: bytes
    tokens: int
    start: int  # position of the first token; -1 where an old record does not say
    n_bytes: int
    used_s: float  # Unix time of the last use
    compute_s: float  # predicted seconds in which it could be computed again; 0 if unknown
    format_version: int
    differs_in: tuple[str, ...]  # parts of the realm that are others than now: it is not used


@dataclass(frozen=True, slots=True, kw_only=True)
class Residence:
    """Where a text is: from its beginning, without a gap, how many tokens are on the device and in
    each stored tier.

    What is stored on the disk has been flushed, the file and its name: a power cut does not take
    it. What is only being written is not counted.
    """

    n_tokens: int  # of the text
    device_tokens: int
    stored: Mapping[Tier, int]  # tokens
    stored_bytes: Mapping[Tier, int]  # of the records that have these tokens, which others may use
    saving: bool  # whether something of it is still on its way to the most lasting tier
    held: bool  # whether somebody holds all of its full blocks
    failure: str = ""  # why nothing is written any more to the most lasting tier

    @property
    def durable(self) -> bool:
        """Whether all of it survives a power cut. False where the disk has failed, because then
        nobody knows of what was written last."""
        return not self.failure and self.stored.get(Tier.DISK, 0) == self.n_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptText:
    """One of the longest texts that are stored of a namespace: nothing stored continues it."""

    id: str  # the same for the same text of the namespace under the same model
    tier: Tier  # the most lasting one that has it whole
    n_tokens: int
    first_ids: tuple[int, ...]  # up to 64
    n_bytes: int  # of the records that no other text shares
    used_s: float  # Unix time of the last use
    held: bool  # whether its last record is held
