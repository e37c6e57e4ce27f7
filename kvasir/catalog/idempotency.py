"""Idempotency keys: a request that is repeated with its key is done once.

Invariant: of those who claim a key at the same time, one alone is told that it is new. Keys are a
tenant's own, and are kept as digests, since clients put what they like into them.
"""

from __future__ import annotations

import hashlib

from sqlalchemy import ColumnElement, delete, select, update

from kvasir.catalog import tables
from kvasir.catalog.database import Database
from kvasir.catalog.values import Claim

_TABLE = tables.idempotency


class Idempotency:
    """The idempotency keys in ``database``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def claim(self, tenant: str, key: str, digest: str, now: int) -> Claim:
        """Take the key for the request with that digest, or tell who has it."""
        fresh = {
            "tenant": tenant,
            "key_digest": _digest(key),
            "request_digest": digest,
            "created_at": now,
        }
        query = select(_TABLE.c.request_digest, _TABLE.c.object_id).where(*_row(tenant, key))
        with self._database.write() as connection:
            while not self._database.insert_new(connection, _TABLE, fresh):
                found = connection.execute(query).first()
                if found is None:
                    continue  # it was forgotten between the two statements
                if found.request_digest != digest:
                    return Claim(state="conflict")
                return Claim(state="same", object_id=found.object_id)
        return Claim(state="new")

    def finish(self, tenant: str, key: str, object_id: str) -> None:
        """Say what came of the request that has claimed the key."""
        statement = update(_TABLE).where(*_row(tenant, key)).values(object_id=object_id)
        with self._database.write() as connection:
            connection.execute(statement)

    def forget(self, tenant: str, key: str) -> None:
        """Let the key be claimed again: the request came to nothing."""
        with self._database.write() as connection:
            connection.execute(delete(_TABLE).where(*_row(tenant, key)))

    def forget_unfinished(self) -> int:
        """Forget the keys of requests that came to nothing because a server ended; how many went.
        For the one server of a database, before it takes requests."""
        with self._database.write() as connection:
            done = connection.execute(delete(_TABLE).where(_TABLE.c.object_id.is_(None)))
            return int(done.rowcount)

    def purge(self, before: int) -> int:
        """Forget keys that were claimed before that time; how many went."""
        with self._database.write() as connection:
            done = connection.execute(delete(_TABLE).where(_TABLE.c.created_at < before))
            return int(done.rowcount)


def _row(tenant: str, key: str) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return _TABLE.c.tenant == tenant, _TABLE.c.key_digest == _digest(key)


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
