"""What happened to contexts, in the order it happened.

Invariant: numbers of a context's events only grow, also where several append at once and where old
events were trimmed; who has read up to one reads on after it and misses nothing that is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from kvasir.catalog import rows, tables
from kvasir.catalog.database import Database
from kvasir.catalog.values import EventRow

_TABLE = tables.events
_CONTEXTS = tables.contexts


class Events:
    """The events in ``database``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def append(self, context_id: str, kind: str, data: Mapping[str, Any], now: int) -> int:
        """Note an event; its number, from 1. Where the context has gone, nothing is noted: 0."""
        with self._database.write() as connection:
            return append(connection, context_id, kind, data, now)

    def after(self, context_id: str, seq: int, limit: int) -> tuple[EventRow, ...]:
        """Up to ``limit`` events with numbers over ``seq``, in their order."""
        query = (
            select(*rows.columns(_TABLE, EventRow))
            .where(_TABLE.c.context == context_id, _TABLE.c.seq > seq)
            .order_by(_TABLE.c.seq)
            .limit(limit)
        )
        with self._database.read() as connection:
            return rows.values(EventRow, connection.execute(query).all())

    def last(self, context_id: str) -> int:
        """The number of the latest event, 0 where there was none."""
        query = select(_CONTEXTS.c.last_seq).where(_CONTEXTS.c.id == context_id)
        with self._database.read() as connection:
            return int(connection.execute(query).scalar_one_or_none() or 0)

    def trim(self, context_id: str, keep: int) -> int:
        """Forget all but the latest ``keep`` events; how many went."""
        last = select(_CONTEXTS.c.last_seq).where(_CONTEXTS.c.id == context_id).scalar_subquery()
        statement = delete(_TABLE).where(
            _TABLE.c.context == context_id, _TABLE.c.seq <= last - keep
        )
        with self._database.write() as connection:
            return int(connection.execute(statement).rowcount)


def append(
    connection: Connection, context_id: str, kind: str, data: Mapping[str, Any], now: int
) -> int:
    """The same within somebody's transaction."""
    here = _CONTEXTS.c.id == context_id
    count = update(_CONTEXTS).where(here).values(last_seq=_CONTEXTS.c.last_seq + 1)
    # counting holds the context's row until the event is there, so that nobody can see a later
    # number before an earlier one
    if not connection.execute(count).rowcount:
        return 0
    seq = connection.execute(select(_CONTEXTS.c.last_seq).where(here)).scalar_one()
    event = EventRow(seq=int(seq), kind=kind, data=data, created_at=now)
    connection.execute(insert(_TABLE).values(context=context_id, **rows.fields_of(event)))
    return event.seq
