"""Every route, by every method, asked by everybody: who gets what.

The table is what is meant, said a second time and apart from the server's own. A route that is not
in it fails; so does one that answers somebody else than it says. To add a route, add its row.
"""

from __future__ import annotations

import itertools
import json
import random
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest
from starlette.routing import compile_path
from virtual_server import WINDOW, make_engine, make_served

from kvasir.cli.listener import Listener, listening_in_background
from kvasir.core.config import Config
from kvasir.service.app import create_app

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
WRONG = "kv_" + "w" * 43
_COUNT = itertools.count()


@dataclass
class Server:
    """A server with two tenants and an admin; the objects that are asked for are alice's."""

    tcp: httpx2.Client
    socket: httpx2.Client
    routes: set[tuple[str, str]]
    keys: dict[str, str] = field(default_factory=dict)
    exported: bytes = b""

    def ask(self, who: str, method: str, path: str, **sent: Any) -> httpx2.Response:
        """The answer to ``who``: a tenant's name, "none", "wrong", or "owner" for the socket."""
        if who == "owner":
            return self.socket.request(method, path, **sent)
        headers = dict(sent.pop("headers", {}))
        if who != "none":
            headers["authorization"] = f"Bearer {self.keys[who]}"
        return self.tcp.request(method, path, headers=headers, **sent)

    def done(self, who: str, method: str, path: str, **sent: Any) -> Any:
        answer = self.ask(who, method, path, **sent)
        assert answer.status_code == 200, answer.text
        return answer.json()


Objects = Callable[[Server], Mapping[str, str]]  # makes what a path names; by parameter


def a_file(server: Server) -> dict[str, str]:
    sent = {"file": ("a.txt", f"Text {next(_COUNT)} of a raven.".encode(), "text/plain")}
    made = server.done("alice", "POST", "/v1/files", files=sent, data={"purpose": "user_data"})
    return {"file_id": made["id"]}


def a_context(server: Server) -> dict[str, str]:
    item = {"type": "input_text", "text": f"Raven {next(_COUNT)} sat on the roof.", "title": "a"}
    made = server.done("alice", "POST", "/v1/contexts", json={"input": [item], "keep": "text"})
    until_s = time.monotonic() + 30
    while made["status"] in ("queued", "in_progress"):
        assert time.monotonic() < until_s, made
        time.sleep(0.005)
        made = server.done("alice", "GET", f"/v1/contexts/{made['id']}")
    return {"context_id": made["id"]}


def a_key(server: Server) -> dict[str, str]:
    made = server.done("admin", "POST", "/v1/admin/keys", json={"tenant": "bob"})
    return {"key_id": made["id"]}


def a_tenant(server: Server) -> dict[str, str]:
    name = f"tenant-{next(_COUNT)}"
    server.done("admin", "POST", "/v1/admin/tenants", json={"name": name})
    return {"name": name}


def nothing(_: Server) -> dict[str, str]:
    return {}


def the_model(_: Server) -> dict[str, str]:
    return {"name": "virtual"}


def fresh_name(_: Server) -> dict[str, Any]:
    return {"json": {"name": f"new-{next(_COUNT)}"}}


def upload(_: Server) -> dict[str, Any]:
    return {"files": {"file": ("b.txt", b"text", "text/plain")}, "data": {"purpose": "user_data"}}


def exported(server: Server) -> dict[str, Any]:
    headers = {"content-type": "application/octet-stream"}
    return {"content": server.exported, "headers": headers}


def body(**fields: Any) -> Callable[[Server], dict[str, Any]]:
    return lambda _: {"json": fields}


@dataclass(frozen=True)
class Row:
    """Who may use a route, of what it is, what is sent, and what they get."""

    who: str  # "open", "tenant", "admin", "owner"
    of: Objects = nothing
    send: Callable[[Server], dict[str, Any]] = lambda _: {}
    ok: int = 200


CHAT = body(messages=[{"role": "user", "content": "Hello"}], max_tokens=1)
TEXT = [{"type": "input_text", "text": "A raven."}]
IN_CONTEXT = "/v1/contexts/{context_id}"

