"""Bodies of replies about contexts and files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from kvasir.catalog.values import ContextRow, SectionRow
from kvasir.contexts.library import Library
from kvasir.contexts.progress import Progress
from kvasir.contexts.promise import Forecast, receipt
from kvasir.service.replies import Reply


class UnreadReply(Reply):
    """Something that is not in the text, and why."""

    document: str | None
    page: int | None
    what: str
    reason: str


class ReceiptReply(Reply):
    """What is promised."""

    tier: Literal["disk", "memory", "text"] = Field(description="`text`: no KV is kept.")
    until: int | None = Field(description="Unix time; null where it does not end by itself.")
    survives_restart: bool
    survives_memory_pressure: bool
    bytes: int


class ReadingReply(Reply):
    """How far the reading is."""

    processed_tokens: int
    total_tokens: int
    tokens_per_second: float | None
    eta_seconds: float | None


class KvReply(Reply):
    """How the KV came about."""

    dtype: str
    exact: bool = Field(description="Whether it is in the model's own dtype.")


class ContextUsage(Reply):
    """What the context has cost so far."""

    computed_tokens: int
    reused_tokens: int
    requests: int
    read_seconds: float


class ContextReply(Reply):
    """A context."""

    id: str
    object: Literal["context"]
    status: str
    name: str | None
    model: str
    fingerprint: str
    parent: str | None
    origin: str
    file_ids: list[str]
    sectioned: bool = Field(description="Whether it is longer than the window.")
    sections: int
    chars: int
    tokens: int
    bytes: int
    kv: KvReply
    keep: Literal["kv", "text"]
    pinned: bool
    progress: ReadingReply
    receipt: ReceiptReply
    unread: list[UnreadReply]
    metadata: dict[str, str]
    created_at: int
    completed_at: int | None
    last_active_at: int
    expires_at: int | None
    usage: ContextUsage
    error: str | None


class ImplicitReply(Reply):
    """A text that is kept because it was asked about, without having been made a context."""

    object: Literal["implicit_context"]
    origin: Literal["implicit"]
    tokens: int
    bytes: int
    tier: str
    held: bool = Field(description="Whether a context holds it.")
    last_active_at: int
    preview: str = Field(description="How the text begins.")


class ContextListReply(Reply):
    """A page of contexts; `last_id` is the `after` of the next one."""

    object: Literal["list"]
    data: Sequence[ContextReply | ImplicitReply]
    has_more: bool
    first_id: str | None
    last_id: str | None


class DeletedReply(Reply):
    """Something that is gone."""

    id: str
    object: str
    deleted: Literal[True]


class ForecastReply(Reply):
    """What making a context would take; nothing was done."""

    object: Literal["context.forecast"]
    fingerprint: str
    existing: str | None = Field(description="The context that is this already.")
    sectioned: bool
    sections: int
    tokens: int
    bytes: int
    seconds: float = Field(description="Of reading, were nothing of it known.")
    sweep_seconds: float = Field(description="Of one question to all of it.")
    fits: bool = Field(description="Whether its KV has room beside what is promised already.")
    refusal: str | None = Field(description="Why it would be refused.")
    unread: list[UnreadReply]


class SectionReply(Reply):
    """A section of a context."""

    index: int
    document: int
    title_path: list[str]
    start: int
    end: int
    first_page: int
    last_page: int
    tokens: int
    read: bool
    summary: str | None


class SectionListReply(Reply):
    """All sections of a context, in their order."""

    object: Literal["list"]
    data: list[SectionReply]


def context_reply(library: Library, row: ContextRow, progress: Progress | None) -> ContextReply:
    """``row`` as clients see it; ``progress`` while it is being read."""
    promised = receipt(library, row)
    reading = progress.snapshot() if progress is not None else None
    return ContextReply(
        id=row.id,
        object="context",
        status=row.status,
        name=row.name,
        model=row.model,
        fingerprint=row.fingerprint,
        parent=row.parent,
        origin=row.origin,
        file_ids=list(row.file_ids),
        sectioned=row.sectioned,
        sections=row.n_sections,
        chars=row.n_chars,
        tokens=row.tokens,
        bytes=row.n_bytes,
        kv=KvReply(
            dtype=library.geometry.dtype, exact=library.geometry.dtype == library.card.dtype
        ),
        keep=row.keep,
        pinned=row.pinned,
        progress=_reading(row, reading),
        receipt=ReceiptReply(
            tier=promised.tier,
            until=promised.until,
            survives_restart=promised.survives_restart,
            survives_memory_pressure=promised.survives_memory_pressure,
            bytes=promised.n_bytes,
        ),
        unread=unread_replies(row.unread),
        metadata=dict(row.metadata),
        created_at=row.created_at,
        completed_at=row.completed_at,
        last_active_at=row.last_active_at,
        expires_at=None if row.pinned else row.expires_at,
        usage=ContextUsage(
            computed_tokens=row.computed_tokens,
            reused_tokens=row.reused_tokens,
            requests=row.requests,
            read_seconds=round(row.read_s, 3),
        ),
        error=row.error,
    )


def forecast_reply(
    fingerprint: str,
    existing: ContextRow | None,
    sectioned: bool,
    forecast: Forecast,
    refusal: str | None,
    unread: Sequence[Mapping[str, Any]],
) -> ForecastReply:
    """A dry run's result."""
    return ForecastReply(
        object="context.forecast",
        fingerprint=fingerprint,
        existing=existing.id if existing is not None else None,
        sectioned=sectioned,
        sections=forecast.n_parts,
        tokens=forecast.tokens,
        bytes=forecast.n_bytes,
        seconds=round(forecast.read_s, 3),
        sweep_seconds=round(forecast.sweep_s, 3),
        fits=refusal is None,
        refusal=refusal,
        unread=unread_replies(unread),
    )


def section_reply(row: SectionRow) -> SectionReply:
    """``row`` as clients see it."""
    return SectionReply(
        index=row.index,
        document=row.document,
        title_path=list(row.title_path),
        start=row.start,
        end=row.end,
        first_page=row.first_page,
        last_page=row.last_page,
        tokens=row.n_tokens,
        read=row.read,
        summary=row.summary,
    )


def unread_replies(unread: Sequence[Mapping[str, Any]]) -> list[UnreadReply]:
    """What was not read, for people."""
    return [
        UnreadReply(
            document=each.get("document"),
            page=each.get("page"),
            what=str(each["what"]),
            reason=str(each["reason"]),
        )
        for each in unread
    ]


def _reading(row: ContextRow, reading: Mapping[str, Any] | None) -> ReadingReply:
    if reading is None:
        done = row.tokens if row.status == "completed" else row.read_tokens
        return ReadingReply(
            processed_tokens=done,
            total_tokens=row.tokens,
            tokens_per_second=None,
            eta_seconds=None,
        )
    return ReadingReply(**reading)
