"""Tables are made once, by whoever comes first; an older Kvasir leaves a newer one's alone."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import inspect, select, text, update

from kvasir.catalog import migrations, tables
from kvasir.catalog.catalog import open_catalog
from kvasir.catalog.database import Database, open_database
from kvasir.catalog.migrations import STEPS, migrate
from kvasir.core.errors import CatalogUnavailable, ConfigError


@contextlib.contextmanager
def opened(url: str) -> Iterator[Database]:
    with contextlib.closing(open_database(url)) as database:
        yield database


def version(database: Database) -> int:
    with database.read() as connection:
        return int(connection.execute(select(tables.schema_version.c.version)).scalar_one())


def test_the_steps_make_the_tables_that_the_statements_are_for(url: str) -> None:
    with opened(url) as database:
        migrate(database)
        with database.read() as connection:
            found = inspect(connection)
            assert set(found.get_table_names()) == set(tables.metadata.tables)
            for table in tables.metadata.tables.values():
                made = {c["name"]: c["nullable"] for c in found.get_columns(table.name)}
                assert made == {c.name: c.nullable for c in table.columns}, table.name
                keys = found.get_pk_constraint(table.name)["constrained_columns"]
                assert keys == [c.name for c in table.primary_key], table.name
                assert len(found.get_foreign_keys(table.name)) == len(table.foreign_keys)


def test_opening_again_changes_nothing(url: str) -> None:
    with contextlib.closing(open_catalog(url)) as catalog:
        catalog.tenants.add("ann", 1)
    with contextlib.closing(open_catalog(url)) as catalog:
        assert catalog.tenants.get("ann") is not None
    with opened(url) as database:
        assert version(database) == len(STEPS)


def test_a_later_version_is_refused(url: str) -> None:
    open_catalog(url).close()
    with opened(url) as database:
        with database.write() as connection:
            connection.execute(update(tables.schema_version).values(version=len(STEPS) + 1))
        with pytest.raises(ConfigError, match="a later Kvasir has changed it"):
            migrate(database)
        assert version(database) == len(STEPS) + 1


def test_a_database_of_somebody_else_is_left_alone(url: str) -> None:
    with opened(url) as database:
        with database.write() as connection:
            connection.execute(text("CREATE TABLE orders (id INTEGER)"))
        with pytest.raises(ConfigError, match="something else: orders"):
            migrate(database)
        with database.read() as connection:
            assert inspect(connection).get_table_names() == ["orders"]


def test_each_step_is_done_once_and_whole(url: str) -> None:
    first = ("CREATE TABLE one (id INTEGER)",)
    broken = ("CREATE TABLE two (id INTEGER)", "CREATE TABLE one (id INTEGER)")
    mended = ("CREATE TABLE two (id INTEGER)", "CREATE TABLE three (id INTEGER)")
    with opened(url) as database:
        with pytest.raises(CatalogUnavailable, match="already exists"):
            migrate(database, (first, broken))
        assert version(database) == 1
        with database.read() as connection:
            assert "two" not in inspect(connection).get_table_names()
        migrate(database, (first, mended))
        migrate(database, (first, mended))
        assert version(database) == 2


def test_many_that_start_at_once_migrate_once(url: str) -> None:
    code = f"from kvasir.catalog.catalog import open_catalog; open_catalog({url!r}).close()"
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    with ThreadPoolExecutor(4) as pool:
        for catalog in pool.map(open_catalog, [url] * 8):
            catalog.close()
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    with opened(url) as database:
        assert version(database) == len(STEPS)
        with database.read() as connection:  # one row, made by one of them
            assert len(connection.execute(select(tables.schema_version)).all()) == 1


def test_a_later_step_is_for_both_databases() -> None:
    for dialect, words in migrations._WORDS.items():
        for step in STEPS:
            for statement in step:
                assert "{" not in statement.format(**words), dialect


def test_a_catalog_is_that_of_one_home(url: str) -> None:
    with contextlib.closing(open_catalog(url)) as catalog:
        catalog.claim("a" * 64)
        catalog.claim("a" * 64)
        with pytest.raises(ConfigError, match="another home"):
            catalog.claim("b" * 64)
    with contextlib.closing(open_catalog(url)) as catalog, pytest.raises(ConfigError):
        catalog.claim("b" * 64)


def test_a_new_catalog_is_none_of_a_home_that_has_texts_already(url: str) -> None:
    """Whatever it does not name would be removed from the home: it is refused, each time."""
    with contextlib.closing(open_catalog(url)) as catalog:
        for _ in range(2):
            with pytest.raises(ConfigError, match="they would be removed"):
                catalog.claim("a" * 64, has_texts=True)
        catalog.claim("a" * 64)
        catalog.claim("a" * 64, has_texts=True)
