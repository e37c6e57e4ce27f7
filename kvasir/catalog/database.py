"""A database as the catalog uses it: SQLite in a file or in memory, or PostgreSQL.

Invariants: everything happens in a transaction that is done whole or not at all, and that was
written through to the disk when ``write`` is left. Nothing waits for ever.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import ssl
import stat
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, Table, create_engine, event, make_url
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import StaticPool

from kvasir.core.errors import CatalogUnavailable, ConfigError

_BUSY_S = 30.0  # what one waits for another's transaction, for a connection, for an answer
_WRITES = "kvasir_writes"  # the option of a connection that is about to write
_POSTGRES_OPTIONS = ("host", "sslmode")
_PRAGMAS = (
    "foreign_keys = ON",
    "synchronous = FULL",
    "secure_delete = ON",  # what is deleted is overwritten
    "trusted_schema = OFF",
    "cell_size_check = ON",
)


class Database:
    """Connections to one database. Threads may share it."""

    def __init__(self, engine: Engine, told: str, *, shared: bool) -> None:
        """``shared`` says that there is but one connection, which everybody uses in turn."""
        self._engine = engine
        self._writing = engine.execution_options(**{_WRITES: True})
        # SQLite has one writer at a time: threads of ours queue here, where nobody is overtaken
        turn = threading.Lock()
        self.dialect = engine.dialect.name
        self._before_read = turn if shared else contextlib.nullcontext()
        self._before_write = turn if self.dialect == "sqlite" else contextlib.nullcontext()
        self.told = told  # how to speak of it; without a password

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """A view of the database. Raises ``CatalogUnavailable``."""
        with self._before_read, self._translated(), self._engine.begin() as connection:
            yield connection

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction: what the block does is kept when it ends, nothing of it when it raises.
        Raises ``CatalogUnavailable``, in which case nothing was acknowledged."""
        with self._before_write, self._translated(), self._writing.begin() as connection:
            yield connection

    def insert_new(self, connection: Connection, table: Table, values: Mapping[str, Any]) -> bool:
        """Insert a row unless one with a key of it is there; whether it was inserted."""
        dialect: Any = sqlite if self.dialect == "sqlite" else postgresql
        statement = dialect.insert(table).values(**values).on_conflict_do_nothing()
        return bool(connection.execute(statement).rowcount)

    def close(self) -> None:
        """Give back all connections."""
        self._engine.dispose()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (DBAPIError, PoolTimeout, OSError) as error:
            if is_conflict(error):
                raise
            cause = getattr(error, "orig", None) or error
            raise CatalogUnavailable(
                f"the database {self.told} cannot be used: {_words(cause)}\n"
                "what was asked for was not done\n"
                "see that it runs and has room, then try again"
            ) from error


