"""The numbered steps that make the tables, and bring those of an earlier version up to date.

Invariant: a step that was released never changes; each is done once, in one transaction, whoever
else opens the database at the same time. A database of a later version is refused.
"""

from __future__ import annotations

from sqlalchemy import Connection, func, insert, inspect, select, text, update

from kvasir.catalog.database import Database
from kvasir.catalog.tables import schema_version
from kvasir.core.errors import ConfigError

_LOCK = 0x6B766173  # "kvas": what those who migrate wait for in PostgreSQL

# {text}: ordered by code points in both databases; {blob}: bytes
_FIRST = (
    """CREATE TABLE tenants (
        name {text} NOT NULL PRIMARY KEY,
        created_at BIGINT NOT NULL,
        disabled_at BIGINT)""",
    """CREATE TABLE api_keys (
        id {text} NOT NULL PRIMARY KEY,
        tenant {text} NOT NULL REFERENCES tenants (name) ON DELETE CASCADE,
        role {text} NOT NULL,
        label {text} NOT NULL,
        hint {text} NOT NULL,
        created_at BIGINT NOT NULL,
        expires_at BIGINT,
        revoked_at BIGINT,
        last_used_at BIGINT,
        digest_head {text} NOT NULL,
        digest {text} NOT NULL UNIQUE)""",
    "CREATE INDEX api_keys_by_head ON api_keys (digest_head)",
    "CREATE INDEX api_keys_by_tenant ON api_keys (tenant)",
    """CREATE TABLE files (
        id {text} NOT NULL PRIMARY KEY,
        tenant {text} NOT NULL,
        filename {text} NOT NULL,
        purpose {text} NOT NULL,
        n_bytes BIGINT NOT NULL,
        sha256 {text} NOT NULL,
        media_type {text} NOT NULL,
        status {text} NOT NULL,
        status_details {text},
        n_chars BIGINT NOT NULL,
        n_pages BIGINT NOT NULL,
        n_documents BIGINT NOT NULL,
        unread {text} NOT NULL,
        created_at BIGINT NOT NULL,
        expires_at BIGINT)""",
    "CREATE INDEX files_in_order ON files (tenant, created_at, id)",
    "CREATE INDEX files_by_expiry ON files (expires_at)",
    """CREATE TABLE contexts (
        id {text} NOT NULL PRIMARY KEY,
        tenant {text} NOT NULL,
        name {text},
        model {text} NOT NULL,
        fingerprint {text} NOT NULL,
        status {text} NOT NULL,
        parent {text},
        origin {text} NOT NULL,
        definition {text} NOT NULL,
        file_ids {text} NOT NULL,
        sectioned BOOLEAN NOT NULL,
        keep {text} NOT NULL,
        pinned BOOLEAN NOT NULL,
        n_chars BIGINT NOT NULL,
        tokens BIGINT NOT NULL,
        read_tokens BIGINT NOT NULL,
        n_sections BIGINT NOT NULL,
        n_bytes BIGINT NOT NULL,
        unread {text} NOT NULL,
        metadata {text} NOT NULL,
        expires_anchor {text},
        expires_after_s BIGINT,
        expires_at BIGINT,
        created_at BIGINT NOT NULL,
        last_active_at BIGINT NOT NULL,
        completed_at BIGINT,
        error {text},
        computed_tokens BIGINT NOT NULL,
        reused_tokens BIGINT NOT NULL,
        requests BIGINT NOT NULL,
        read_s DOUBLE PRECISION NOT NULL,
        last_seq BIGINT NOT NULL)""",
    "CREATE UNIQUE INDEX contexts_by_name ON contexts (tenant, name)",
    "CREATE INDEX contexts_in_order ON contexts (tenant, created_at, id)",
    "CREATE INDEX contexts_by_fingerprint ON contexts (tenant, fingerprint)",
    "CREATE INDEX contexts_by_status ON contexts (status, created_at)",
    "CREATE INDEX contexts_by_expiry ON contexts (expires_at)",
    """CREATE TABLE sections (
        context {text} NOT NULL REFERENCES contexts (id) ON DELETE CASCADE,
        number BIGINT NOT NULL,
        document BIGINT NOT NULL,
        title_path {text} NOT NULL,
        start_at BIGINT NOT NULL,
        end_at BIGINT NOT NULL,
        first_page BIGINT NOT NULL,
        last_page BIGINT NOT NULL,
        n_tokens BIGINT NOT NULL,
        is_read BOOLEAN NOT NULL,
        summary {text},
        token_ids {blob} NOT NULL,
        PRIMARY KEY (context, number))""",
    """CREATE TABLE events (
        context {text} NOT NULL REFERENCES contexts (id) ON DELETE CASCADE,
        seq BIGINT NOT NULL,
        kind {text} NOT NULL,
        data {text} NOT NULL,
        created_at BIGINT NOT NULL,
        PRIMARY KEY (context, seq))""",
    """CREATE TABLE idempotency (
        tenant {text} NOT NULL,
        key_digest {text} NOT NULL,
        request_digest {text} NOT NULL,
        object_id {text},
        created_at BIGINT NOT NULL,
        PRIMARY KEY (tenant, key_digest))""",
    "CREATE INDEX idempotency_by_age ON idempotency (created_at)",
)

_SECOND = ("CREATE TABLE home (digest {text} NOT NULL PRIMARY KEY)",)

STEPS: tuple[tuple[str, ...], ...] = (_FIRST, _SECOND)  # step n brings version n - 1 to version n
_WORDS = {
    "sqlite": {"text": "TEXT", "blob": "BLOB"},
    "postgresql": {"text": 'TEXT COLLATE "C"', "blob": "BYTEA"},
}


def migrate(database: Database, steps: tuple[tuple[str, ...], ...] = STEPS) -> None:
    """Bring ``database`` to the version that ``steps`` lead to.

    Raises ``ConfigError`` for a database of a later version, or one that holds something else.
    """
    for number, statements in enumerate(steps, start=1):
        with database.write() as connection:
            if _version(connection, database, len(steps)) >= number:
                continue
            for statement in statements:
                connection.execute(text(statement.format(**_WORDS[database.dialect])))
            connection.execute(update(schema_version).values(version=number))


def _version(connection: Connection, database: Database, known: int) -> int:
    """The version of the database, which nobody else changes until the transaction ends."""
    if database.dialect == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
    if not inspect(connection).has_table(schema_version.name):
        if found := inspect(connection).get_table_names():
            raise ConfigError(
                f"the database {database.told} holds something else: {', '.join(found)[:100]}\n"
                "Kvasir keeps what is its own in a database of its own\n"
                "name another one with the setting `database`"
            )
        schema_version.create(connection)
        connection.execute(insert(schema_version).values(version=0))
    version = connection.execute(select(schema_version.c.version)).scalar_one()
    if version > known:
        raise ConfigError(
            f"the database {database.told} has version {version}, this Kvasir knows up to {known}\n"
            "a later Kvasir has changed it\nuse that one, or name another database"
        )
    return int(version)
