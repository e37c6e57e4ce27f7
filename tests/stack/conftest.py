"""Servers over the real scheduler and the tagged runner, for every test of HTTP."""

from __future__ import annotations

from collections.abc import Iterator

import httpx2
import pytest
from virtual_server import World, world


@pytest.fixture(scope="session")
def shared() -> Iterator[World]:
    """One server for all tests that do not change it."""
    with world() as made:
        yield made


@pytest.fixture
def http(shared: World) -> Iterator[httpx2.Client]:
    with shared.http() as client:
        yield client
