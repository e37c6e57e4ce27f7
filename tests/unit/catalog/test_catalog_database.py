"""What a database may be, what it is refused for, and what is never said of it."""

from __future__ import annotations

import contextlib
import sqlite3
import stat
import sys
import threading
from pathlib import Path

import pytest

from kvasir.catalog import database as module
from kvasir.catalog.catalog import open_catalog
from kvasir.catalog.database import open_database
from kvasir.core.errors import CatalogUnavailable, ConfigError


def test_the_file_and_its_logs_are_the_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    path.touch(mode=0o644)
    with contextlib.closing(open_catalog(f"sqlite:///{path}")) as catalog:
        catalog.tenants.add("ann", 1)
        beside = sorted(tmp_path.iterdir())
        assert [p.name for p in beside] == ["c.sqlite", "c.sqlite-shm", "c.sqlite-wal"]
        assert {stat.S_IMODE(p.stat().st_mode) for p in beside} == {0o600}


def test_settings_of_every_connection(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path}/c.sqlite")
    with contextlib.closing(database), database.read() as one:
        pragmas = {
            name: one.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "foreign_keys", "synchronous", "busy_timeout")
        }
    assert pragmas == {
        "journal_mode": "wal",
        "foreign_keys": 1,
        "synchronous": 2,
        "busy_timeout": 30_000,
    }


@pytest.mark.parametrize(
    "url",
    [
        "",
        "catalog.sqlite",
        "mysql://root:hunter2@host/db",
        "sqlite://hunter2/path",
        "sqlite:///x?mode=hunter2",
        "postgresql+asyncpg://u:hunter2@h/d",
        "postgresql://u:hunter2@h:port/d",
        "postgresql://u:hunter2@h/d?options=x",
        "postgresql://u:hunter2@h/d?sslmode=maybe",
        "postgresql://u:hunter2@127.0.0.1:9/d",  # nobody listens there
        "\x00",
    ],
)
def test_what_cannot_be_used_is_refused_without_telling_a_password(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_catalog(url)
    assert "hunter2" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 3


def test_without_its_driver_postgresql_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pg8000", None)
    with pytest.raises(ConfigError, match="extra `postgres`"):
        open_catalog("postgresql://u:p@h/d")


def test_what_is_no_file_of_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database at all, but long enough to look at" * 99)
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("text", "folder", "link", "missing/deep"):
        with pytest.raises(ConfigError, match="name another"):
            open_catalog(f"sqlite:///{tmp_path / name}")
    assert not (tmp_path / "elsewhere").exists()


def test_a_database_that_stays_busy_is_told_and_nothing_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BUSY_S", 0.05)
    path = tmp_path / "c.sqlite"
    with contextlib.closing(open_catalog(f"sqlite:///{path}")) as catalog:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(CatalogUnavailable, match="was not done"):
                catalog.tenants.add("ann", 1)
            assert catalog.tenants.list() == ()  # readers do not wait for a writer
        assert catalog.tenants.add("ann", 1).name == "ann"


def test_a_transaction_that_raises_leaves_nothing(catalog: module.Database) -> None:
    from catalog_samples import context_row, section

    twice = [section(0), section(0)]  # the second breaks the key
    with pytest.raises(Exception, match=r"(?i)unique"):
        catalog.contexts.add(context_row(), twice)
    assert catalog.contexts.get("ann", "ctx_1") is None
    assert catalog.contexts.sections("ctx_1") == ()


def test_threads_may_share_it(catalog: module.Database) -> None:
    def work(number: int) -> None:
        for turn in range(10):
            catalog.tenants.add(f"t{number}-{turn}", turn)
            catalog.tenants.list()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(catalog.tenants.list()) == 60