TABLE: dict[tuple[str, str], Row] = {
    ("GET", "/health"): Row("open"),
    ("GET", "/"): Row("tenant"),
    ("GET", "/docs"): Row("tenant"),
    ("GET", "/openapi.json"): Row("tenant"),
    ("HEAD", "/openapi.json"): Row("tenant"),
    ("GET", "/metrics"): Row("tenant"),
    ("POST", "/tokenize"): Row("tenant", send=body(prompt="x")),
    ("POST", "/detokenize"): Row("tenant", send=body(tokens=[1])),
    ("GET", "/tokenizer_info"): Row("tenant"),
    ("POST", "/v1/chat/completions"): Row("tenant", send=CHAT),
    ("POST", "/v1/completions"): Row("tenant", send=body(prompt="x", max_tokens=1)),
    ("GET", "/v1/models"): Row("tenant"),
    ("GET", "/v1/models/{name:path}"): Row("tenant", of=the_model),
    ("GET", "/v1/files"): Row("tenant"),
    ("POST", "/v1/files"): Row("tenant", send=upload),
    ("GET", "/v1/files/{file_id}"): Row("tenant", of=a_file),
    ("GET", "/v1/files/{file_id}/content"): Row("tenant", of=a_file),
    ("DELETE", "/v1/files/{file_id}"): Row("tenant", of=a_file, send=body()),
    ("GET", "/v1/contexts"): Row("tenant"),
    ("POST", "/v1/contexts"): Row("tenant", send=body(input=TEXT, keep="text")),
    ("POST", "/v1/contexts/import"): Row("tenant", send=exported),
    ("GET", IN_CONTEXT): Row("tenant", of=a_context),
    ("PATCH", IN_CONTEXT): Row("tenant", of=a_context, send=body(metadata={"a": "b"})),
    ("POST", IN_CONTEXT): Row("tenant", of=a_context, send=body(metadata={"a": "b"})),
    ("DELETE", IN_CONTEXT): Row("tenant", of=a_context, send=body()),
    ("POST", IN_CONTEXT + "/cancel"): Row("tenant", of=a_context, send=body()),
    ("POST", IN_CONTEXT + "/fork"): Row("tenant", of=a_context, send=body(input=TEXT)),
    ("POST", IN_CONTEXT + "/ask"): Row("tenant", of=a_context, send=body(question="Where?")),
    ("POST", IN_CONTEXT + "/search"): Row("tenant", of=a_context, send=body(query="raven")),
    ("GET", IN_CONTEXT + "/sections"): Row("tenant", of=a_context),
    ("GET", IN_CONTEXT + "/events"): Row("tenant", of=a_context),
    ("GET", IN_CONTEXT + "/export"): Row("tenant", of=a_context),
    ("GET", "/v1/admin/keys"): Row("admin"),
    ("POST", "/v1/admin/keys"): Row("admin", send=body(tenant="bob")),
    ("DELETE", "/v1/admin/keys/{key_id}"): Row("admin", of=a_key, send=body()),
    ("GET", "/v1/admin/tenants"): Row("admin"),
    ("POST", "/v1/admin/tenants"): Row("admin", send=fresh_name),
    ("PATCH", "/v1/admin/tenants/{name}"): Row("admin", of=a_tenant, send=body(disabled=True)),
    ("DELETE", "/v1/admin/tenants/{name}"): Row("admin", of=a_tenant, send=body()),
    ("GET", "/kvasir/cache"): Row("owner"),
    ("DELETE", "/kvasir/cache"): Row("owner", send=body()),
    ("POST", "/kvasir/cache/verify"): Row("owner", send=body()),
}
MAY = {  # which kinds of routes somebody may use
    "none": {"open"},
    "wrong": {"open"},
    "alice": {"open", "tenant"},
    "bob": {"open", "tenant"},
    "admin": {"open", "tenant", "admin"},
    "owner": {"open", "tenant", "admin", "owner"},
}
EVERYBODY = tuple(MAY)
HIS_OWN = {a_file, a_context}  # what there is for alice alone


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("home")
    config = Config(home=home, disk_gib=1)
    client, _, _, geometry = make_engine(stored=config)
    served = make_served(client, geometry, WINDOW, home=home)
    app = create_app(served, config)
    unix = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    unix.bind(str(home / "socket"))
    tcp = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{tcp.getsockname()[1]}"
    listener = Listener(
        app,
        [tcp, unix],
        grace_s=0,
        stop_engine=lambda _: client.stop(),
        on_ready=lambda: None,
    )
    transport = httpx2.HTTPTransport(uds=str(home / "socket"))
    with (
        listening_in_background(listener),
        httpx2.Client(base_url=url, timeout=60) as over_tcp,
        httpx2.Client(transport=transport, base_url="http://x", timeout=60) as over_socket,
    ):
        made = Server(over_tcp, over_socket, set(_leaves(app.router.routes)), {"wrong": WRONG})
        for name in ("alice", "bob", "admin"):
            made.done("owner", "POST", "/v1/admin/tenants", json={"name": name})
            wanted = {"tenant": name, "role": "admin" if name == "admin" else "tenant"}
            made.keys[name] = made.done("owner", "POST", "/v1/admin/keys", json=wanted)["key"]
        path = f"/v1/contexts/{a_context(made)['context_id']}/export"
        made.exported = made.ask("alice", "GET", path).content
        yield made


def _leaves(found: Any) -> Iterator[tuple[str, str]]:
    """Every method and path that the application dispatches."""
    for route in found:
        if hasattr(route, "path"):
            yield from ((method, route.path) for method in route.methods)
        else:
            yield from _leaves(route.original_router.routes)


def concrete(path: str, names: Mapping[str, str]) -> str:
    for name, value in names.items():
        path = re.sub(rf"{{{name}(:path)?}}", value, path)
    return path


def code(answer: httpx2.Response) -> str:
    return str(answer.json()["error"]["code"])


def test_every_route_has_its_row(server: Server) -> None:
    assert server.routes == set(TABLE)


