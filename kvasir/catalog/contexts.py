"""Contexts and their sections, as rows; their KV lies elsewhere.

Invariants: a row of another tenant is as one that is not there; a context and its sections are
listed together or not at all.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Text,
    case,
    delete,
    func,
    insert,
    select,
    type_coerce,
    update,
)
from sqlalchemy.exc import DatabaseError

from kvasir.catalog import rows, tables
from kvasir.catalog.database import Database, is_conflict
from kvasir.catalog.events import append
from kvasir.catalog.values import UNFINISHED, ContextRow, ContextStatus, Order, SectionRow
from kvasir.core.errors import NameTaken

_TABLE = tables.contexts
_SECTIONS = tables.sections
WithTokens = Sequence[tuple[SectionRow, bytes]]  # sections, each with its token ids as bytes


class Contexts:
    """The contexts in ``database``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, row: ContextRow, sections: WithTokens = ()) -> None:
        """List a context with its sections. Raises ``NameTaken``."""
        with self._naming(row.tenant, row.name), self._database.write() as connection:
            connection.execute(insert(_TABLE).values(**rows.fields_of(row)))
            _insert_sections(connection, row.id, sections)

    def get(self, tenant: str, context_id: str) -> ContextRow | None:
        """The tenant's context with that id."""
        with self._database.read() as connection:
            return rows.get(connection, _TABLE, ContextRow, tenant, context_id)

    def by_name(self, tenant: str, name: str) -> ContextRow | None:
        """The tenant's context of that name."""
        return self._first(_TABLE.c.tenant == tenant, _TABLE.c.name == name)

    def by_fingerprint(self, tenant: str, fingerprint: str) -> ContextRow | None:
        """The tenant's newest context of that content and model; where it was cancelled, failed or
        expired it is one to go on with."""
        return self._first(_TABLE.c.tenant == tenant, _TABLE.c.fingerprint == fingerprint)

    def list(
        self,
        tenant: str,
        after: str | None = None,
        limit: int = 100,
        order: Order = "desc",
        status: ContextStatus | None = None,
    ) -> tuple[ContextRow, ...]:
        """A page of the tenant's contexts. Raises ``RequestError`` where there is no ``after``."""
        conditions = [] if status is None else [_TABLE.c.status == status]
        with self._database.read() as connection:
            return rows.page(
                connection,
                _TABLE,
                ContextRow,
                tenant,
                *conditions,
                after=after,
                limit=limit,
                order=order,
            )

    def update(self, tenant: str, context_id: str, **changes: Any) -> ContextRow | None:
        """Set fields of a context; the context as it is now, None where it is not there. Raises
        ``NameTaken``."""
        naming = self._naming(tenant, changes.get("name"))
        with naming, self._database.write() as connection:
            return rows.change(connection, _TABLE, ContextRow, tenant, context_id, changes)

    def conclude(
        self,
        tenant: str,
        context_id: str,
        kind: str,
        data: Mapping[str, Any],
        now: int,
        **changes: Any,
    ) -> ContextRow | None:
        """Set fields of a context together with the event that says so, so that nobody sees the
        one without the other; the context as it is now, None where it is not there."""
        with self._database.write() as connection:
            row = rows.change(connection, _TABLE, ContextRow, tenant, context_id, changes)
            if row is not None:
                append(connection, context_id, kind, data, now)
            return row

    def touch(self, tenant: str, context_id: str, now: int) -> ContextRow | None:
        """Count a request on a context, which was thereby used at ``now``; where it expires some
        time after its last use, that is later then."""
        renewed = case(
            (_TABLE.c.expires_anchor == "last_active_at", now + _TABLE.c.expires_after_s),
            else_=_TABLE.c.expires_at,
        )
        changes = {
            "requests": _TABLE.c.requests + 1,
            "last_active_at": now,
            "expires_at": renewed,
        }
        return self.update(tenant, context_id, **changes)

    def remove(self, tenant: str, context_id: str) -> bool:
        """Forget a context with its sections and events; whether it was there."""
        statement = delete(_TABLE).where(_TABLE.c.id == context_id, _TABLE.c.tenant == tenant)
        with self._database.write() as connection:
            return bool(connection.execute(statement).rowcount)

    def expired(self, now: int) -> tuple[ContextRow, ...]:
        """Contexts of all tenants whose time is over and that are not pinned."""
        return self._all(_TABLE.c.expires_at <= now, _TABLE.c.pinned.is_(False))

    def unfinished(self) -> tuple[ContextRow, ...]:
        """Contexts of all tenants that are to be read, the oldest first."""
        return self._all(_TABLE.c.status.in_(UNFINISHED))

    def live(self) -> tuple[ContextRow, ...]:
        """Contexts of all tenants that are read or to be read, the oldest first."""
        return self._all(_TABLE.c.status.in_((*UNFINISHED, "completed")))

    def held(self) -> tuple[ContextRow, ...]:
        """Contexts of all tenants whose KV, or what was read of it, is to stay."""
        return self._all(_TABLE.c.keep == "kv", _TABLE.c.status != "expired")

    def promised_bytes(self, without: str = "") -> int:
        """Bytes of all that are ``held``, the context ``without`` left out."""
        query = select(func.coalesce(func.sum(_TABLE.c.n_bytes), 0)).where(
            _TABLE.c.keep == "kv", _TABLE.c.status != "expired", _TABLE.c.id != without
        )
        with self._database.read() as connection:
            return int(connection.execute(query).scalar_one())

    def ids(self) -> set[str]:
        """Ids of all contexts of all tenants."""
        with self._database.read() as connection:
            return set(connection.execute(select(_TABLE.c.id)).scalars())

    def of_file(self, tenant: str, file_id: str) -> tuple[ContextRow, ...]:
        """The tenant's contexts that have that file in them, the oldest first."""
        holds = type_coerce(_TABLE.c.file_ids, Text).contains(json.dumps(file_id), autoescape=True)
        found = self._all(_TABLE.c.tenant == tenant, holds)
        return tuple(row for row in found if file_id in row.file_ids)

    def sections(self, context_id: str) -> tuple[SectionRow, ...]:
        """The sections of a context in their order."""
        query = (
            select(*rows.columns(_SECTIONS, SectionRow))
            .where(_SECTIONS.c.context == context_id)
            .order_by(_SECTIONS.c.index)
        )
        with self._database.read() as connection:
            return rows.values(SectionRow, connection.execute(query).all())

    def section_tokens(self, context_id: str, index: int | None = None) -> dict[int, bytes]:
        """The token ids of each section, or of that at ``index`` alone."""
        query = select(_SECTIONS.c.index, _SECTIONS.c.token_ids).where(
            _SECTIONS.c.context == context_id
        )
        if index is not None:
            query = query.where(_SECTIONS.c.index == index)
        with self._database.read() as connection:
            found = connection.execute(query.order_by(_SECTIONS.c.index))
            return {int(at): bytes(tokens) for at, tokens in found}

    def set_sections(self, context_id: str, sections: WithTokens, **changes: Any) -> bool:
        """Put ``sections`` in the place of those that were there, and set fields of the context in
        the same transaction; whether the context was there."""
        with self._database.write() as connection:
            found = connection.execute(
                select(_TABLE.c.tenant).where(_TABLE.c.id == context_id)
            ).scalar_one_or_none()
            if found is None:
                return False
            rows.change(connection, _TABLE, ContextRow, found, context_id, changes)
            connection.execute(delete(_SECTIONS).where(_SECTIONS.c.context == context_id))
            _insert_sections(connection, context_id, sections)
            return True

    def mark_read(
        self,
        context_id: str,
        index: int,
        *,
        read_tokens: int | None = None,
        computed_tokens: int = 0,
        reused_tokens: int = 0,
        read_s: float = 0.0,
    ) -> bool:
        """Note that a section was read; whether it is there.

        The context's ``read_tokens`` become those given, else those of all its sections that were
        read; the other numbers are added to the context's.
        """
        here = (_SECTIONS.c.context == context_id, _SECTIONS.c.index == index)
        read = select(func.coalesce(func.sum(_SECTIONS.c.n_tokens), 0)).where(
            _SECTIONS.c.context == context_id, _SECTIONS.c.read.is_(True)
        )
        with self._database.write() as connection:
            done = connection.execute(update(_SECTIONS).where(*here).values(read=True))
            if not done.rowcount:
                return False
            connection.execute(
                update(_TABLE)
                .where(_TABLE.c.id == context_id)
                .values(
                    read_tokens=read.scalar_subquery() if read_tokens is None else read_tokens,
                    computed_tokens=_TABLE.c.computed_tokens + computed_tokens,
                    reused_tokens=_TABLE.c.reused_tokens + reused_tokens,
                    read_s=_TABLE.c.read_s + read_s,
                )
            )
            return True

    def forget_read(self, context_id: str) -> None:
        """Note that nothing of a context is kept any more."""
        with self._database.write() as connection:
            connection.execute(
                update(_SECTIONS).where(_SECTIONS.c.context == context_id).values(read=False)
            )
            connection.execute(
                update(_TABLE).where(_TABLE.c.id == context_id).values(read_tokens=0)
            )

    def set_summary(self, context_id: str, index: int, summary: str | None) -> bool:
        """Keep what the model says a section is about; whether the section is there."""
        statement = (
            update(_SECTIONS)
            .where(_SECTIONS.c.context == context_id, _SECTIONS.c.index == index)
            .values(summary=summary)
        )
        with self._database.write() as connection:
            return bool(connection.execute(statement).rowcount)

    @contextlib.contextmanager
    def _naming(self, tenant: str, name: str | None) -> Iterator[None]:
        """Tell a name that is in use from other errors."""
        try:
            yield
        except DatabaseError as error:
            if name is not None and is_conflict(error) and self.by_name(tenant, name) is not None:
                raise NameTaken(f"there is a context {name[:100]!r} already") from error
            raise

    def _first(self, *conditions: ColumnElement[bool]) -> ContextRow | None:
        """The newest of those for which all conditions hold."""
        query = (
            select(*rows.columns(_TABLE, ContextRow))
            .where(*conditions)
            .order_by(_TABLE.c.created_at.desc(), _TABLE.c.id.desc())
            .limit(1)
        )
        with self._database.read() as connection:
            found = connection.execute(query).first()
        return None if found is None else rows.value(ContextRow, found)

    def _all(self, *conditions: ColumnElement[bool]) -> tuple[ContextRow, ...]:
        query = (
            select(*rows.columns(_TABLE, ContextRow))
            .where(*conditions)
            .order_by(_TABLE.c.created_at, _TABLE.c.id)
        )
        with self._database.read() as connection:
            return rows.values(ContextRow, connection.execute(query).all())


def _insert_sections(connection: Connection, context_id: str, sections: WithTokens) -> None:
    made = [
        {**rows.fields_of(section), "context": context_id, "token_ids": tokens}
        for section, tokens in sections
    ]
    if made:
        connection.execute(insert(_SECTIONS), made)
