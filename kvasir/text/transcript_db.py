"""The database file of transcripts: opened only if it is ours, private, and emptied thoroughly.

- It has mode 0600. What is deleted is overwritten, in the log too.
- What is no database, is damaged or has other tables is never read, nor what a later version wrote.
- Whoever opens it owns the home: it is locked for one process at a time.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from kvasir.core.errors import ConfigError

log = logging.getLogger(__name__)

FILE_NAME = "transcripts.sqlite"  # in the home
SCHEMA_VERSION = 1
ERRORS = (sqlite3.Error, OSError)  # that using the file may raise
REMOVED = "%s is removed, since nothing can be deleted in it: %s"
_TABLE = (
    "CREATE TABLE transcripts (key BLOB PRIMARY KEY, namespace_tag BLOB, tokenizer TEXT, "
    "n_chars INTEGER, digest BLOB, ids BLOB, checksum BLOB, used INTEGER)"
)
_SCHEMA = [  # all that a file of ours has, as sqlite_schema tells it
    (b"index", b"sqlite_autoindex_transcripts_1", None),
    (b"table", b"transcripts", _TABLE.encode()),
]
_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_TOOBIG}


class _Damaged(OSError):
    """What lies at the path is no file of ours, or not any more."""


class Newer(OSError):
    """The file was written by a later version."""


def forget(path: Path, namespace_tag: bytes | None) -> None:
    """``TranscriptFile.clear`` for a home that nobody serves. Raises ``ConfigError`` likewise."""
    if namespace_tag is not None and path.exists():
        try:
            with contextlib.closing(connect(path, sys.maxsize)) as db:
                delete_of(db, namespace_tag)
            remove_set_aside(path)
            return
        except ERRORS as error:
            log.warning(REMOVED, path, error)
    remove(path)


def connect(path: Path, most_bytes: int) -> sqlite3.Connection:
    """The database at ``path``, made where it is missing, with our table and nothing else.

    Raises ``sqlite3.Error`` or ``OSError``, of which ``is_damage`` tells what is no file of ours.
    """
    _make_private(path, most_bytes)
    db = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, min(most_bytes, 2**30))
        db.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        db.text_factory = bytes  # so that no text can fail to be text
        # alone with the file, so that its index of the log need not lie in a file as well
        for pragma in ("locking_mode = EXCLUSIVE", "trusted_schema = OFF", "cell_size_check = ON"):
            db.execute(f"PRAGMA {pragma}")
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise Newer(f"it has version {version}, this Kvasir knows up to {SCHEMA_VERSION}")
        schema = db.execute("SELECT type, name, sql FROM sqlite_schema ORDER BY type").fetchall()
        if (version, schema) not in ((0, []), (SCHEMA_VERSION, _SCHEMA)):
            raise _Damaged("it has other tables")
        for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "secure_delete = ON"):
            db.execute(f"PRAGMA {pragma}")
        if not schema:
            with transaction(db):
                db.execute(_TABLE)
                db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        db.text_factory = _no_text
    except BaseException:
        db.close()
        raise
    return db


def _no_text(_raw: bytes) -> None:
    """No column that is read holds text; what pretends to be one is damaged."""


@contextlib.contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All that the block writes, or nothing of it."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # some errors have rolled back already
            db.execute("ROLLBACK")
        raise


def delete_of(db: sqlite3.Connection, namespace_tag: bytes) -> list[bytes]:
    """Delete the rows of a namespace, out of the log as well; their keys."""
    with transaction(db):
        found = db.execute("SELECT key FROM transcripts WHERE namespace_tag = ?", [namespace_tag])
        keys = [key for (key,) in found]
        db.execute("DELETE FROM transcripts WHERE namespace_tag = ?", [namespace_tag])
    busy, _, _ = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if busy:
        raise sqlite3.OperationalError("its log is in use")
    return keys


def _make_private(path: Path, most_bytes: int) -> None:
    """Make the file where it is missing, with mode 0600. Refuses what is no regular file."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(path, flags, 0o600)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise _Damaged("it is no regular file")
        logs = [beside.stat().st_size for beside in _logs(path) if beside.exists()]
        if (n_bytes := sum(logs, status.st_size)) > most_bytes:
            raise _Damaged(f"it has {n_bytes:,} bytes")
        if stat.S_IMODE(status.st_mode) != 0o600:
            os.fchmod(fd, 0o600)
    finally:
        os.close(fd)


def is_damage(error: Exception) -> bool:
    """Whether ``error`` says that the file will never be of use."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK)
    return isinstance(error, _Damaged) or code & 0xFF in _DAMAGE


def set_aside_path(path: Path) -> Path:
    """The name under which a damaged file is kept to be looked at; of several, the last."""
    return path.with_name(path.name + ".damaged")


def _logs(path: Path) -> list[Path]:
    """What SQLite keeps beside the file, which must never be read into another one."""
    return [path.with_name(path.name + suffix) for suffix in ("-wal", "-shm", "-journal")]


def set_aside(path: Path) -> None:
    """Give a closed file another name. Raises ``OSError``."""
    path.replace(set_aside_path(path))
    for beside in _logs(path):
        beside.unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Remove a closed file and all that is beside it. Raises ``ConfigError`` if that fails."""
    _unlink(path, *_logs(path), set_aside_path(path))


def remove_set_aside(path: Path) -> None:
    """Remove what was set aside. Raises ``ConfigError`` if that fails."""
    _unlink(set_aside_path(path))


def _unlink(*files: Path) -> None:
    for path in files:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise ConfigError(
                f"cannot remove {path}: {error.strerror}\n"
                "it holds conversations that were to be forgotten\n"
                "remove it yourself"
            ) from error
