"""Contexts over HTTP on the virtual engine: made, read, asked, forked, cancelled, deleted, and what
is refused. Answers are functions of every token that was read, so wrong KV gives wrong text."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from virtual_server import World, world

from kvasir.contexts.outline import unpacked
from kvasir.core.config import Config
from kvasir.sched.virtual import expected_answer

TEXT = "The raven sat on the roof. It was the third of May. Nobody had seen it come. " * 8


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def made(home: Path) -> Iterator[World]:
    with world(stored=Config(home=home, disk_gib=1)) as one:
        yield one


def create(http: httpx2.Client, **body: Any) -> dict[str, Any]:
    reply = http.post("/v1/contexts", json=body)
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


def completed(http: httpx2.Client, context_id: str) -> dict[str, Any]:
    until_s = time.monotonic() + 30
    while time.monotonic() < until_s:
        one = dict(http.get(f"/v1/contexts/{context_id}").json())
        if one["status"] not in ("queued", "in_progress"):
            return one
        time.sleep(0.02)
    raise AssertionError("it is still being read")


def text_input(text: str = TEXT, title: str = "a.txt") -> list[dict[str, str]]:
    return [{"type": "input_text", "text": text, "title": title}]


def test_a_text_is_read_once_and_questions_compute_only_themselves(made: World) -> None:
    with made.http() as http:
        context = create(http, input=text_input(), name="raven")
        context = completed(http, context["id"])
        assert context["status"] == "completed"
        assert context["progress"]["processed_tokens"] == context["tokens"] > 600
        assert context["usage"]["computed_tokens"] == context["tokens"]
        assert context["receipt"] == {
            "tier": "disk",
            "until": context["expires_at"],
            "survives_restart": True,
            "survives_memory_pressure": True,
            "bytes": context["bytes"],
        }
        reply = http.post(
            "/v1/chat/completions",
            json={
                "messages": [{"role": "user", "content": "When?"}],
                "context": "raven",
                "max_tokens": 8,
                "temperature": 0,
            },
        ).json()
        usage = reply["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] == context["tokens"]
        assert usage["context_tokens"] == context["tokens"]
        assert usage["dropped_tokens"] == 0
