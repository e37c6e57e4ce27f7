"""The door in a real server: raw requests, the home's socket, keys, tenants, every route."""

from __future__ import annotations

import hashlib
import json
import re
import socket
from pathlib import Path
from typing import Any

import httpx2
import pytest
from virtual_server import World, listening, make_engine, make_served, world

from kvasir.core.config import Config
from kvasir.service.app import create_app

KEYS = {"alice": "a" * 43, "bob": "b" * 43}
CONFIG = Config(keys={hashlib.sha256(key.encode()).hexdigest(): t for t, key in KEYS.items()})


def bearer(tenant: str) -> dict[str, str]:
    return {"authorization": f"Bearer {KEYS[tenant]}"}


def raw(world_: World, data: bytes) -> tuple[int, bytes]:
    """Status and the rest of the answer to ``data``, byte for byte as given."""
    with socket.create_connection(("127.0.0.1", world_.port), timeout=10) as sock:
        sock.sendall(data)
        answer = b""
        while part := sock.recv(65536):
            answer += part
    match = re.match(rb"HTTP/1.1 (\d{3})", answer)
    assert match, answer[:200]
    return int(match[1]), answer


def request_bytes(target: bytes, *headers: bytes, host: bytes = b"localhost") -> bytes:
    lines = [b"GET " + target + b" HTTP/1.1", b"Host: " + host, b"Connection: close", *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n"


@pytest.mark.parametrize(
    "data",
    [
        request_bytes(b"/v1/models", host=b"evil.example"),
        request_bytes(b"/v1/models", b"Host: localhost"),
        request_bytes(b"/v1/models", b"Host: evil.example"),
        request_bytes(b"http://localhost/v1/models", host=b"evil.example"),
        request_bytes(b"/v1/models", b"Origin: http://evil.example"),
        request_bytes(b"/v1/models", b"Origin: null"),
        request_bytes(b"/v1/models", b"X-Forwarded-Host: localhost", host=b"evil.example"),
        b"GET /v1/models HTTP/1.1\r\nConnection: close\r\n\r\n",
        b"GET /v1/models HTTP/1.0\r\n\r\n",
    ],
)
def test_a_foreign_page_is_not_let_in(shared: World, data: bytes) -> None:
    status, answer = raw(shared, data)
    assert status in (400, 403)
    assert b'"object":"list"' not in answer


@pytest.mark.parametrize(
    "target",
    [b"http://localhost/v1/models", b"//v1/models", b"/v1/models%2f", b"/v1/models/", b"/V1"],
)
def test_other_spellings_of_a_path_are_not_dispatched(shared: World, target: bytes) -> None:
    assert raw(shared, request_bytes(target))[0] == 404


@pytest.mark.parametrize(
    "target",
    [
        b"/health/../v1/models",
        b"/health%2f..%2fv1/models",
        b"/v1/models?/health",
        b"/v1/models#/health",
        b"/v1/models;/health",
        b"http://localhost/health/../v1/models",
        b"/health/",
        b"/health%00",
        b"//health",
    ],
)
def test_no_spelling_of_the_open_path_opens_another(keyed: World, target: bytes) -> None:
    status, answer = raw(keyed, request_bytes(target))
    assert status in (400, 401)
    assert b'"object":"list"' not in answer


@pytest.fixture(scope="module")
def keyed() -> Any:
    with world(CONFIG) as made:
        yield made


def routes(world_: World) -> list[tuple[str, str]]:
    """Every method and path, from the application itself and not from what it says of itself."""
    found = [("GET", "/openapi.json")]
    for path, operations in world_.app.openapi()["paths"].items():
        found += [(method.upper(), path) for method in operations]
    return found


def test_the_documents_routes_are_all_routes(keyed: World) -> None:
    documented = {path for _, path in routes(keyed)}
    served = {
        path.replace("{name:path}", "{name}")
        for router in (keyed.app.router,)
        for path in _paths(router.routes)
    }
    assert served == documented


def _paths(found: Any) -> set[str]:
    paths: set[str] = set()
    for route in found:
        if hasattr(route, "path"):
            paths.add(route.path)
        else:
            inner = getattr(route, "original_router", None) or getattr(route, "router", None)
            paths |= _paths(inner.routes if inner is not None else route.routes)
    return paths


def test_every_route_but_health_needs_a_known_key(keyed: World) -> None:
    """Who gets what with a key is in test_http_routes."""
    with keyed.http() as http:
        for method, path in routes(keyed):
            for headers in ({}, {"authorization": "Bearer nonsense"}, {"x-api-key": KEYS["bob"]}):
                response = http.request(method, path, headers=headers)
                if path == "/health":
                    assert response.status_code == 200
                else:
                    assert response.status_code == 401, (method, path)
                    assert response.json()["error"]["code"] == "invalid_api_key"
                    assert response.headers["www-authenticate"] == "Bearer"


def test_tenants_do_not_share_what_is_cached(keyed: World) -> None:
    def cached(tenant: str) -> int:
        response = http.post(
            "/v1/completions",
            json={"prompt": "shared secret " * 50, "max_tokens": 1, "user": "alice"},
            headers=bearer(tenant),
        )
        return int(response.json()["usage"]["prompt_tokens_details"]["cached_tokens"])

    with keyed.http() as http:
        assert cached("alice") == 0
        assert cached("bob") == 0
        assert cached("alice") > 0
        assert cached("bob") > 0


def test_the_homes_socket_needs_neither_host_nor_key(tmp_path: Path) -> None:
    client, _, _, geometry = make_engine()
    served = make_served(client, geometry)
    path = tmp_path / "socket"
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(str(path))
    try:
        with (
            listening(create_app(served, CONFIG), sock),
            httpx2.Client(
                transport=httpx2.HTTPTransport(uds=str(path)), base_url="http://anything"
            ) as http,
        ):
            assert http.get("/v1/models").status_code == 200
            assert http.get("/v1/models", headers={"x-forwarded-for": "1.2.3.4"}).status_code == 200
            answer = http.post("/v1/completions", json={"prompt": "x", "max_tokens": 1})
            assert answer.status_code == 200
            assert http.post("/v1/completions", content="x").status_code == 415
    finally:
        client.stop()


def test_no_answer_names_a_secret(keyed: World) -> None:
    with keyed.http() as http:
        for method, path in routes(keyed):
            body = {"json": {"prompt": "x", "tokens": [1]}} if method == "POST" else {}
            text = http.request(method, path, headers=bearer("alice"), **body).text
            for secret in (*KEYS.values(), *CONFIG.keys, "s" * 32, "alice"):
                assert secret not in text, (method, path)


def test_no_origin_is_ever_allowed_across(http: httpx2.Client, shared: World) -> None:
    preflight = http.options(
        "/v1/chat/completions",
        headers={"origin": "http://evil.example", "access-control-request-method": "POST"},
    )
    assert preflight.status_code == 403
    own = http.get("/v1/models", headers={"origin": shared.url})
    assert own.status_code == 200
    for response in (preflight, own):
        assert not [name for name in response.headers if name.startswith("access-control")]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_what_a_form_can_send_is_refused(http: httpx2.Client, kind: str) -> None:
    body = json.dumps({"prompt": "x"}).encode()
    response = http.post("/v1/completions", content=body, headers={"content-type": kind})
    assert response.status_code == 415
