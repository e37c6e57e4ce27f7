"""What the catalog holds, as frozen values: tenants, keys, files, contexts, sections, events.

Times are whole seconds since the epoch. Whatever a value has beside numbers and text is JSON: it
comes back from the database equal to what went in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["tenant", "admin"]
FileStatus = Literal["uploaded", "processed", "error"]
ContextStatus = Literal["queued", "in_progress", "completed", "failed", "cancelled", "expired"]
Origin = Literal["explicit", "imported", "fork"]
Anchor = Literal["created_at", "last_active_at"]
Order = Literal["asc", "desc"]

ROLES: tuple[Role, ...] = ("tenant", "admin")
UNFINISHED: tuple[ContextStatus, ...] = ("queued", "in_progress")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """Somebody whose files, contexts and KV nobody else sees. Disabled: its keys admit nobody."""

    name: str
    created_at: int
    disabled_at: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """An API key, without the key: ``hint`` is its last four characters."""

    id: str  # "key_…"
    tenant: str
    role: Role
    label: str
    hint: str
    created_at: int
    expires_at: int | None = None
    revoked_at: int | None = None
    last_used_at: int | None = None  # to the minute


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRow:
    """An uploaded file; its bytes and its text lie elsewhere."""

    id: str  # "file-…"
    tenant: str
    filename: str
    purpose: str
    n_bytes: int
    sha256: str  # in hex
    media_type: str
    status: FileStatus
    status_details: str | None = None
    n_chars: int = 0
    n_pages: int = 0
    n_documents: int = 0
    unread: tuple[Mapping[str, Any], ...] = ()
    created_at: int
    expires_at: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextRow:
    """A text that was read, or is to be; its KV lies elsewhere."""

    id: str  # "ctx_…"
    tenant: str
    name: str | None = None  # unique among the tenant's
    model: str
    fingerprint: str  # the same for identical content and model
    status: ContextStatus
    parent: str | None = None  # of a fork
    origin: Origin
    definition: Mapping[str, Any]
    file_ids: tuple[str, ...] = ()
    sectioned: bool = False
    keep: Literal["kv", "text"] = "kv"
    pinned: bool = False
    n_chars: int = 0
    tokens: int = 0
    read_tokens: int = 0
    n_sections: int = 0
    n_bytes: int = 0
    unread: tuple[Mapping[str, Any], ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    expires_anchor: Anchor | None = None
    expires_after_s: int | None = None
    expires_at: int | None = None
    created_at: int
    last_active_at: int
    completed_at: int | None = None
    error: str | None = None
    computed_tokens: int = 0
    reused_tokens: int = 0
    requests: int = 0
    read_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SectionRow:
    """A part of a context. ``start`` and ``end`` are characters of document number ``document``,
    pages are indices."""

    index: int
    document: int
    title_path: tuple[str, ...] = ()
    start: int
    end: int
    first_page: int = 0
    last_page: int = 0
    n_tokens: int = 0
    read: bool = False
    summary: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRow:
    """Something that happened to a context; ``seq`` grows from 1 and never comes twice."""

    seq: int
    kind: str
    data: Mapping[str, Any]
    created_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What is known of an idempotency key: it is ``new``, or the ``same`` request had it (with the
    object that came of it, None while that is not finished), or another one (``conflict``)."""

    state: Literal["new", "same", "conflict"]
    object_id: str | None = None
