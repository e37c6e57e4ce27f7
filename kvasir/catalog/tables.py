"""The tables as they are after the last migration, in SQLAlchemy Core.

Invariant: names of columns (their ``key``) are the fields of ``values``; the two databases give
back the same values. What made the tables is in ``migrations``; a test compares both.
"""

from __future__ import annotations

import json
import re
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")  # PostgreSQL takes no NUL, and UTF-8 no surrogates


class _Text(TypeDecorator[str]):
    """Text of any origin: what no database can store is replaced by U+FFFD, so that an id that
    somebody made up is not found instead of being an error."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", value)


class _Json(TypeDecorator[Any]):
    """JSON as ASCII text, which holds every character in both databases."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str:
        return json.dumps(value, separators=(",", ":"), allow_nan=False)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        return None if value is None else json.loads(value)


class _JsonTuple(_Json):
    """A JSON list that is a tuple in our values."""

    cache_ok = True

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        return None if value is None else tuple(json.loads(value))


metadata = MetaData()

schema_version = Table("schema_version", metadata, Column("version", Integer, nullable=False))

home = Table("home", metadata, Column("digest", _Text, primary_key=True))  # whose catalog it is

tenants = Table(
    "tenants",
    metadata,
    Column("name", _Text, primary_key=True),
    Column("created_at", BigInteger, nullable=False),
    Column("disabled_at", BigInteger),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", _Text, primary_key=True),
    Column("tenant", _Text, ForeignKey("tenants.name", ondelete="CASCADE"), nullable=False),
    Column("role", _Text, nullable=False),
    Column("label", _Text, nullable=False),
    Column("hint", _Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Column("revoked_at", BigInteger),
    Column("last_used_at", BigInteger),
    Column("digest_head", _Text, nullable=False),  # the first digits, to find candidates by
    Column("digest", _Text, nullable=False),
)

files = Table(
    "files",
    metadata,
    Column("id", _Text, primary_key=True),
    Column("tenant", _Text, nullable=False),
    Column("filename", _Text, nullable=False),
    Column("purpose", _Text, nullable=False),
    Column("n_bytes", BigInteger, nullable=False),
    Column("sha256", _Text, nullable=False),
    Column("media_type", _Text, nullable=False),
    Column("status", _Text, nullable=False),
    Column("status_details", _Text),
    Column("n_chars", BigInteger, nullable=False),
    Column("n_pages", BigInteger, nullable=False),
    Column("n_documents", BigInteger, nullable=False),
    Column("unread", _JsonTuple, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
)

contexts = Table(
    "contexts",
    metadata,
    Column("id", _Text, primary_key=True),
    Column("tenant", _Text, nullable=False),
    Column("name", _Text),
    Column("model", _Text, nullable=False),
    Column("fingerprint", _Text, nullable=False),
    Column("status", _Text, nullable=False),
    Column("parent", _Text),
    Column("origin", _Text, nullable=False),
    Column("definition", _Json, nullable=False),
    Column("file_ids", _JsonTuple, nullable=False),
    Column("sectioned", Boolean, nullable=False),
    Column("keep", _Text, nullable=False),
    Column("pinned", Boolean, nullable=False),
    Column("n_chars", BigInteger, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("read_tokens", BigInteger, nullable=False),
    Column("n_sections", BigInteger, nullable=False),
    Column("n_bytes", BigInteger, nullable=False),
    Column("unread", _JsonTuple, nullable=False),
    Column("metadata", _Json, nullable=False),
    Column("expires_anchor", _Text),
    Column("expires_after_s", BigInteger),
    Column("expires_at", BigInteger),
    Column("created_at", BigInteger, nullable=False),
    Column("last_active_at", BigInteger, nullable=False),
    Column("completed_at", BigInteger),
    Column("error", _Text),
    Column("computed_tokens", BigInteger, nullable=False),
    Column("reused_tokens", BigInteger, nullable=False),
    Column("requests", BigInteger, nullable=False),
    Column("read_s", Double, nullable=False),
    Column("last_seq", BigInteger, nullable=False, default=0),  # of its events
)

sections = Table(
    "sections",
    metadata,
    Column("context", _Text, ForeignKey("contexts.id", ondelete="CASCADE"), primary_key=True),
    Column("number", BigInteger, key="index", primary_key=True, autoincrement=False),
    Column("document", BigInteger, nullable=False),
    Column("title_path", _JsonTuple, nullable=False),
    Column("start_at", BigInteger, key="start", nullable=False),
    Column("end_at", BigInteger, key="end", nullable=False),
    Column("first_page", BigInteger, nullable=False),
    Column("last_page", BigInteger, nullable=False),
    Column("n_tokens", BigInteger, nullable=False),
    Column("is_read", Boolean, key="read", nullable=False),
    Column("summary", _Text),
    Column("token_ids", LargeBinary, nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("context", _Text, ForeignKey("contexts.id", ondelete="CASCADE"), primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("kind", _Text, nullable=False),
    Column("data", _Json, nullable=False),
    Column("created_at", BigInteger, nullable=False),
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("tenant", _Text, primary_key=True),
    Column("key_digest", _Text, primary_key=True),
    Column("request_digest", _Text, nullable=False),
    Column("object_id", _Text),
    Column("created_at", BigInteger, nullable=False),
)
