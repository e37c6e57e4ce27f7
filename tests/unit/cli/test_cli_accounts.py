"""`kvasir keys` and `kvasir tenants`, in the home's database and through a running server."""

from __future__ import annotations

import contextlib
import json
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from stored_samples import keep, tag
from typer.testing import CliRunner
from virtual_server import make_engine, make_served

from kvasir.catalog.catalog import Catalog, open_catalog
from kvasir.catalog.values import FileRow
from kvasir.cli import connect, main
from kvasir.cli.home import Home, open_home
from kvasir.cli.listener import Listener, listening_in_background
from kvasir.core.config import Config, database_url
from kvasir.service.app import create_app

RUN = CliRunner()
KEY = re.compile(r"kv_[A-Za-z0-9_-]{43}")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("KVASIR_HOME", str(tmp_path / "100% home"))
    return open_home(tmp_path / "100% home")


@contextlib.contextmanager
def served(home: Home) -> Iterator[None]:
    client, _, _, geometry = make_engine()
    with home.own() as owned, owned.bind_socket() as sock:
        app = create_app(
            make_served(client, geometry, home=home.path, secret=owned.secret()),
            Config(home=home.path),
        )
        listener = Listener(
            app, [sock], grace_s=0, stop_engine=lambda _: client.stop(), on_ready=lambda: None
        )
        with listening_in_background(listener):
            yield


@pytest.fixture(params=["in the database", "through the server"])
def anywhere(request: pytest.FixtureRequest, home: Home) -> Iterator[Home]:
    """A home, on which a server runs or does not."""
    with served(home) if "server" in request.param else contextlib.nullcontext():
        yield home


@contextlib.contextmanager
def catalog_of(home: Home) -> Iterator[Catalog]:
    with contextlib.closing(open_catalog(database_url(Config(home=home.path)))) as catalog:
        yield catalog


def run(*arguments: str) -> Any:
    return RUN.invoke(main.app, list(arguments))


def told(*arguments: str) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_a_key_is_printed_once_and_alone(anywhere: Home) -> None:
    made = run("keys", "create", "--label", "laptop", "--role", "admin")
    assert made.exit_code == 0, made.stderr
    key = made.stdout.strip()
    assert KEY.fullmatch(key)
    assert key not in made.stderr
    assert "the first key" in made.stderr
    assert "first" not in run("keys", "create").stderr
    listed = run("keys", "list").stdout
    assert "laptop" in listed
    assert key[-4:] in listed
    assert key not in listed + json.dumps(told("keys", "list"))
    with catalog_of(anywhere) as catalog:
        found = catalog.keys.find(key, 10)
        assert found is not None
        assert (found.tenant, found.role, found.label) == ("local", "admin", "laptop")
    assert stat.S_IMODE((anywhere.path / "catalog.sqlite").stat().st_mode) == 0o600


def test_a_revoked_key_admits_nobody(anywhere: Home) -> None:
    made = told("keys", "create", "--expires-in", "90d")
    # the clock may have gone on between the two
    assert 0 <= 90 * 86_400 - (made["expires_at"] - made["created_at"]) <= 5
    revoked = run("keys", "revoke", made["id"])
    assert revoked.exit_code == 0, revoked.stderr
    assert "answers everybody" in revoked.stderr
    assert "revoked" in run("keys", "list").stdout
    with catalog_of(anywhere) as catalog:
        assert catalog.keys.find(made["key"], 10) is None
    missing = run("keys", "revoke", "key_nothing")
    assert missing.exit_code == 1
    assert "no key 'key_nothing'" in missing.stderr


