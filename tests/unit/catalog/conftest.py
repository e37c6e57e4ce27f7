"""The catalog in each kind of database: a file, memory, a real PostgreSQL."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from postgres_server import Postgres, running_postgres

from kvasir.catalog.catalog import Catalog, open_catalog


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A server for all tests of the session; skips where PostgreSQL is not installed."""
    with running_postgres() as made:
        yield made


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database that several processes can open."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/catalog.sqlite"
    server: Postgres = request.getfixturevalue("postgres")
    return server.new_database()


@pytest.fixture(params=["sqlite", "memory", "postgresql"])
def catalog(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Catalog]:
    """An empty catalog, in each kind of database."""
    if request.param == "postgresql":
        server: Postgres = request.getfixturevalue("postgres")
        place = server.new_database()
    else:
        path = f"/{tmp_path}/catalog.sqlite" if request.param == "sqlite" else ""
        place = f"sqlite://{path}"
    with contextlib.closing(open_catalog(place)) as made:
        yield made
