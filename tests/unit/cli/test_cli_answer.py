"""One answer on the terminal: the text on stdout, its account on stderr, no text lost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import pytest

from kvasir.cli.answer import print_answer
from kvasir.cli.client import AnswerEnd, AnswerText, ChatEvent, Message, ReadProgress
from kvasir.cli.connect import Connection
from kvasir.core.errors import ContextTooLong, RequestError


class FakeClient:
    """Answers a script, or refuses what does not fit in ``window``."""

    def __init__(self, *events: ChatEvent, window: int = 1000, prompt_tokens: int = 10) -> None:
        self.events = events
        self.window = window
        self.prompt_tokens = prompt_tokens
        self.options: list[Mapping[str, object]] = []

    def chat(
        self, messages: Sequence[Message], *, model: str, options: Mapping[str, object]
    ) -> Iterator[ChatEvent]:
        self.options.append(options)
        max_tokens = cast("int", options["max_tokens"])
        if self.prompt_tokens + max_tokens > self.window:
            raise ContextTooLong(
                window=self.window, prompt_tokens=self.prompt_tokens, max_tokens=max_tokens
            )
        yield from self.events


def _ask(client: FakeClient, max_tokens: int = 100) -> str:
    connection = Connection(cast("Any", client), "model")
    wanted = {"max_tokens": max_tokens, "seed": None}
    return print_answer(connection, [{"role": "user", "content": "?"}], wanted)


_END = AnswerEnd("stop", 10, 7, 2, None)


def test_the_answer_alone_is_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    client = FakeClient(ReadProgress(8, 10, 7, 0.1), AnswerText("Hel"), AnswerText("lo"), _END)
    assert _ask(client) == "Hello"
    out, err = capsys.readouterr()
    assert out == "Hello\n"
    assert "10 tokens read" in err
    assert "3 computed, 7 reused" in err
    assert "2 tokens answered" in err


def test_unset_options_are_not_sent() -> None:
    client = FakeClient(_END)
    _ask(client)
    assert client.options == [{"max_tokens": 100}]


def test_the_reason_of_a_miss_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    _ask(FakeClient(AnswerEnd("length", 10, 0, 2, "first_seen")))
    err = capsys.readouterr().err
    assert "0 reused (first seen)" in err
    assert "cut by --max-tokens" in err


def test_an_answer_is_given_the_room_that_is_left() -> None:
    client = FakeClient(AnswerText("Yes"), _END, window=60)
    assert _ask(client, max_tokens=100) == "Yes"
    assert [options["max_tokens"] for options in client.options] == [100, 50]


@pytest.mark.parametrize("prompt_tokens", [60, 61, 10_000])
def test_a_text_that_leaves_no_room_is_refused_with_the_counts(prompt_tokens: int) -> None:
    client = FakeClient(window=60, prompt_tokens=prompt_tokens)
    with pytest.raises(RequestError, match=f"{prompt_tokens:,} tokens.* at most 60"):
        _ask(client)
    assert len(client.options) == 1
