"""API keys: 256 random bits each, of which only the SHA-256 digest is kept.

Invariant: a key's text leaves ``create`` and is nowhere else. A key that is revoked, expired or of
a disabled tenant is not found.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets

from sqlalchemy import func, or_, select, update
from sqlalchemy.exc import DatabaseError

from kvasir.catalog import tables
from kvasir.catalog.database import Database, is_conflict
from kvasir.catalog.rows import columns, fields_of, value, values
from kvasir.catalog.values import ROLES, Key, Role
from kvasir.core.errors import CatalogUnavailable, RequestError, UnknownTenant

log = logging.getLogger(__name__)

PREFIX = "kv_"
_BYTES = 32
_HEAD_DIGITS = 8  # of a digest: what candidates are looked up by; the rest is compared
_USED_EVERY_S = 60
_MOST_LABEL_CHARS = 200
_TABLE = tables.api_keys
_TENANTS = tables.tenants


class Keys:
    """The API keys in ``database``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self, tenant: str, role: Role, label: str, expires_at: int | None, now: int
    ) -> tuple[Key, str]:
        """A new key and its text, which cannot be shown again.

        Raises ``UnknownTenant``, or ``RequestError`` for a role, label or time that does not do.
        """
        if role not in ROLES:
            raise RequestError(f"There is no role {str(role)[:50]!r}; there are tenant and admin.")
        if len(label) > _MOST_LABEL_CHARS:
            raise RequestError(
                f"A label has at most {_MOST_LABEL_CHARS} characters.", param="label"
            )
        if expires_at is not None and expires_at <= now:
            raise RequestError("The key would have expired already.", param="expires_at")
        plaintext = PREFIX + secrets.token_urlsafe(_BYTES)
        digest = _digest(plaintext)
        key = Key(
            id=f"key_{secrets.token_hex(12)}",
            tenant=tenant,
            role=role,
            label=label,
            hint=plaintext[-4:],
            created_at=now,
            expires_at=expires_at,
        )
        kept = {"digest": digest, "digest_head": digest[:_HEAD_DIGITS]}
        try:
            with self._database.write() as connection:
                connection.execute(_TABLE.insert().values(**fields_of(key), **kept))
        except DatabaseError as error:
            if is_conflict(error):
                raise UnknownTenant(f"there is no tenant {tenant[:100]!r}") from error
            raise
        return key, plaintext

    def find(self, plaintext: str, now: int) -> Key | None:
        """The key with that text, if it admits anybody at ``now``."""
        digest = _digest(plaintext)
        query = (
            select(*columns(_TABLE, Key), _TABLE.c.digest)
            .join(_TENANTS, _TENANTS.c.name == _TABLE.c.tenant)
            .where(
                _TABLE.c.digest_head == digest[:_HEAD_DIGITS],
                _TABLE.c.revoked_at.is_(None),
                or_(_TABLE.c.expires_at.is_(None), _TABLE.c.expires_at > now),
                _TENANTS.c.disabled_at.is_(None),
            )
        )
        found: Key | None = None
        with self._database.read() as connection:
            for row in connection.execute(query):
                if hmac.compare_digest(row.digest, digest):
                    found = value(Key, row)
        if found is not None:
            self._note_use(found, now)
        return found

    def get(self, key_id: str) -> Key | None:
        """The key with that id, whatever its state."""
        query = select(*columns(_TABLE, Key)).where(_TABLE.c.id == key_id)
        with self._database.read() as connection:
            found = connection.execute(query).first()
        return None if found is None else value(Key, found)

    def list(self, tenant: str | None = None) -> tuple[Key, ...]:
        """All keys, or those of ``tenant``, the oldest first; also those that admit nobody."""
        query = select(*columns(_TABLE, Key)).order_by(_TABLE.c.created_at, _TABLE.c.id)
        if tenant is not None:
            query = query.where(_TABLE.c.tenant == tenant)
        with self._database.read() as connection:
            return values(Key, connection.execute(query).all())

    def revoke(self, key_id: str, now: int) -> bool:
        """Admit nobody by this key from now on; whether there was such a key to revoke."""
        statement = (
            update(_TABLE)
            .where(_TABLE.c.id == key_id, _TABLE.c.revoked_at.is_(None))
            .values(revoked_at=now)
        )
        with self._database.write() as connection:
            return bool(connection.execute(statement).rowcount)

    def count_active(self, now: int) -> int:
        """How many keys admit somebody at ``now``."""
        query = (
            select(func.count())
            .select_from(_TABLE.join(_TENANTS, _TENANTS.c.name == _TABLE.c.tenant))
            .where(
                _TABLE.c.revoked_at.is_(None),
                or_(_TABLE.c.expires_at.is_(None), _TABLE.c.expires_at > now),
                _TENANTS.c.disabled_at.is_(None),
            )
        )
        with self._database.read() as connection:
            return int(connection.execute(query).scalar_one())

    def any_unrevoked(self) -> bool:
        """Whether there are keys that nobody has revoked; an expired one counts, since time that
        passes must not open a server that was closed."""
        query = select(_TABLE.c.id).where(_TABLE.c.revoked_at.is_(None)).limit(1)
        with self._database.read() as connection:
            return connection.execute(query).first() is not None

    def _note_use(self, key: Key, now: int) -> None:
        if key.last_used_at is not None and now - key.last_used_at < _USED_EVERY_S:
            return
        statement = update(_TABLE).where(_TABLE.c.id == key.id).values(last_used_at=now)
        try:
            with self._database.write() as connection:
                connection.execute(statement)
        except CatalogUnavailable as error:  # who is admitted does not depend on it
            log.warning("the use of key %s is not noted: %s", key.id, error)


def _digest(plaintext: str) -> str:
    return hashlib.sha256(plaintext.encode("utf-8", "surrogateescape")).hexdigest()
