"""The conversation of `kvasir chat` over a client that only remembers what it was asked."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import pytest
from typer.testing import CliRunner

from kvasir.cli import connect, main
from kvasir.cli.client import AnswerEnd, AnswerText, ChatEvent, Message, ServerError
from kvasir.cli.connect import Connection


class Parrot:
    """Repeats the last message; fails on "fail"."""

    def __init__(self) -> None:
        self.asked: list[list[Message]] = []

    def chat(
        self, messages: Sequence[Message], *, model: str, options: Mapping[str, object]
    ) -> Iterator[ChatEvent]:
        self.asked.append(list(messages))
        text = messages[-1]["content"]
        if text == "fail":
            raise ServerError("it failed")
        yield AnswerText(f"{text}!")
        yield AnswerEnd("stop", 1, 0, 1, None)


@pytest.fixture
def parrot(monkeypatch: pytest.MonkeyPatch) -> Parrot:
    client = Parrot()

    @contextlib.contextmanager
    def fake(_config: object) -> Iterator[Connection]:
        yield Connection(cast("Any", client), "parrot")

    monkeypatch.setattr(connect, "connect", fake)
    return client


def _chat(text: str, *arguments: str) -> str:
    result = CliRunner().invoke(main.app, ["chat", *arguments], input=text)
    assert result.exit_code == 0, result.output
    return result.stdout


def _contents(messages: list[Message]) -> list[str]:
    return [message["content"] for message in messages]


def test_a_turn_per_line_with_the_whole_history(parrot: Parrot) -> None:
    assert _chat("one\n\ntwo\n") == "one!\ntwo!\n"
    assert [_contents(asked) for asked in parrot.asked] == [["one"], ["one", "one!", "two"]]


def test_reset_keeps_the_instructions_alone(parrot: Parrot) -> None:
    _chat("one\n/reset\ntwo\n", "--system", "Be brief.")
    assert _contents(parrot.asked[-1]) == ["Be brief.", "two"]


def test_quit_ends(parrot: Parrot) -> None:
    _chat("/quit\none\n")
    assert parrot.asked == []


def test_a_failed_turn_is_left_out_and_the_conversation_goes_on(parrot: Parrot) -> None:
    _chat("one\nfail\ntwo\n")
    assert _contents(parrot.asked[-1]) == ["one", "one!", "two"]


def test_an_unknown_command_is_not_sent_to_the_model(parrot: Parrot) -> None:
    _chat("/what\n")
    assert parrot.asked == []
