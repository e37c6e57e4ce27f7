"""`kvasir cache` on the folder itself and through a running server."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request
from stored_samples import keep, tag
from typer.testing import CliRunner

from kvasir.cli import connect, main
from kvasir.cli.home import Home, open_home
from kvasir.cli.listener import Listener, listening_in_background
from kvasir.tiers.record import VERSION

RUN = CliRunner()
GONE = bytes(range(16))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("KVASIR_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TZ", "UTC")
    return open_home(tmp_path / "home")


@pytest.fixture
def names(home: Home) -> list[str]:
    """Two records of ``local`` and one of somebody who is not configured."""
    local = tag(home, "local")
    return [
        keep(home, 1, namespace_tag=local),
        keep(home, 2, namespace_tag=GONE, compute_s=0.0),
        keep(home, 3, namespace_tag=local),
    ]


def run(*arguments: str, stdin: str | None = None) -> Any:
    return RUN.invoke(main.app, ["cache", *arguments], input=stdin)


def told(*arguments: str) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def files(home: Home) -> set[str]:
    return {path.stem for path in home.stored.glob("*.kv")}


def test_a_home_that_keeps_nothing_says_so(home: Home) -> None:
    assert run("list").stdout == "nothing is stored\n"
    assert run("size").stdout == "nothing is stored\n"
    assert run("clear").stdout == "0 records cleared\n"
    assert run("verify").exit_code == 0


def test_all_records_are_listed_last_used_first(names: list[str]) -> None:
    listed = told("list")["records"]
    assert [record["name"] for record in listed] == names[::-1]
    assert [record["tenant"] for record in listed] == ["local", GONE.hex(), "local"]
    first = listed[0]
    assert (first["tier"], first["tokens"], first["start"]) == ("disk", 8, 0)
    assert (first["used_s"], first["compute_s"], first["format_version"]) == (3000.0, 2.0, 2)
    assert first["differs_in"] is None  # there is no model to compare with
    assert listed[1]["compute_s"] is None


def test_people_get_columns(names: list[str]) -> None:
    lines = run("list").stdout.splitlines()
    assert len(lines) == 4
    assert "1970-01-01 00:50" in lines[1]
    assert names[2][:12] in lines[1]
    assert len(run("size").stdout.splitlines()) == 4


def test_sums_are_by_tier_and_tenant(home: Home, names: list[str]) -> None:
    sums = told("size")
    assert set(sums) == {"tiers", "tenants"}
    (disk,) = sums["tiers"]
    on_disk = sum(path.stat().st_size for path in home.stored.iterdir())
    assert (disk["records"], disk["tokens"], disk["bytes"]) == (3, 24, on_disk)
    assert {share["tenant"]: share["records"] for share in sums["tenants"]} == {
        "local": 2,
        GONE.hex(): 1,
    }


def test_what_is_shown_can_be_narrowed(names: list[str]) -> None:
    assert [r["name"] for r in told("list", "--tenant", GONE.hex())["records"]] == [names[1]]
    assert told("list", "--tier", "host")["records"] == []
    assert [s["tenant"] for s in told("size", "--tenant", "local")["tenants"]] == ["local"]


@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        ((), set()),
        (("--tier", "disk"), set()),
        (("--tier", "host"), {0, 1, 2}),
        (("--tenant", "local"), {1}),
        (("--tenant", GONE.hex(), "--tier", "disk"), {0, 2}),
        (("--tenant", "ff" * 16), {0, 1, 2}),
    ],
)
def test_what_is_named_is_cleared(
    home: Home, names: list[str], arguments: tuple[str, ...], left: set[int]
) -> None:
    assert told("clear", *arguments) == {"cleared": 3 - len(left)}
    assert files(home) == {names[at] for at in left}


@pytest.mark.parametrize("tenant", ["bob", "", "Local", "../local", "0" * 31, "ff" * 17])
def test_a_tenant_that_nobody_is_clears_nothing(home: Home, names: list[str], tenant: str) -> None:
    result = run("clear", "--tenant", tenant)
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 3
    assert "local" in result.stderr
    assert files(home) == set(names)


@pytest.mark.parametrize("action", ["list", "size", "clear"])
@pytest.mark.parametrize("tier", ["device", "DISK", ""])
def test_a_tier_that_is_none_is_wrong_usage(
    home: Home, names: list[str], action: str, tier: str
) -> None:
    assert run(action, "--tier", tier).exit_code == 2
    assert files(home) == set(names)


@pytest.mark.parametrize(("answer", "cleared"), [("y\n", True), ("n\n", False), ("", False)])
def test_on_a_terminal_clearing_is_asked_about(
    home: Home, names: list[str], answer: str, cleared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kvasir.cli import cache

    monkeypatch.setattr(cache, "_on_a_terminal", lambda: True)
    result = run("clear", stdin=answer)
    assert "local" in result.stderr  # it is shown what would go
    assert files(home) == (set() if cleared else set(names))
    assert run("clear", "--yes").exit_code == 0
    assert files(home) == set()


def test_damage_is_found_told_and_gone(home: Home, names: list[str]) -> None:
    assert run("verify").exit_code == 0
    path = home.stored / f"{names[1]}.kv"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    result = run("verify", "--json")
    assert result.exit_code == 1
    verified = json.loads(result.stdout)
    assert [record["name"] for record in verified["damaged"]] == [names[1]]
    assert (verified["records"], verified["unreadable"]) == (3, 0)
    assert files(home) == {names[0], names[2]}
    assert run("verify").exit_code == 0


def test_a_file_that_is_no_record_is_told_too(home: Home, names: list[str]) -> None:
    (home.stored / f"{names[0]}.kv").write_bytes(b"nonsense")
    result = run("verify")
    assert result.exit_code == 1
    assert "1 file gone: no whole records" in result.stdout


def plant(home: Home) -> dict[str, set[str]]:
    """Files that are no whole records, and what a newer server has written."""
    newer = b"KVASIRKV" + (VERSION + 1).to_bytes(4, "little") + b"and more"
    files = {
        "damaged": {"0" * 64 + ".kv": b"nonsense"},
        "begun": {"1" * 64 + ".part": b"begun"},
        "newer": {"2" * 64 + ".kv": newer},
    }
    for group in files.values():
        for name, content in group.items():
            (home.stored / name).write_bytes(content)
    return {kind: set(group) for kind, group in files.items()}


def in_folder(home: Home) -> set[str]:
    return {path.name for path in home.stored.iterdir()}


@pytest.mark.parametrize("action", ["list", "size"])
def test_looking_changes_nothing_and_takes_nothing_from_verify(
    home: Home, names: list[str], action: str
) -> None:
    planted = plant(home)
    before = in_folder(home)
    (tier,) = told("size")["tiers"]
    assert tier["records"] == len(told("list")["records"]) == 3
    run(action)
    assert in_folder(home) == before
    assert run("verify").exit_code == 1
    assert in_folder(home) == before - planted["damaged"] - planted["begun"]
    assert run("verify").exit_code == 0


def test_clearing_leaves_nothing_but_what_is_a_newer_servers(home: Home, names: list[str]) -> None:
    planted = plant(home)
    result = run("clear")
    assert result.stdout == "3 records cleared\n"
    assert "left alone: 1 file of a newer Kvasir" in result.stderr
    assert in_folder(home) == planted["newer"]


def test_a_folder_that_cannot_be_used_is_said_with_what_to_do(home: Home) -> None:
    home.stored.symlink_to("/")
    result = run("list")
    assert result.exit_code == 1
    assert str(home.stored) in result.stderr
    assert "Traceback" not in result.stderr


def test_listing_drops_nothing_for_want_of_room(
    home: Home, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVASIR_DISK_GIB", "0")
    assert len(told("list")["records"]) == 3


def test_an_owner_that_does_not_answer_is_named(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect, "_WAIT_FOR_OWNER_S", 0.2)
    with home.own():
        result = run("list")
    assert result.exit_code == 1
    assert f"in use by process {os.getpid()}" in result.stderr


class Server:
    """What a server would say, and what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.app = FastAPI()
        record = {
            "name": "a" * 64, "tier": "host", "tenant": "alice", "tokens": 64, "start": None,
            "bytes": 2**30, "used_s": 1.0, "compute_s": None, "format_version": 1,
            "differs_in": ["weights", "tokenizer"],
        }  # fmt: skip
        sums = {"tier": "host", "records": 1, "tokens": 64, "bytes": 2**30}
        tier = sums | {"cap_bytes": 2**31, "failure": "writing KV failed (EIO)"}
        tenants = [sums | {"tenant": "alice"}]

        @self.app.get("/v1/models")
        def models() -> dict[str, object]:
            return {"data": [{"id": "served"}]}

        @self.app.get("/kvasir/cache")
        def show() -> dict[str, object]:
            return {"records": [record], "tiers": [tier], "tenants": tenants}

        @self.app.post("/kvasir/cache/verify")
        def verify(request: Request) -> dict[str, object]:
            self.asked.append(("verify", request.headers["content-type"]))
            return {"damaged": [record]}

        @self.app.delete("/kvasir/cache")
        def clear(request: Request) -> dict[str, object]:
            self.asked.append((request.url.query, request.headers["content-type"]))
            return {"cleared": 1}


