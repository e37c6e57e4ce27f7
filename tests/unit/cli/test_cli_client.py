"""What the client makes of a server's answer, good or broken."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvasir.cli.client import (
    AnswerEnd,
    AnswerText,
    Client,
    NoServer,
    ReadProgress,
    ServerError,
    _error_of,
    _events_of,
)
from kvasir.cli.show import took
from kvasir.core.errors import ContextTooLong, KvasirError


def _lines(*chunks: object) -> Iterator[str]:
    for chunk in chunks:
        yield ": alive"
        yield f"data: {chunk if isinstance(chunk, str) else json.dumps(chunk)}"
        yield ""


def _text(text: str, reason: str | None = None) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": reason}]}


_USAGE = {
    "choices": [],
    "usage": {
        "prompt_tokens": 10,
        "completion_tokens": 2,
        "prompt_tokens_details": {"cached_tokens": 7},
    },
}


def test_a_whole_stream() -> None:
    progress = {"prompt": 0, "total": 10, "cache": 7, "processed": 8, "time_ms": 1, "eta_s": 0.5}
    chunks = ({"choices": [], "prompt_progress": progress}, _text("Hel"), _text("lo", "stop"))
    assert list(_events_of(_lines(*chunks, _USAGE, "[DONE]"))) == [
        ReadProgress(8, 10, 7, 0.5),
        AnswerText("Hel"),
        AnswerText("lo"),
        AnswerEnd("stop", 10, 7, 2, None),
    ]


def test_what_came_from_the_disk_is_told() -> None:
    usage = json.loads(json.dumps(_USAGE))
    details = usage["usage"]["prompt_tokens_details"]
    details["cached_tokens_by_tier"] = {"memory": 3, "disk": 4}
    (end,) = _events_of(_lines(usage, "[DONE]"))
    assert isinstance(end, AnswerEnd)
    assert end.disk_tokens == 4
    assert "7 reused (4 from disk)" in took(end, first_text_s=1.0, total_s=1.0)


def test_the_reason_why_nothing_was_reused_is_kept() -> None:
    usage = {**_USAGE, "prompt_cache_diagnostics": {"reason": "evicted"}}
    (end,) = _events_of(_lines(usage, "[DONE]"))
    assert isinstance(end, AnswerEnd)
    assert end.miss == "evicted"
    assert end.computed_tokens == 3


@pytest.mark.parametrize(
    "chunks", [(), (_text("Hel"),), (_text("Hel"), "[DONE]"), (_text("x"), _USAGE)]
)
def test_a_stream_without_its_end_is_an_error(chunks: tuple[object, ...]) -> None:
    with pytest.raises(ServerError, match="broke off"):
        list(_events_of(_lines(*chunks)))


def test_an_error_inside_the_stream_is_raised() -> None:
    error = {"error": {"message": "shutting down", "type": "x", "code": "server_stopping"}}
    with pytest.raises(ServerError, match="shutting down") as caught:
        list(_events_of(_lines(_text("Hel"), error)))
    assert caught.value.code == "server_stopping"


def test_the_counts_of_an_overlong_prompt_survive_the_wire() -> None:
    sent = ContextTooLong(window=8192, prompt_tokens=9000, max_tokens=100)
    body = json.dumps({"error": {"message": str(sent), "code": sent.code}})
    got = _error_of(body)
    assert isinstance(got, ContextTooLong)
    assert (got.window, got.prompt_tokens, got.max_tokens) == (8192, 9000, 100)


@pytest.mark.parametrize("body", ["", "<html>", "[]", '{"error": "x"}', '{"error": {}}'])
def test_an_answer_of_something_else_is_an_error_all_the_same(body: str) -> None:
    assert isinstance(_error_of(body), KvasirError)


def test_nobody_on_the_socket(tmp_path: Path) -> None:
    with Client(tmp_path / "none.sock") as client, pytest.raises(NoServer):
        client.model_names()
