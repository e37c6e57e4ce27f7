"""What the home's owner sees of stored KV, and nobody else; metrics and health of the tiers."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import hmac
import json
import socket
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import httpx2
import pytest
from virtual_server import listening, make_engine, make_served, world

from kvasir.core.config import Config
from kvasir.core.errors import EngineStopped
from kvasir.core.ports import Engine, EngineStatus
from kvasir.core.realm import namespace_tag
from kvasir.core.tiers import KeptRecord, Tier, TierStatus
from kvasir.service.app import create_app

SECRET = b"s" * 32  # of make_served
KEY = "a" * 43
CONFIG = Config(keys={hashlib.sha256(KEY.encode()).hexdigest(): "alice"})
BEARER = {"authorization": f"Bearer {KEY}"}
JSON = {"content-type": "application/json"}
GONE = bytes(range(16))  # the tag of a tenant that is not configured any more


def tag(tenant: str) -> bytes:
    return namespace_tag(hmac.digest(SECRET, tenant.encode(), "sha256"))


def record(name: str, tier: Tier, namespace_tag: bytes, **fields: object) -> KeptRecord:
    whole = {
        "tokens": 64,
        "start": 0,
        "n_bytes": 1000,
        "used_s": 5.0,
        "compute_s": 0.5,
        "format_version": 2,
        "differs_in": (),
    }
    return KeptRecord(name=name, tier=tier, namespace_tag=namespace_tag, **(whole | fields))  # type: ignore[arg-type]


RECORDS = (
    record("a1", Tier.DISK, tag("alice"), used_s=7.0),
    record("a2", Tier.HOST, tag("alice"), tokens=32),
    record("l1", Tier.DISK, tag("local"), used_s=9.0, differs_in=("weights", "tokenizer")),
    record("g1", Tier.DISK, GONE, start=-1, compute_s=0.0, format_version=1, used_s=1.0),
)
TIERS = (
    TierStatus(
        tier=Tier.HOST, cap_bytes=10, used_bytes=9, records=1, tokens=32, read_bytes_per_s=2.5
    ),
    TierStatus(
        tier=Tier.DISK,
        cap_bytes=5000,
        used_bytes=3000,
        records=3,
        tokens=192,
        saved_bytes=11,
        loaded_bytes=12,
        evicted_records=13,
        damaged_records=14,
        unsaved_blocks=15,
        write_bytes_per_s=16.5,
        failure="writing KV failed (No space left on device)",
    ),
)


class Keeping:
    """An engine that stores what the test says, and remembers what it was asked."""

    def __init__(self, inner: Engine) -> None:
        self.inner = inner
        self.cleared: list[tuple[Tier | None, bytes | None]] = []
        self.threads: set[str] = set()
        self.stopped = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def status(self) -> EngineStatus:
        return dataclasses.replace(
            self.inner.status(),
            tiers=TIERS,
            reused_tokens=100,
            reused_by_tier={Tier.DEVICE: 60, Tier.DISK: 40},
            restored_blocks=21,
            audited_blocks=22,
            audit_failures=23,
        )

    def kept(self) -> Sequence[KeptRecord]:
        self._note()
        return RECORDS

    def clear(self, tier: Tier | None, namespace_tag: bytes | None) -> int:
        self._note()
        self.cleared.append((tier, namespace_tag))
        return 3

    def verify(self) -> Sequence[KeptRecord]:
        self._note()
        return RECORDS[:1]

    def _note(self) -> None:
        self.threads.add(threading.current_thread().name)
        if self.stopped:
            raise EngineStopped("the engine has been stopped")


@dataclasses.dataclass
class Kept:
    engine: Keeping
    owner: httpx2.Client
    tcp: httpx2.Client


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    """One application behind the home's socket and behind TCP, with a key configured."""
    client, _, _, geometry = make_engine()
    engine = Keeping(client)
    app = create_app(make_served(engine, geometry), CONFIG)
    path = tmp_path_factory.mktemp("home") / "socket"
    unix = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    unix.bind(str(path))
    tcp = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{tcp.getsockname()[1]}"
    with contextlib.ExitStack() as stack:
        stack.callback(client.stop)
        stack.enter_context(listening(app, unix, tcp))
        transport = httpx2.HTTPTransport(uds=str(path))
        owner = stack.enter_context(httpx2.Client(transport=transport, base_url="http://localhost"))
        yield Kept(engine, owner, stack.enter_context(httpx2.Client(base_url=url)))


