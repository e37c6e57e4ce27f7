"""What is stored, put together for the owner of the home: every record, and sums of them.

Used by the server's routes and, where none runs, by the command on the folder itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from kvasir.core.realm import PART_BYTES
from kvasir.core.tiers import STORED_TIERS, KeptRecord, TierStatus
from kvasir.service.replies import CacheReply, KeptReply, TenantReply, TierReply

K = TypeVar("K")
TAG_DIGITS = 2 * PART_BYTES


def inventory(
    records: Sequence[KeptRecord],
    tiers: Sequence[TierStatus],
    tenants: Mapping[bytes, str],
    *,
    compared: bool = True,
) -> CacheReply:
    """``records`` with their sums by tier and by tenant, last used first.

    ``tiers`` says what is known of each tier beside its records, ``tenants`` the names behind the
    tags, ``compared`` whether the records were compared with what is loaded.
    """
    known = {status.tier: status for status in tiers}
    by_tier = _grouped(records, lambda record: record.tier)
    here = [tier for tier in STORED_TIERS if tier in known or tier in by_tier]
    sums = []
    for tier in here:
        status = known.get(tier)
        sums.append(
            TierReply(
                tier=tier.value,
                **_sums(by_tier.get(tier, ())),
                cap_bytes=status.cap_bytes if status else None,
                failure=(status.failure or None) if status else None,
            )
        )
    shares = _grouped(records, lambda record: (record.tier, tenant_of(record, tenants)))
    newest_first = sorted(records, key=lambda record: (-record.used_s, record.name))
    return CacheReply(
        records=[kept_reply(record, tenants, compared=compared) for record in newest_first],
        tiers=sums,
        tenants=[
            TenantReply(tier=tier.value, tenant=tenant, **_sums(its))
            for (tier, tenant), its in sorted(shares.items())
        ],
    )


def kept_reply(
    record: KeptRecord, tenants: Mapping[bytes, str], *, compared: bool = True
) -> KeptReply:
    """``record`` as it is told."""
    return KeptReply(
        name=record.name,
        tier=record.tier.value,
        tenant=tenant_of(record, tenants),
        tokens=record.tokens,
        start=record.start if record.start >= 0 else None,
        bytes=record.n_bytes,
        used_s=record.used_s,
        compute_s=record.compute_s or None,
        format_version=record.format_version,
        differs_in=list(record.differs_in) if compared else None,
    )


def tenant_of(record: KeptRecord, tenants: Mapping[bytes, str]) -> str:
    """The name of whose ``record`` is, else the tag in hex."""
    return tenants.get(record.namespace_tag, record.namespace_tag.hex())


def tag_of(tenant: str, tenants: Mapping[bytes, str]) -> bytes | None:
    """The tag of the tenant with that name, or with that tag in hex; None where it is neither."""
    for tag, name in tenants.items():
        if name == tenant:
            return tag
    digits = frozenset("0123456789abcdef")
    return bytes.fromhex(tenant) if len(tenant) == TAG_DIGITS and digits >= set(tenant) else None


def _grouped(
    records: Iterable[KeptRecord], key: Callable[[KeptRecord], K]
) -> dict[K, list[KeptRecord]]:
    groups: dict[K, list[KeptRecord]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return groups


def _sums(records: Sequence[KeptRecord]) -> dict[str, int]:
    return {
        "records": len(records),
        "tokens": sum(record.tokens for record in records),
        "bytes": sum(record.n_bytes for record in records),
    }