@pytest.fixture
def server(home: Home) -> Iterator[Server]:
    made = Server()
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(stack.enter_context(home.own()).bind_socket())
        listener = Listener(
            made.app, [sock], grace_s=0, stop_engine=lambda _: None, on_ready=lambda: None
        )
        stack.enter_context(listening_in_background(listener))
        yield made


def test_a_running_server_is_asked(home: Home, server: Server) -> None:
    assert [record["tenant"] for record in told("list")["records"]] == ["alice"]
    listed = run("list").stdout
    assert "of no use now: other weights and tokenizer" in listed
    assert "format 1" in listed
    assert "of 2.0 GiB; writing KV failed (EIO)" in run("size").stdout
    assert told("clear") == {"cleared": 1}
    assert told("clear", "--tier", "disk", "--tenant", "a&b=c") == {"cleared": 1}
    assert server.asked == [
        ("", "application/json"),
        ("tier=disk&tenant=a%26b%3Dc", "application/json"),
    ]
    assert not home.stored.exists()  # the server's own


def test_what_a_server_finds_damaged_is_told(server: Server) -> None:
    result = run("verify")
    assert result.exit_code == 1
    assert "1 record damaged and gone" in result.stdout
    assert "the server reads 1 record, 1.0 GiB" in result.stderr
