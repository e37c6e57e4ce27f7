"""Rows as values, and what files and contexts have in common: they are a tenant's, and listed in
the order of their age.

Invariant: no statement here finds a row of another tenant.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Connection, Select, Table, and_, or_, select, update

from kvasir.catalog.values import Order
from kvasir.core.errors import RequestError

V = TypeVar("V")

_FIXED = frozenset({"id", "tenant", "created_at"})  # what never changes of a row


def columns(table: Table, kind: type[Any]) -> list[ColumnElement[Any]]:
    """The columns of ``table`` that a value of ``kind`` has as fields, in their order."""
    return [table.c[field.name] for field in dataclasses.fields(kind)]


def value(kind: type[V], row: Sequence[Any]) -> V:
    """``row``, selected by ``columns`` first of all, as a value."""
    names = (field.name for field in dataclasses.fields(kind))  # type: ignore[arg-type]
    return kind(**dict(zip(names, row, strict=False)))


def fields_of(row: Any) -> dict[str, Any]:
    """What a value is stored as. Unlike ``asdict`` it leaves what is in the fields alone."""
    return {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}


def get(connection: Connection, table: Table, kind: type[V], tenant: str, id_: str) -> V | None:
    """The row with that id, unless it is missing or another tenant's, which is the same."""
    found = connection.execute(
        select(*columns(table, kind)).where(table.c.id == id_, table.c.tenant == tenant)
    ).first()
    return None if found is None else value(kind, found)


def change(
    connection: Connection,
    table: Table,
    kind: type[V],
    tenant: str,
    id_: str,
    changes: Mapping[str, Any],
) -> V | None:
    """Set fields of a row; the row as it is now, None where it is not there."""
    known = {field.name for field in dataclasses.fields(kind)} - _FIXED  # type: ignore[arg-type]
    if unknown := sorted(set(changes) - known):
        raise TypeError(f"these fields cannot be changed: {', '.join(unknown)}")
    if changes:
        connection.execute(
            update(table).where(table.c.id == id_, table.c.tenant == tenant).values(**changes)
        )
    return get(connection, table, kind, tenant, id_)


def page(
    connection: Connection,
    table: Table,
    kind: type[V],
    tenant: str,
    *conditions: ColumnElement[bool],
    after: str | None,
    limit: int,
    order: Order,
) -> tuple[V, ...]:
    """Up to ``limit`` rows that come after the one with id ``after``, by (created_at, id).

    Raises ``RequestError`` where the tenant has no ``after``.
    """
    made, id_ = table.c.created_at, table.c.id
    query: Select[Any] = select(*columns(table, kind)).where(table.c.tenant == tenant, *conditions)
    if after is not None:
        found = connection.execute(
            select(made).where(id_ == after, table.c.tenant == tenant)
        ).scalar_one_or_none()
        if found is None:
            raise RequestError(
                f"There is nothing with the id {after[:100]!r} to go on after. Take the last id of "
                "the page before, or leave it away.",
                param="after",
                code="invalid_value",
            )
        later = (
            and_(made == found, id_ > after) if order == "asc" else and_(made == found, id_ < after)
        )
        query = query.where(or_(made > found if order == "asc" else made < found, later))
    by = (made.asc(), id_.asc()) if order == "asc" else (made.desc(), id_.desc())
    rows = connection.execute(query.order_by(*by).limit(limit))
    return values(kind, rows.all())


def values(kind: type[V], rows: Sequence[Sequence[Any]]) -> tuple[V, ...]:
    """``rows``, selected by ``columns``, as values."""
    return tuple(value(kind, row) for row in rows)