def test_the_owner_sees_all_records_last_used_first(server: Kept) -> None:
    told = server.owner.get("/kvasir/cache").json()
    assert [record["name"] for record in told["records"]] == ["l1", "a1", "a2", "g1"]
    assert told["records"][0] == {
        "name": "l1",
        "tier": "disk",
        "tenant": "local",
        "tokens": 64,
        "start": 0,
        "bytes": 1000,
        "used_s": 9.0,
        "compute_s": 0.5,
        "format_version": 2,
        "differs_in": ["weights", "tokenizer"],
    }
    old = told["records"][-1]
    assert (old["tenant"], old["start"], old["compute_s"]) == (GONE.hex(), None, None)
    assert old["format_version"] == 1


def test_sums_are_by_tier_and_by_tenant(server: Kept) -> None:
    told = server.owner.get("/kvasir/cache").json()
    host, disk = told["tiers"]
    assert (host["tier"], host["records"], host["failure"]) == ("host", 1, None)
    assert disk == {
        "tier": "disk",
        "records": 3,
        "tokens": 192,
        "bytes": 3000,
        "cap_bytes": 5000,
        "failure": "writing KV failed (No space left on device)",
    }
    shares = {(sums["tier"], sums["tenant"]): sums["tokens"] for sums in told["tenants"]}
    assert shares == {
        ("host", "alice"): 32,
        ("disk", "alice"): 64,
        ("disk", "local"): 64,
        ("disk", GONE.hex()): 64,
    }


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("", (None, None)),
        ("?tier=disk", (Tier.DISK, None)),
        ("?tier=host", (Tier.HOST, None)),
        ("?tenant=alice", (None, tag("alice"))),
        ("?tier=disk&tenant=local", (Tier.DISK, tag("local"))),
        (f"?tenant={GONE.hex()}", (None, GONE)),
    ],
)
def test_the_owner_clears_what_is_named(
    server: Kept, query: str, wanted: tuple[Tier | None, bytes | None]
) -> None:
    server.engine.cleared.clear()
    answer = server.owner.delete(f"/kvasir/cache{query}", headers=JSON)
    assert (answer.status_code, answer.json()) == (200, {"cleared": 3})
    assert server.engine.cleared == [wanted]


@pytest.mark.parametrize(
    "query",
    [
        "?tier=device",
        "?tier=DISK",
        "?tier=",
        "?tenant=",
        "?tenant=bob",
        "?tenant=Alice",
        f"?tenant={GONE.hex()}00",
        f"?tenant={GONE.hex().upper()}",
        f"?tenant={'g' * 32}",
        "?tenant=" + "\u0661" * 32,
        "?tenant=alice&tenant=local",
        "?tennant=alice",
        "?tier=disk&x",
        "?tier=disk;tenant=alice",
        "?tenant=%00",
        "?tenant=" + "x" * 5000,
    ],
)
def test_a_wish_that_is_not_understood_clears_nothing(server: Kept, query: str) -> None:
    server.engine.cleared.clear()
    answer = server.owner.delete(f"/kvasir/cache{query}", headers=JSON)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"]
    assert len(answer.content) < 1000
    assert server.engine.cleared == []


def test_the_owner_is_told_what_did_not_verify(server: Kept) -> None:
    answer = server.owner.post("/kvasir/cache/verify", headers=JSON)
    assert [record["name"] for record in answer.json()["damaged"]] == ["a1"]


def test_the_event_loop_waits_for_nothing(server: Kept) -> None:
    server.engine.threads.clear()
    server.owner.get("/kvasir/cache")
    server.owner.post("/kvasir/cache/verify", headers=JSON)
    server.owner.delete("/kvasir/cache", headers=JSON)
    assert server.engine.threads
    assert not any("http" in name for name in server.engine.threads)


def test_an_engine_that_has_ended_is_said(server: Kept) -> None:
    server.engine.stopped = True
    try:
        for method, path in (
            ("GET", "/kvasir/cache"),
            ("DELETE", "/kvasir/cache"),
            ("POST", "/kvasir/cache/verify"),
        ):
            answer = server.owner.request(method, path, headers=JSON)
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "server_stopping"
    finally:
        server.engine.stopped = False


METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")


@pytest.mark.parametrize("headers", [BEARER, {}, {"authorization": "Bearer nonsense"}])
@pytest.mark.parametrize("path", ["/kvasir/cache", "/kvasir/cache/verify"])
def test_over_tcp_the_routes_are_as_a_missing_one(
    server: Kept, path: str, headers: dict[str, str]
) -> None:
    server.engine.cleared.clear()
    missing = path.replace("cache", "cachf")
    before = _counted(server, path)
    for method in METHODS:
        for more in (JSON, {}):
            here, nowhere = (
                server.tcp.request(method, at, headers=headers | more) for at in (path, missing)
            )
            assert here.status_code == nowhere.status_code
            assert here.status_code in ((404, 415) if headers is BEARER else (401,))
            assert here.content.replace(b"cache", b"cachf") == nowhere.content
            assert set(here.headers) == set(nowhere.headers)
    assert server.engine.cleared == []
    assert _counted(server, path) == before