def open_database(url: str) -> Database:
    """The database at ``url``. Raises ``ConfigError`` that says what to do about it."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise _not_known() from None  # what they say may hold a password
    if parsed.drivername == "sqlite":
        return _open_sqlite(parsed)
    if parsed.drivername in ("postgresql", "postgres", "postgresql+pg8000"):
        return _open_postgres(parsed)
    raise _not_known()


def hidden_password(url: str) -> str:
    """``url`` as it may be shown."""
    try:
        return make_url(url).render_as_string(hide_password=True) if url else ""
    except (ArgumentError, ValueError):
        return "something that is no URL"


def is_conflict(error: BaseException) -> bool:
    """Whether ``error`` says that a row with that key is there already, or misses one it names."""
    if isinstance(error, IntegrityError):
        return True
    told: Any = getattr(getattr(error, "orig", None), "args", ())
    return bool(told) and isinstance(told[0], dict) and str(told[0].get("C", "")).startswith("23")


def _not_known() -> ConfigError:
    return ConfigError(
        "the setting 'database' is not one that Kvasir knows\n"
        "it takes SQLite and PostgreSQL\n"
        "write sqlite:////path/to/file, or postgresql://user:password@host/name"
    )


def _open_sqlite(url: URL) -> Database:
    if url.query or url.host:
        raise _not_known()
    memory = url.database in (None, "", ":memory:")
    if memory:
        engine = create_engine(
            "sqlite://",
            poolclass=StaticPool,
            connect_args={"check_same_thread": False},
            hide_parameters=True,
        )
        told = "in memory"
    else:
        path = Path(os.path.abspath(str(url.database)))
        _make_private(path)
        engine = create_engine(
            URL.create("sqlite", database=str(path)),
            connect_args={"timeout": _BUSY_S, "check_same_thread": False},
            pool_timeout=_BUSY_S,
            hide_parameters=True,  # no row's content in the words of an error
        )
        told = str(path)

    @event.listens_for(engine, "connect")
    def prepare(connection: DBAPIConnection, _record: object) -> None:
        _prepare(connection, wal=not memory)

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # a transaction that reads first and then writes would fail where another one wrote between
        writes = connection.get_execution_options().get(_WRITES, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return Database(engine, told, shared=memory)


def _prepare(connection: DBAPIConnection, *, wal: bool) -> None:
    raw: Any = connection
    raw.isolation_level = None  # transactions begin where we say so, see ``begin``
    cursor = connection.cursor()
    try:
        for pragma in _PRAGMAS:
            cursor.execute(f"PRAGMA {pragma}")
        if wal:
            _into_wal(cursor)
    finally:
        cursor.close()


def _into_wal(cursor: Any) -> None:
    """Keep a log beside the file, so that readers never wait. The first to ask changes the file,
    for which SQLite does not wait by itself."""
    until_s = time.monotonic() + _BUSY_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
            cursor.fetchall()
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until_s:
                raise
        time.sleep(0.01)


def _make_private(path: Path) -> None:
    """Make the file where it is missing, with mode 0600; SQLite gives its logs the same mode."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, 0o600)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(0, "it is no regular file")
            if stat.S_IMODE(status.st_mode) != 0o600:
                os.fchmod(fd, 0o600)
        finally:
            os.close(fd)
    except OSError as error:
        raise ConfigError(
            f"cannot use {path} as the database: {error.strerror}\n"
            "tenants, keys, files and contexts are listed in it\n"
            "name another file with the setting `database`"
        ) from error


def _open_postgres(url: URL) -> Database:
    unknown = sorted(set(url.query) - set(_POSTGRES_OPTIONS))
    if unknown:
        raise ConfigError(
            f"the setting 'database' has options that are not known: {', '.join(unknown)[:100]}\n"
            f"there are {' and '.join(_POSTGRES_OPTIONS)}\nleave the others away"
        )
    told = url.render_as_string(hide_password=True)
    try:
        engine = create_engine(
            url.set(drivername="postgresql+pg8000", query={}),
            connect_args={"timeout": _BUSY_S, **_postgres_arguments(url)},
            pool_pre_ping=True,
            pool_timeout=_BUSY_S,
            hide_parameters=True,
        )
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the database {told} needs a driver that is not installed\n"
            "it comes with the extra `postgres`\n"
            'install it: pip install "pg8000>=1.31,<2"'
        ) from error
    except NoSuchModuleError as error:
        raise _not_known() from error
    return Database(engine, told, shared=False)


def _postgres_arguments(url: URL) -> dict[str, Any]:
    """What the driver calls the options of the URL."""
    arguments: dict[str, Any] = {}
    if folder := url.query.get("host"):
        arguments["unix_sock"] = f"{folder}/.s.PGSQL.{url.port or 5432}"
    mode = url.query.get("sslmode", "prefer")
    if mode == "verify-full":
        arguments["ssl_context"] = ssl.create_default_context()
    elif mode in ("require", "disable"):
        arguments["ssl_context"] = mode == "require"
    elif mode != "prefer":
        raise ConfigError(
            f"the option sslmode of the setting 'database' is {str(mode)[:50]!r}\n"
            "there are disable, prefer, require and verify-full\nchoose one of them"
        )
    return arguments


def _words(error: BaseException) -> str:
    """What a driver says went wrong, in one line."""
    told: Any = next(iter(error.args), type(error).__name__)
    return str(told.get("M", told) if isinstance(told, dict) else told).splitlines()[0][:200]
