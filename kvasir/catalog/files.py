"""Files that were uploaded, as rows; what is in them lies elsewhere.

Invariant: a row of another tenant is as one that is not there.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import delete, func, insert, select

from kvasir.catalog import rows, tables
from kvasir.catalog.database import Database
from kvasir.catalog.values import FileRow, Order

_TABLE = tables.files


class Files:
    """The files in ``database``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, row: FileRow) -> None:
        """List a file; once this has returned it stays listed."""
        with self._database.write() as connection:
            connection.execute(insert(_TABLE).values(**rows.fields_of(row)))

    def get(self, tenant: str, file_id: str) -> FileRow | None:
        """The tenant's file with that id."""
        with self._database.read() as connection:
            return rows.get(connection, _TABLE, FileRow, tenant, file_id)

    def list(
        self,
        tenant: str,
        after: str | None = None,
        limit: int = 100,
        order: Order = "desc",
        purpose: str | None = None,
    ) -> tuple[FileRow, ...]:
        """A page of the tenant's files. Raises ``RequestError`` where there is no ``after``."""
        conditions = [] if purpose is None else [_TABLE.c.purpose == purpose]
        with self._database.read() as connection:
            return rows.page(
                connection,
                _TABLE,
                FileRow,
                tenant,
                *conditions,
                after=after,
                limit=limit,
                order=order,
            )

    def update(self, tenant: str, file_id: str, **changes: Any) -> FileRow | None:
        """Set fields of a file; the file as it is now, None where it is not there."""
        with self._database.write() as connection:
            return rows.change(connection, _TABLE, FileRow, tenant, file_id, changes)

    def remove(self, tenant: str, file_id: str) -> bool:
        """Forget a file; whether it was there."""
        statement = delete(_TABLE).where(_TABLE.c.id == file_id, _TABLE.c.tenant == tenant)
        with self._database.write() as connection:
            return bool(connection.execute(statement).rowcount)

    def expired(self, now: int) -> tuple[FileRow, ...]:
        """Files of all tenants whose time is over."""
        query = select(*rows.columns(_TABLE, FileRow)).where(_TABLE.c.expires_at <= now)
        with self._database.read() as connection:
            return rows.values(FileRow, connection.execute(query).all())

    def ids(self) -> set[str]:
        """Ids of all files of all tenants."""
        with self._database.read() as connection:
            return set(connection.execute(select(_TABLE.c.id)).scalars())

    def used_bytes(self, tenant: str) -> int:
        """Bytes that the tenant has uploaded and not removed."""
        query = select(func.coalesce(func.sum(_TABLE.c.n_bytes), 0)).where(
            _TABLE.c.tenant == tenant
        )
        with self._database.read() as connection:
            return int(connection.execute(query).scalar_one())
