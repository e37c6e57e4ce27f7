"""The table of who may use what, and a route that is not in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from virtual_server import make_engine, make_served

from kvasir.core.config import Config
from kvasir.service import access
from kvasir.service.access import Access, check, is_open, may
from kvasir.service.app import create_app
from kvasir.service.errors import ApiError
from kvasir.service.identity import Caller

NOBODY = None
TENANT = Caller("ann", b"")
ADMIN = Caller("ann", b"", "admin")
OWNER = Caller("local", b"", "admin", owner=True)


@pytest.mark.parametrize(
    ("caller", "kinds"),
    [
        (NOBODY, {Access.OPEN}),
        (TENANT, {Access.OPEN, Access.TENANT}),
        (ADMIN, {Access.OPEN, Access.TENANT, Access.ADMIN}),
        (OWNER, set(Access)),
    ],
)
def test_who_may_what(caller: Caller | None, kinds: set[Access]) -> None:
    assert {kind for kind in Access if may(caller, kind)} == kinds


def status(method: str, path: str, caller: Caller | None) -> int:
    try:
        check(method, path, caller)
    except ApiError as error:
        return error.status
    return 200


def test_what_one_may_not_use_is_not_there() -> None:
    for caller, expected in ((TENANT, 404), (ADMIN, 200), (OWNER, 200)):
        assert status("GET", "/v1/admin/keys", caller) == expected
    assert status("PUT", "/v1/admin/keys", TENANT) == 404
    assert status("PUT", "/v1/admin/keys", ADMIN) == 405
    assert status("GET", "/kvasir/cache", ADMIN) == 404


def test_only_health_is_open() -> None:
    assert [path for path in access.RULES if is_open(path)] == ["/health"]


@pytest.fixture
def app() -> Iterator[FastAPI]:
    client, _, _, geometry = make_engine()
    yield create_app(make_served(client, geometry), Config())
    client.stop()


def added(app: FastAPI, path: str) -> list[str]:
    """Routes at and below ``path`` that nobody has declared, added in every way that there is."""
    called: list[str] = []

    async def endpoint(request: Request) -> PlainTextResponse:
        called.append(request.url.path)
        return PlainTextResponse("secret")

    router = APIRouter()
    router.get(f"{path}/one")(endpoint)
    app.include_router(router)
    app.include_router(router, prefix="/prefixed")
    app.get(f"{path}/two")(endpoint)
    app.post(f"{path}/two")(endpoint)
    app.delete("/v1/models/{name:path}")(endpoint)
    app.router.routes.insert(0, Route("/plain", endpoint))
    app.mount("/mounted", PlainTextResponse("secret"))
    return called


def test_a_route_that_declares_nothing_answers_nobody(app: FastAPI) -> None:
    called = added(app, "/new")
    with TestClient(app, base_url="http://localhost") as http:
        paths = ["/new/one", "/new/two", "/prefixed/new/one", "/plain", "/mounted", "/mounted/x"]
        for path in paths:
            for method in ("GET", "POST"):
                answer = http.request(method, path, headers={"content-type": "application/json"})
                assert answer.status_code == 404, path
                assert answer.json()["error"]["code"] == "unknown_url"
        assert http.request("DELETE", "/v1/models/x").status_code == 405
    assert called == []


def test_nor_does_one_whose_path_a_wider_row_covers(app: FastAPI) -> None:
    called: list[str] = []

    async def endpoint(request: Request) -> PlainTextResponse:
        called.append(request.url.path)
        return PlainTextResponse("secret")

    router = APIRouter()
    router.get("/v1/models/{name:path}/secret")(endpoint)
    app.include_router(router)
    app.router.routes.insert(0, app.router.routes.pop())  # else the wider route has it
    with TestClient(app, base_url="http://localhost") as http:
        answer = http.get("/v1/models/virtual/secret")
    assert (answer.status_code, called) == (404, [])
