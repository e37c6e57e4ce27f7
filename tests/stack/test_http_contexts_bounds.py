"""What contexts over HTTP do at their bounds: too much text, no room, no tier, no database."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest
from context_calls import completed, create
from virtual_server import World, world

from kvasir.contexts import filing
from kvasir.core.config import Config
from kvasir.core.errors import CatalogUnavailable
from kvasir.service.contexts import wishes
from kvasir.service.contexts.transfer import _metadata


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    home: Path = tmp_path_factory.mktemp("home")
    with world(stored=Config(home=home, disk_gib=1)) as one:
        yield one


def text_input(text: str = "The raven came in May. " * 20) -> list[dict[str, str]]:
    return [{"type": "input_text", "text": text, "title": "a.txt"}]


def test_how_an_earlier_reading_ended_is_not_told_of_the_next_one(made: World) -> None:
    with made.http() as http:
        body = {"input": text_input("Twice. " * 60)}
        context = completed(http, create(http, **body)["id"])
        contexts = made.served.catalog.contexts
        told = {"status": "failed", "error": "It was stopped."}
        contexts.conclude("local", context["id"], "context.failed", told, 1, status="failed")
        with http.stream("POST", "/v1/contexts", json={**body, "stream": True}) as reply:
            lines = [line[7:] for line in reply.iter_lines() if line.startswith("event: ")]
        assert lines[0] == "context.in_progress"
        assert lines[-2:] == ["context.completed", "context"]
        assert "context.failed" not in lines


def test_a_file_that_is_named_many_times_is_counted_before_it_is_in_memory(
    made: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wishes, "MOST_CHARS", 3000)
    with made.http() as http:
        upload = {"file": ("notes.txt", b"The raven came in May. " * 50)}
        file = http.post("/v1/files", files=upload).json()
        context = create(http, file_ids=[file["id"]] * 2)
        refused = http.post("/v1/contexts", json={"file_ids": [file["id"]] * 3})
        assert refused.status_code == 400
        assert "3,000 characters" in refused.json()["error"]["message"]
        fork = http.post(
            f"/v1/contexts/{context['id']}/fork", json={"input": text_input("More. " * 200)}
        )
        assert fork.status_code == 400, fork.text


def test_what_no_answer_could_say_again_is_not_taken_in(made: World) -> None:
    assert _metadata({"a\ud800": "b\udfff", "n": 5}) == {"a?": "b?", "n": "5"}
    assert len(_metadata({str(n): "x" for n in range(100)})) == 16


def test_a_full_disk_is_said_and_leaves_nothing(
    made: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(filing, "extract", full)
    before = sorted((made.served.home / "files").iterdir())
    with made.http() as http:
        reply = http.post("/v1/files", files={"file": ("notes.txt", b"The raven came in May.")})
        assert (reply.status_code, reply.json()["error"]["code"]) == (507, "storage_full")
    assert sorted((made.served.home / "files").iterdir()) == before


def test_a_tier_that_there_is_not_is_refused_beforehand() -> None:
    with world() as bare, bare.http() as http:
        refused = http.post("/v1/contexts", json={"input": text_input(), "tier": "disk"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (507, "storage_full")
        assert create(http, input=text_input())["receipt"]["tier"] == "memory"


def test_that_the_database_is_away_is_said_without_saying_where_it_is(
    made: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object, **__: object) -> None:
        raise CatalogUnavailable("the database /srv/secret/catalog.sqlite cannot be used")

    monkeypatch.setattr(type(made.served.catalog.contexts), "list", away)
    with made.http() as http:
        reply = http.get("/v1/contexts")
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "catalog_unavailable")
    assert "secret" not in reply.text
