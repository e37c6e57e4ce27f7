"""Stored KV in words and columns, for people."""

from __future__ import annotations

from kvasir.cli import show
from kvasir.cli.columns import columns, moment
from kvasir.cli.stored import Verified
from kvasir.service.replies import CacheReply, KeptReply

_NOTHING = "nothing is stored"


def records_text(reply: CacheReply) -> str:
    """A line for each record."""
    if not reply.records:
        return _NOTHING
    head = ("tier", "tenant", "tokens", "from", "size", "last used", "record", "")
    return columns([head, *(_row(record) for record in reply.records)], right={2, 3, 4})


def sizes_text(reply: CacheReply) -> str:
    """A line for each tier and one for each tenant in it."""
    if not reply.tenants and not reply.tiers:
        return _NOTHING
    rows: list[tuple[str, ...]] = [("tier", "tenant", "records", "tokens", "size", "")]
    for tier in reply.tiers:
        note = "" if tier.cap_bytes is None else f"of {show.size(tier.cap_bytes)}"
        if tier.failure:
            note += f"; {tier.failure}"
        sums = (f"{tier.records:,}", f"{tier.tokens:,}", show.size(tier.bytes))
        rows.append((tier.tier, "(all)", *sums, note))
    for share in reply.tenants:
        sums = (f"{share.records:,}", f"{share.tokens:,}", show.size(share.bytes))
        rows.append((share.tier, share.tenant, *sums, ""))
    return columns(rows, right={2, 3, 4})


def damage_text(verified: Verified) -> str:
    """What was read and what was wrong with it."""
    lines = [f"{show.count(verified.records, 'record')} read again, {show.size(verified.bytes)}"]
    if verified.unreadable:
        lines.append(f"{show.count(verified.unreadable, 'file')} gone: no whole records")
    if verified.damaged:
        damaged = show.count(len(verified.damaged), "record")
        lines.append(f"{damaged} damaged and gone; what does not verify is never used")
        lines.append(columns([_row(record) for record in verified.damaged], right={2, 3, 4}))
        lines.append("a disk may be failing: look at the system's log")
    elif not verified.unreadable:
        lines.append("all are as they were written")
    return "\n".join(lines)


def _row(record: KeptReply) -> tuple[str, ...]:
    start = "" if record.start is None else f"{record.start:,}"
    notes = [f"format {record.format_version}"] if record.format_version == 1 else []
    if record.differs_in:
        notes.append(f"of no use now: other {' and '.join(record.differs_in)}")
    return (
        record.tier,
        record.tenant,
        f"{record.tokens:,}",
        start,
        show.size(record.bytes),
        moment(record.used_s),
        record.name[:12],
        ", ".join(notes),
    )