@pytest.mark.parametrize("who", EVERYBODY)
@pytest.mark.parametrize(("method", "path"), TABLE)
def test_each_gets_what_is_meant_for_it(server: Server, method: str, path: str, who: str) -> None:
    row = TABLE[method, path]
    names = row.of(server)
    sent = row.send(server)
    at = concrete(path, names)
    answer = server.ask(who, method, at, **sent)
    if row.who in MAY[who] and (row.of not in HIS_OWN or who == "alice"):
        assert answer.status_code == row.ok, answer.text
        return
    if who in ("none", "wrong"):
        assert answer.status_code == 401
        assert method == "HEAD" or code(answer) == "invalid_api_key"
        return
    assert answer.status_code == 404
    # in the same words as what there is not
    if row.who in MAY[who]:
        absent = {name: value[:-6] + "absent" for name, value in names.items()}
    else:
        absent = dict.fromkeys(names, "absent")
        path = path.replace("/v1/admin", "/v1/nimda").replace("/kvasir", "/krasiv")
    missing = server.ask(who, method, concrete(path, absent), **sent)
    assert missing.status_code == 404
    assert _words(answer, at) == _words(missing, concrete(path, absent))
    assert set(answer.headers) == set(missing.headers)


def _words(answer: httpx2.Response, path: str) -> str:
    """An answer without what names the thing that was asked for."""
    text = answer.text.replace(path, "…")
    for part in path.split("/"):
        if len(part) > 5:
            text = text.replace(part, "…")
    return text


@pytest.mark.parametrize("who", EVERYBODY)
@pytest.mark.parametrize("path", sorted({path for _, path in TABLE}))
def test_other_methods_do_nothing(server: Server, path: str, who: str) -> None:
    """A path that is for somebody tells which methods it has; to others it is not there."""
    at = concrete(path, dict.fromkeys(("file_id", "context_id", "key_id", "name"), "x"))
    declared = [  # of all rows that the path is in
        (method, row.who)
        for (method, template), row in TABLE.items()
        if compile_path(template)[0].match(at)
    ]
    for method in METHODS:
        if method in {method for method, _ in declared}:
            continue
        answer = server.ask(who, method, at, json={} if method != "HEAD" else None)
        allowed = {m for m, kind in declared if kind in MAY[who]}
        nothing_there = 401 if who in ("none", "wrong") else 404
        assert answer.status_code == (405 if allowed else nothing_there), method
        if allowed:
            assert set(answer.headers["allow"].split(", ")) == allowed


def test_lists_have_nothing_of_others(server: Server) -> None:
    mine, context = a_file(server)["file_id"], a_context(server)["context_id"]
    for path, id_ in (("/v1/files", mine), ("/v1/contexts", context)):
        assert id_ in server.ask("alice", "GET", path).text
        for who in ("bob", "admin", "owner"):
            assert id_ not in server.ask(who, "GET", path).text
            after = server.ask(who, "GET", path, params={"after": id_})
            nowhere = server.ask(who, "GET", path, params={"after": id_[:-6] + "absent"})
            assert after.status_code == nowhere.status_code == 400
            assert after.text.replace(id_, "") == nowhere.text.replace(id_[:-6] + "absent", "")


@pytest.mark.parametrize("who", ["bob", "admin", "owner"])
def test_nothing_is_made_of_what_is_not_ones_own(server: Server, who: str) -> None:
    """Ids of others in bodies are as ids of nothing."""
    names = a_file(server) | a_context(server)
    messages = [{"role": "user", "content": "x"}]
    made: list[tuple[str, dict[str, Any]]] = []
    for tail in ("", "absent"):
        file_id, context_id = (id_[: len(id_) - len(tail)] + tail for id_ in names.values())
        made += [
            ("/v1/contexts", {"file_ids": [file_id]}),
            ("/v1/completions", {"prompt": "x", "context": context_id, "max_tokens": 1}),
            ("/v1/chat/completions", {"model": f"virtual@{context_id}", "messages": messages}),
        ]
    answers = [server.ask(who, "POST", path, json=sent) for path, sent in made]
    assert {answer.status_code for answer in answers} <= {400, 404}
    said = [_words(answer, "/".join(names.values()) + "/absent") for answer in answers]
    for one, other in ((0, 3), (1, 4), (2, 5)):
        assert answers[one].status_code == answers[other].status_code
        assert json.loads(answers[one].text)["error"]["code"] == code(answers[other])
    assert all("raven" not in words.lower() for words in said)


def test_hostile_keys_over_the_wire_are_a_401_or_no_request_at_all(server: Server) -> None:
    chance = random.Random(7)
    address = (server.tcp.base_url.host, server.tcp.base_url.port)
    seen = set()
    for _ in range(400):
        value = chance.randbytes(chance.randrange(80))
        if chance.random() < 0.5:
            value = b"Bearer " + server.keys["alice"].encode()[: chance.randrange(45)] + value
        request = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        with socket.create_connection(address, timeout=10) as sock:
            sock.sendall(request + b"Authorization: " + value + b"\r\n\r\n")
            answer = b""
            while part := sock.recv(65536):
                answer += part
        assert b'"object":"list"' not in answer, value
        seen.add(answer[9:12])
    assert seen <= {b"401", b"400"}
    assert b"401" in seen