def _counted(server: Kept, path: str) -> list[str]:
    page = server.tcp.get("/metrics", headers=BEARER).text
    return [line for line in page.splitlines() if f'route="{path}"' in line]


@pytest.mark.parametrize("forged", ["x-forwarded-for", "forwarded", "x-real-ip", "host"])
def test_no_header_makes_tcp_the_homes_socket(server: Kept, forged: str) -> None:
    for value in ("/home/kvasir.sock", "unix", "localhost"):
        answer = server.tcp.get("/kvasir/cache", headers=BEARER | {forged: value})
        assert answer.status_code in (400, 403, 404)


@pytest.mark.parametrize("method", ["PUT", "PATCH", "POST"])
def test_the_owner_is_told_which_methods_there_are(server: Kept, method: str) -> None:
    assert server.owner.request(method, "/kvasir/cache", headers=JSON).status_code == 405
    assert server.owner.get("/kvasir/cache/verify").status_code == 405
    assert server.owner.delete("/kvasir/cache").status_code == 415


def test_metrics_tell_of_every_tier(server: Kept) -> None:
    page = server.tcp.get("/metrics", headers=BEARER).text
    lines = dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
    expected = {
        'kvasir_cached_tokens_total{source="device"}': 60,
        'kvasir_cached_tokens_total{source="host"}': 0,
        'kvasir_cached_tokens_total{source="disk"}': 40,
        'kvasir_tier_bytes{kind="used",tier="disk"}': 3000,
        'kvasir_tier_bytes{kind="cap",tier="disk"}': 5000,
        'kvasir_tier_records{tier="disk"}': 3,
        'kvasir_tier_tokens{tier="host"}': 32,
        'kvasir_tier_saved_bytes_total{tier="disk"}': 11,
        'kvasir_tier_loaded_bytes_total{tier="disk"}': 12,
        'kvasir_tier_evicted_records_total{tier="disk"}': 13,
        'kvasir_tier_damaged_records_total{tier="disk"}': 14,
        'kvasir_tier_unsaved_blocks_total{tier="disk"}': 15,
        'kvasir_tier_read_bytes_per_second{tier="host"}': 2.5,
        'kvasir_tier_write_bytes_per_second{tier="disk"}': 16.5,
        'kvasir_tier_degraded{tier="host"}': 0,
        'kvasir_tier_degraded{tier="disk"}': 1,
        "kvasir_restored_blocks_total": 21,
        "kvasir_audited_blocks_total": 22,
        "kvasir_audit_failures_total": 23,
    }
    assert {name: float(lines[name]) for name in expected} == expected


def test_a_degraded_tier_still_serves(server: Kept) -> None:
    answer = server.tcp.get("/health")
    assert answer.status_code == 200
    assert (answer.json()["status"], answer.json()["degraded"]) == ("ok", ["disk"])


@pytest.mark.parametrize("streaming", [False, True])
def test_the_first_token_that_differs_is_told_with_what_is_kept(streaming: bool) -> None:
    def diagnostics(prompt: str) -> dict[str, object] | None:
        body = {"prompt": prompt, "max_tokens": 1, "stream": streaming}
        if streaming:
            body["stream_options"] = {"include_usage": True}
        answer = http.post("/v1/completions", json=body)
        if not streaming:
            return answer.json().get("prompt_cache_diagnostics")
        data = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
        return json.loads(data[-2]).get("prompt_cache_diagnostics")

    with world() as own, own.http() as http:
        diagnostics("x" * 100 + "abc")
        assert diagnostics("x" * 100 + "zbc") == {
            "prompt": 0,
            "reason": "different_text",
            "first_different_token": 100,
            "token_id": own.served.codec.tokenizer.encode("z")[0],
            "text": "z",
            "kept_text": "a",
        }
        assert diagnostics("x" * 100 + "zbc") is None
        other = diagnostics("y" * 50)
        assert other is not None
        assert (other["reason"], other["text"], other["kept_text"]) == ("different_text", "y", "x")


def test_nothing_of_another_tenant_is_told_as_kept() -> None:
    keys = {hashlib.sha256(key.encode()).hexdigest(): key for key in ("alice", "bob")}
    with world(Config(keys=keys)) as own, own.http() as http:
        for tenant in keys.values():
            answer = http.post(
                "/v1/completions",
                json={"prompt": f"shared beginning, {tenant}", "max_tokens": 1},
                headers={"authorization": f"Bearer {tenant}"},
            )
            told = answer.json()["prompt_cache_diagnostics"]
            assert (told["reason"], told["kept_text"]) == ("first_seen", None)
