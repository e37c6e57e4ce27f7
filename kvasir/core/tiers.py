"""The places where KV can be, from the fastest to the most lasting, and what is known of each."""

from __future__ import annotations

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