def test_the_life_of_a_tenant(anywhere: Home) -> None:
    assert "no tenants" in run("tenants", "list").stdout
    assert run("tenants", "create", "ann").exit_code == 0
    again = run("tenants", "create", "ann")
    assert again.exit_code == 1
    assert "already" in again.stderr
    key = told("keys", "create", "--tenant", "ann")["key"]
    assert re.search(r"ann +1", run("tenants", "list").stdout)
    with catalog_of(anywhere) as catalog:
        assert told("tenants", "disable", "ann")["disabled_at"] is not None
        assert catalog.keys.find(key, 10) is None
        assert told("tenants", "enable", "ann")["disabled_at"] is None
        assert catalog.keys.find(key, 10) is not None
        gone = run("tenants", "rm", "ann", "--yes")
        assert gone.exit_code == 0, gone.stderr
        assert catalog.keys.find(key, 10) is None
        assert catalog.tenants.list() == ()
    for command in ("disable", "enable", "rm"):
        result = run("tenants", command, "ann")
        assert result.exit_code == 1
        assert "no tenant 'ann'" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("keys", "create", "--tenant", "bob"),
        ("keys", "create", "--tenant", "../x"),
        ("keys", "create", "--role", "root"),
        ("keys", "create", "--expires-in", "soon"),
        ("keys", "create", "--expires-in", "0d"),
        ("keys", "create", "--label", "x" * 201),
        ("tenants", "create", "Bob"),
        ("tenants", "create", "a/b"),
        ("tenants", "rm", "../keys"),
    ],
)
def test_what_does_not_do_is_refused_in_words(anywhere: Home, arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.exit_code in (1, 2)
    assert "bug" not in result.stderr
    assert result.stderr.strip()
    assert told("keys", "list")["data"] == []
    assert [t["name"] for t in told("tenants", "list")["data"]] in ([], ["local"])


def test_with_a_tenant_go_its_files_and_what_was_stored_for_it(home: Home) -> None:
    run("tenants", "create", "ann")
    hers = keep(home, 1, namespace_tag=tag(home, "ann"))
    other = keep(home, 2, namespace_tag=tag(home, "local"))
    listed = told("cache", "list")["records"]
    assert {r["name"]: r["tenant"] for r in listed} == {hers: "ann", other: "local"}
    with catalog_of(home) as catalog:
        for id_, tenant in (("file-1", "ann"), ("file-2", "local")):
            catalog.files.add(
                FileRow(
                    id=id_, tenant=tenant, filename="x", purpose="p", n_bytes=1, sha256="0",
                    media_type="text/plain", status="processed", created_at=1,
                )
            )  # fmt: skip
    assert run("tenants", "rm", "ann", "-y").exit_code == 0
    assert [r["name"] for r in told("cache", "list")["records"]] == [other]
    with catalog_of(home) as catalog:
        assert catalog.files.ids() == {"file-2"}


def test_a_change_through_the_server_holds_at_once(home: Home) -> None:
    """Over TCP, while commands change who may come in."""
    import socket

    client, _, _, geometry = make_engine()
    with home.own() as owned, owned.bind_socket() as unix:
        made = make_served(client, geometry, home=home.path, secret=owned.secret())
        tcp = socket.create_server(("127.0.0.1", 0))
        listener = Listener(
            create_app(made, Config(home=home.path)),
            [unix, tcp],
            grace_s=0,
            stop_engine=lambda _: client.stop(),
            on_ready=lambda: None,
        )
        url = f"http://127.0.0.1:{tcp.getsockname()[1]}"
        with listening_in_background(listener), httpx2.Client(base_url=url) as http:

            def status(key: str | None) -> int:
                headers = {} if key is None else {"authorization": f"Bearer {key}"}
                return int(http.get("/v1/models", headers=headers).status_code)

            assert status(None) == 200
            key = told("keys", "create")
            assert (status(None), status(key["key"]), status(key["key"] + "x")) == (401, 200, 401)
            assert told("tenants", "disable", "local")
            assert status(key["key"]) == 401
            assert told("tenants", "enable", "local")
            assert status(key["key"]) == 200
            assert told("keys", "revoke", key["id"])
            assert (status(None), status(key["key"])) == (200, 200), "no key is needed any more"


def test_without_a_server_none_is_started(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("an engine was built")

    monkeypatch.setattr(connect, "_own_server", fail)
    assert run("keys", "list").stdout == "there are no keys\n"


def test_a_label_does_nothing_to_a_terminal(home: Home) -> None:
    run("keys", "create", "--label", "a\x1b[31mb")
    assert "a?[31mb" in run("keys", "list").stdout


def test_with_another_database_nothing_of_the_home_is_removed(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("tenants", "create", "ann").exit_code == 0
    text = home.path / "files" / f"file-{0:032x}.data"
    text.parent.mkdir()
    text.write_bytes(b"Mine.")
    monkeypatch.setenv("KVASIR_DATABASE", f"sqlite:///{tmp_path / 'other.sqlite'}")
    refused = run("tenants", "rm", "ann", "--yes")
    assert refused.exit_code != 0
    assert "they would be removed" in refused.stderr
    assert text.read_bytes() == b"Mine."
    monkeypatch.undo()
