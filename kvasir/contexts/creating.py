"""Making contexts: the same content on the same model is one context of a tenant; a fork is another
that begins with the same text.

Invariants: a row is there only after the definition behind it is durable, and it has its parts from
the beginning; reading them is somebody else's work (``reading``). Whoever creates the same content
at the same time as another gets the same context, and of several that there is room for one of, one
is promised it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from kvasir.catalog.values import UNFINISHED, ContextRow
from kvasir.contexts.asking import realm_name
from kvasir.contexts.definition import Definition
from kvasir.contexts.library import Library, new_id
from kvasir.contexts.outline import Outline, outline
from kvasir.contexts.promise import Forecast, check_room, forecast
from kvasir.contexts.store import StoreBroken
from kvasir.core.errors import CatalogUnavailable, NameTaken

Anchor = Literal["created_at", "last_active_at"]
NO_METADATA: Mapping[str, str] = MappingProxyType({})
STOPPED = ("cancelled", "failed", "expired")  # what creating it again goes on with
DEFAULT_EXPIRY_S = 7 * 24 * 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Expiry:
    """When a context ends: so many seconds after it was made or last used."""

    anchor: Anchor = "last_active_at"
    after_s: int = DEFAULT_EXPIRY_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A context that somebody asks for."""

    tenant: str
    definition: Definition
    name: str | None = None
    keep: Literal["kv", "text"] = "kv"
    pinned: bool = False
    expiry: Expiry | None = None  # None: a new one's is that of ``Expiry()``, another's stays
    summaries: bool = True  # of sections, made by the model
    metadata: Mapping[str, str] = field(default_factory=lambda: NO_METADATA)
    file_ids: tuple[str, ...] = ()
    unread: tuple[Mapping[str, Any], ...] = ()  # of its files, beside what documents say themselves
    parent: str | None = None
    origin: Literal["explicit", "fork", "imported"] = "explicit"


@dataclass(frozen=True, slots=True)
class Plan:
    """What would come of a wish: its parts, what they take, and the context that is it already."""

    fingerprint: str
    outline: Outline
    forecast: Forecast
    existing: ContextRow | None


def plan(library: Library, wanted: Wanted) -> Plan:
    """What ``wanted`` would take; nothing is done. Raises ``RequestError``."""
    fingerprint = wanted.definition.fingerprint(library.card.realm)
    parts = outline(library.codec, wanted.definition, library.card.window)
    existing = library.catalog.contexts.by_fingerprint(wanted.tenant, fingerprint)
    return Plan(fingerprint, parts, forecast(library, parts), existing)


def create(library: Library, wanted: Wanted) -> tuple[ContextRow, bool]:
    """The context that ``wanted`` describes, and whether it has to be read: it is new, or was not
    read to its end.

    Raises ``NoRoom`` where its KV could not be kept as promised, ``NameTaken``, ``RequestError``.
    """
    planned = plan(library, wanted)  # may take long, so it has no turn
    contexts = library.catalog.contexts
    with library.turn:
        existing = contexts.by_fingerprint(wanted.tenant, planned.fingerprint)
        _check_name(library, wanted, existing)
        if existing is not None:
            return _renewed(library, wanted, existing)
        check_promise(library, wanted, planned.forecast.n_bytes, None)
        row = _row(library, wanted, planned)
        library.store.put_definition(row.id, wanted.definition.to_json())
        try:
            contexts.add(row, [(part.row, part.ids) for part in planned.outline.parts])
        except CatalogUnavailable:
            raise  # it may be listed all the same; if it is not, the next start removes its text
        except BaseException:
            library.store.remove_context(row.id)
            raise
    return row, True


def check_promise(
    library: Library, wanted: Wanted, n_bytes: int, existing: ContextRow | None
) -> None:
    """Raise ``NoRoom`` unless the KV of what is ``wanted``, so many bytes, can be kept as promised.
    ``existing`` is the context that is it already."""
    if existing is None:
        if wanted.keep == "kv":
            check_room(library, wanted.tenant, n_bytes)
    elif "kv" in (wanted.keep, existing.keep):
        is_held = existing.keep == "kv" and existing.status != "expired"
        check_room(library, wanted.tenant, n_bytes, without=existing.id if is_held else "")


