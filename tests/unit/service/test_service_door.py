"""The door and identity, on ASGI scopes as a server makes them."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from kvasir.catalog.catalog import open_catalog
from kvasir.core.config import Config
from kvasir.core.errors import CatalogUnavailable, ConfigError
from kvasir.service.access import CALLER
from kvasir.service.door import Door
from kvasir.service.identity import Identity, check_bind, is_loopback

SECRET = b"s" * 32
KEY = "k" * 43
KEYS = {hashlib.sha256(KEY.encode()).hexdigest(): "alice"}
JSON = (b"content-type", b"application/json")


def knock(
    *headers: tuple[bytes, bytes],
    path: str | None = None,
    method: str = "GET",
    config: Config | None = None,
    identity: Identity | None = None,
    server: tuple[str, int | None] = ("127.0.0.1", 8000),
    client: tuple[str, int] | None = ("127.0.0.1", 5000),
    host: bytes | None = b"localhost:8000",
) -> tuple[int, Any, Any]:
    """(status, caller, error) of a request that meets the door; 200 means it was let in."""
    config = config or Config()
    seen: list[Any] = []
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope[CALLER])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    door = Door(app, config=config, identity=identity or Identity(config.keys, SECRET))
    path = path or ("/v1/models" if method == "GET" else "/v1/completions")
    own = [] if host is None else [(b"host", host)]
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": b"",
        "headers": [*own, *headers],
        "server": server,
        "client": client,
    }
    asyncio.run(door(scope, receive, send))
    assert (b"x-content-type-options", b"nosniff") in sent[0]["headers"]
    assert not any(name.startswith(b"access-control") for name, _ in sent[0]["headers"])
    error = None if sent[0]["status"] == 200 else json.loads(sent[1]["body"])["error"]
    return sent[0]["status"], seen[0] if seen else None, error


@pytest.mark.parametrize(
    "host",
    [b"localhost", b"localhost:1", b"LOCALHOST:8000", b"127.0.0.1:8000", b"127.9.9.9", b"[::1]:80"],
)
def test_loopback_names_are_let_in_with_any_port(host: bytes) -> None:
    assert knock(host=host)[0] == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        (b"evil.example", 403),
        (b"localhost.evil.example", 403),
        (b"127.0.0.1.evil.example", 403),
        (b"0.0.0.0:8000", 403),
        (b"192.168.1.7:8000", 403),
        (b"[::2]", 403),
        (b"2130706433", 403),
        (b"localhost@evil.example", 400),
        (b"localhost/evil", 400),
        (b"localhost:8000:8000", 400),
        (b"localhost:", 400),
        (b"localhost:x", 400),
        (b"", 400),
        (b" localhost", 400),
        (b"localhost\xe9", 400),
        (b"a" * 300, 400),
        (None, 400),
    ],
)
def test_other_hosts_are_refused(host: bytes | None, status: int) -> None:
    assert knock(host=host)[0] == status


def test_two_host_headers_are_refused() -> None:
    assert knock((b"host", b"localhost"))[0] == 400


def test_hosts_can_be_allowed() -> None:
    config = Config(allowed_hosts=("Box.lan",), host="10.0.0.5")
    assert knock(host=b"box.lan:8000", config=config)[0] == 200
    assert knock(host=b"10.0.0.5:8000", config=config)[0] == 200
    assert knock(host=b"0.0.0.0", config=Config(host="0.0.0.0"))[0] == 403  # noqa: S104


@pytest.mark.parametrize(
    "origin", [b"http://localhost:8000", b"http://127.0.0.1:8000", b"http://[::1]:8000"]
)
def test_the_servers_own_pages_may_ask(origin: bytes) -> None:
    assert knock((b"origin", origin))[0] == 200


@pytest.mark.parametrize(
    "origin",
    [
        b"http://evil.example",
        b"http://evil.example:8000",
        b"http://localhost:3000",
        b"http://localhost",
        b"https://localhost",
        b"null",
        b"",
        b"file://",
        b"http://localhost:99999",
        b"chrome-extension://abc",
        b"http://localhost:8000.evil.example",
    ],
)
def test_pages_of_other_origins_may_not(origin: bytes) -> None:
    assert knock((b"origin", origin))[0] == 403
    assert knock((b"origin", b"http://localhost:8000"), (b"origin", origin))[0] == 403


def test_a_page_may_ask_through_the_name_that_it_was_served_under() -> None:
    config = Config(allowed_hosts=("box.lan",))
    inside = (b"origin", b"http://box.lan:9000")
    assert knock(inside, host=b"box.lan:9000", config=config)[0] == 200
    assert knock(inside, host=b"box.lan:8000", config=config)[0] == 403


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"text/plain",
        b"application/x-www-form-urlencoded",
        b"multipart/form-data; boundary=x",
        b"application/json; charset=utf-16",
        b"application/jsonp",
        b"",
    ],
)
def test_bodies_must_be_json(value: bytes | None) -> None:
    headers = [] if value is None else [(b"content-type", value)]
    assert knock(*headers, method="POST")[0] == 415


def test_json_bodies_are_let_in_uncompressed() -> None:
    assert knock(JSON, method="POST")[0] == 200
    charset = (b"content-type", b'Application/JSON; charset="UTF-8"')
    assert knock(charset, method="POST")[0] == 200
    assert knock(JSON, (b"content-encoding", b"gzip"), method="POST")[0] == 415
    assert knock(JSON, (b"content-type", b"text/plain"), method="POST")[0] == 415


def test_without_keys_everyone_is_the_local_tenant() -> None:
    status, caller, _ = knock((b"authorization", b"Bearer whatever"))
    assert status == 200
    assert caller.tenant == "local"
    assert caller.namespace == hmac.digest(SECRET, b"local", "sha256")
    assert "namespace" not in repr(caller)


def test_a_key_names_its_tenant() -> None:
    config = Config(keys=KEYS)
    for value in (f"Bearer {KEY}", f"bearer   {KEY} "):
        status, caller, _ = knock((b"authorization", value.encode()), config=config)
        assert (status, caller.tenant) == (200, "alice")
        assert caller.namespace == hmac.digest(SECRET, b"alice", "sha256")


@pytest.mark.parametrize(
    "values",
    [
        [],
        [b""],
        [b"Bearer"],
        [b"Bearer "],
        [b"Bearer wrong"],
        [b"Basic " + KEY.encode()],
        [KEY.encode()],
        [b"Bearer " + KEY.encode() + b"x"],
        [b"Bearer " + KEY[:-1].encode()],
        [b"Bearer " + next(iter(KEYS)).encode()],
        [b"Bearer " + b"x" * 10_000],
        [b"Bearer \xff\x00"],
        [b"Bearer " + KEY.encode(), b"Bearer " + KEY.encode()],
    ],
)
def test_anything_but_one_known_key_is_a_401(values: list[bytes]) -> None:
    headers = [(b"authorization", value) for value in values]
    for path in ("/", "/v1/models", "/metrics", "/docs", "/openapi.json", "/nope", "/health/"):
        status, _, error = knock(*headers, path=path, config=Config(keys=KEYS))
        assert status == 401
        assert error["code"] == "invalid_api_key"
        assert KEY not in json.dumps(error)


def test_health_is_open_and_has_no_caller() -> None:
    assert knock(path="/health", config=Config(keys=KEYS))[:2] == (200, None)
    assert knock(path="/health", host=b"evil.example", config=Config(keys=KEYS))[0] == 403


def test_the_homes_socket_is_the_owner() -> None:
    config = Config(keys=KEYS)
    status, caller, _ = knock(
        host=None, server=("/home/x/socket", None), client=None, config=config
    )
    assert (status, caller.tenant) == (200, "local")


@pytest.mark.parametrize(
    ("server", "client"),
    [
        (("127.0.0.1", 8000), None),
        (("/home/x/socket", None), ("127.0.0.1", 1)),
        (("127.0.0.1", None), None),
    ],
)
def test_nothing_else_is_taken_for_the_homes_socket(server: Any, client: Any) -> None:
    assert knock(server=server, client=client, config=Config(keys=KEYS))[0] == 401


@pytest.mark.parametrize("path", ["/nope", "/v1", "/v1/model", "/V1/models", "//v1/models", ""])
def test_what_the_table_does_not_name_is_not_dispatched(path: str) -> None:
    for method in ("GET", "POST", "DELETE", "OPTIONS", "NONSENSE"):
        status, _, error = knock(JSON, path=path or "x", method=method)
        assert (status, error["code"]) == (404, "unknown_url")


def test_a_method_that_the_table_does_not_name_is_told_from_a_missing_path() -> None:
    status, _, error = knock(JSON, path="/v1/models", method="DELETE")
    assert (status, error["code"]) == (405, "method_not_allowed")


@pytest.mark.parametrize("path", ["/kvasir/cache", "/v1/admin/keys", "/v1/admin/tenants/ann"])
def test_what_is_not_for_the_caller_is_as_what_there_is_not(path: str) -> None:
    for method in ("GET", "POST", "DELETE", "PUT", "HEAD"):
        here = knock(JSON, path=path, method=method)
        nowhere = knock(JSON, path=path + "x/y", method=method)
        assert here[0] == nowhere[0] == 404
        assert here[2]["code"] == nowhere[2]["code"] == "unknown_url"
        assert here[2]["message"].replace(path, "") == nowhere[2]["message"].replace(
            path + "x/y", ""
        )


def test_where_the_catalog_cannot_be_asked_nobody_is_let_in() -> None:
    catalog = open_catalog("sqlite://")

    def broken() -> bool:
        raise CatalogUnavailable("the disk is gone")

    catalog.keys.any_unrevoked = broken  # type: ignore[method-assign]
    status, caller, error = knock(identity=Identity({}, SECRET, catalog))
    assert (status, caller, error["code"]) == (503, None, "catalog_unavailable")
    assert knock(path="/health", identity=Identity({}, SECRET, catalog))[0] == 200


def test_websockets_are_closed() -> None:
    sent: list[Message] = []

    async def fail(*_: Any) -> None:
        raise AssertionError("let in")

    async def send(message: Message) -> None:
        sent.append(message)

    door = Door(fail, config=Config(), identity=Identity({}, SECRET))
    asyncio.run(door({"type": "websocket"}, fail, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_namespaces_depend_on_tenant_and_secret() -> None:
    def namespace(tenant: str, secret: bytes) -> bytes:
        identity = Identity({hashlib.sha256(b"key").hexdigest(): tenant}, secret)
        return asyncio.run(identity.identify([b"Bearer key"])).namespace

    spaces = {namespace(t, s) for t in ("a", "b") for s in (b"1" * 32, b"2" * 32)}
    assert len(spaces) == 4


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "box.lan", ""])  # noqa: S104
def test_an_open_bind_needs_keys(host: str) -> None:
    with pytest.raises(ConfigError, match="kvasir keys create"):
        check_bind(Config(host=host))
    check_bind(Config(host=host), active_keys=1)
    check_bind(Config(host=host, keys=KEYS))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.1.2.3"])
def test_a_loopback_bind_does_not(host: str) -> None:
    check_bind(Config(host=host))
    assert is_loopback(host)
