"""Tenants: who they are, and whether their keys admit anybody.

Invariant: with a tenant goes all that is listed of it, in the same transaction.
"""

from __future__ import annotations

import re

from sqlalchemy import delete, select, update

from kvasir.catalog import tables
from kvasir.catalog.database import Database
from kvasir.catalog.rows import columns, value, values
from kvasir.catalog.values import Tenant
from kvasir.core.errors import NameTaken, RequestError

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_TABLE = tables.tenants
_OWNED = (tables.contexts, tables.files, tables.idempotency)  # sections and events go with contexts


class Tenants:
    """The tenants in ``database``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, name: str, now: int) -> Tenant:
        """A new tenant. Raises ``RequestError`` for a name that does not do, ``NameTaken``."""
        check_name(name)
        with self._database.write() as connection:
            fresh = {"name": name, "created_at": now}
            if not self._database.insert_new(connection, _TABLE, fresh):
                raise NameTaken(f"there is a tenant {name!r} already")
        return Tenant(name=name, created_at=now)

    def ensure(self, name: str, now: int) -> None:
        """Add the tenant unless it is there. Raises ``RequestError`` as ``add`` does."""
        check_name(name)
        with self._database.write() as connection:
            self._database.insert_new(connection, _TABLE, {"name": name, "created_at": now})

    def get(self, name: str) -> Tenant | None:
        """The tenant of that name."""
        query = select(*columns(_TABLE, Tenant)).where(_TABLE.c.name == name)
        with self._database.read() as connection:
            found = connection.execute(query).first()
        return None if found is None else value(Tenant, found)

    def list(self) -> tuple[Tenant, ...]:
        """All tenants by name."""
        query = select(*columns(_TABLE, Tenant)).order_by(_TABLE.c.name)
        with self._database.read() as connection:
            return values(Tenant, connection.execute(query).all())

    def disable(self, name: str, now: int) -> bool:
        """Admit nobody by this tenant's keys from now on; whether there is such a tenant."""
        return self._set_disabled(name, now)

    def enable(self, name: str) -> bool:
        """Admit its keys again; whether there is such a tenant."""
        return self._set_disabled(name, None)

    def remove(self, name: str) -> bool:
        """Forget the tenant with its keys, files and contexts; whether there was one. What lies
        elsewhere (bytes of files, KV) is for the caller to remove."""
        with self._database.write() as connection:
            for table in _OWNED:
                connection.execute(delete(table).where(table.c.tenant == name))
            done = connection.execute(delete(_TABLE).where(_TABLE.c.name == name))
            return bool(done.rowcount)

    def _set_disabled(self, name: str, since: int | None) -> bool:
        statement = update(_TABLE).where(_TABLE.c.name == name).values(disabled_at=since)
        with self._database.write() as connection:
            return bool(connection.execute(statement).rowcount)


def check_name(name: str) -> None:
    """Raise ``RequestError`` unless ``name`` does as the name of a tenant."""
    if _NAME.fullmatch(name) is None:
        raise RequestError(
            f"The name {name[:100]!r} does not do for a tenant. Take 1 to 63 of a-z, 0-9, '-' and "
            "'_', beginning with a letter or a digit.",
            param="name",
        )