def expires_at(row: ContextRow, now: int) -> int | None:
    """When ``row`` ends if it is not used after ``now``; None where it does not."""
    if row.pinned or row.expires_anchor is None or row.expires_after_s is None:
        return None
    return (row.created_at if row.expires_anchor == "created_at" else now) + row.expires_after_s


def used(library: Library, row: ContextRow, **changes: Any) -> ContextRow:
    """Take note that ``row`` is in use, which moves an expiry by last use; ``changes`` are further
    fields. The row as it is then."""
    now = library.now()
    fresh = library.catalog.contexts.update(
        row.tenant, row.id, last_active_at=now, expires_at=expires_at(row, now), **changes
    )
    return fresh or row


def _check_name(library: Library, wanted: Wanted, existing: ContextRow | None) -> None:
    if wanted.name is None:
        return
    holder = library.catalog.contexts.by_name(wanted.tenant, wanted.name)
    if holder is not None and (existing is None or holder.id != existing.id):
        raise NameTaken(
            f"You have another context named {wanted.name!r}. Names are unique: choose another, "
            "rename that one, or delete it."
        )


def _renewed(library: Library, wanted: Wanted, row: ContextRow) -> tuple[ContextRow, bool]:
    """``row``, which is what is ``wanted`` already, with the new wishes about keeping it."""
    keep: Literal["kv", "text"] = "kv" if "kv" in (wanted.keep, row.keep) else "text"
    check_promise(library, wanted, row.n_bytes, row)
    _mend(library, wanted, row)
    changes: dict[str, Any] = {"pinned": wanted.pinned or row.pinned, "keep": keep}
    if wanted.name is not None:
        changes["name"] = wanted.name
    if wanted.expiry is not None:
        changes |= {
            "expires_anchor": wanted.expiry.anchor,
            "expires_after_s": wanted.expiry.after_s,
        }
    if row.status in STOPPED or (row.status == "completed" and keep != row.keep):
        changes |= {"status": "queued", "error": None, "completed_at": None}
    changed = library.catalog.contexts.update(row.tenant, row.id, **changes)
    row = used(library, changed or row)
    return row, row.status in UNFINISHED


def _mend(library: Library, wanted: Wanted, row: ContextRow) -> None:
    """Put the text of ``row`` where it belongs, should it have been lost there."""
    try:
        library.store.definition(row.id)
    except StoreBroken:
        library.store.put_definition(row.id, wanted.definition.to_json())


def _row(library: Library, wanted: Wanted, planned: Plan) -> ContextRow:
    now = library.now()
    definition, expiry = wanted.definition, wanted.expiry or Expiry()
    return ContextRow(
        id=new_id("ctx_"),
        tenant=wanted.tenant,
        name=wanted.name,
        model=library.card.name,
        fingerprint=planned.fingerprint,
        status="queued",
        parent=wanted.parent,
        origin=wanted.origin,
        definition={
            "summaries": wanted.summaries and planned.outline.sectioned,
            "instructions": definition.instructions,
            "turns": [dict(turn) for turn in definition.turns],
            "section_tokens": definition.section_tokens,
            "realm": realm_name(library),
        },
        file_ids=wanted.file_ids,
        sectioned=planned.outline.sectioned,
        keep=wanted.keep,
        pinned=wanted.pinned,
        n_chars=definition.n_chars,
        tokens=planned.outline.tokens,
        read_tokens=0,
        n_sections=len(planned.outline.parts),
        n_bytes=planned.forecast.n_bytes,
        unread=unread_of(wanted, planned.outline),
        metadata=dict(wanted.metadata),
        expires_anchor=expiry.anchor,
        expires_after_s=expiry.after_s,
        expires_at=None if wanted.pinned else now + expiry.after_s,
        created_at=now,
        last_active_at=now,
        completed_at=None,
        error=None,
        computed_tokens=0,
        reused_tokens=0,
        requests=0,
        read_s=0.0,
    )


def unread_of(wanted: Wanted, outline: Outline) -> tuple[dict[str, Any], ...]:
    """Everything of what is wanted that the model will not see, and why."""
    found: list[dict[str, Any]] = [dict(each) for each in wanted.unread]
    for document in wanted.definition.documents:
        found += [{"document": document.name, **asdict(each)} for each in document.unread]
    if outline.replaced:
        reason = (
            f"{outline.replaced} characters are not in the model's vocabulary; it reads spaces in "
            "their place."
        )
        found.append({"document": None, "page": None, "what": "characters", "reason": reason})
    return tuple(found)
