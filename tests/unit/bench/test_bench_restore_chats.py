"""Conversations with restarts: their turns, what is asked, and what counts as new."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from kvasir.bench.http import Reply
from kvasir.bench.restore_chats import (
    ANSWER_TOKENS,
    Conversation,
    Source,
    Turn,
    chat,
    find_traces,
    hold,
    trace,
)
from kvasir.bench.restore_sizes import FULL, QUICK
from kvasir.core.errors import ConfigError


def decode(tokens: list[int]) -> str:
    return " ".join(map(str, tokens))


class FakeModel:
    """A word is a token and every message has one more; an answer is as long as it may be. Reuses
    whatever any earlier prompt or answer began with, but for ``forgets`` tokens after a restart."""

    def __init__(self, forgets: int = 0) -> None:
        self.seen: list[list[str]] = []
        self.bodies: list[dict[str, Any]] = []
        self.servers = 0
        self._forgets = forgets
        self._fresh = False

    @contextmanager
    def serve(self) -> Iterator[int]:
        self.servers += 1
        self._fresh = self.servers > 1
        yield self.servers

    def ask(self, port: int, body: dict[str, Any]) -> Reply:
        assert port == self.servers
        self.bodies.append(body)
        prompt = [w for m in body["messages"] for w in (m["role"], *m["content"].split())]
        prompt.append("assistant")
        cached = max((common(prompt, earlier) for earlier in self.seen), default=0)
        cached = max(0, cached - self._forgets) if self._fresh else cached
        answer = [f"a{len(self.seen)}"] * body["max_tokens"]
        self.seen.append([*prompt, *answer])
        fresh, self._fresh = self._fresh, False
        return Reply(
            first_s=1,
            last_s=1,
            total_s=1,
            text=" ".join(answer),
            prompt_tokens=len(prompt),
            completion_tokens=len(answer),
            cached_tokens=cached,
            disk_tokens=cached if fresh else 0,
        )


def common(one: list[str], other: list[str]) -> int:
    return next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )


def held(conversation: Conversation, model: FakeModel, every: int = 10) -> Any:
    source = Source(range(100_000), decode)
    return hold(conversation, source, every, model.serve, model.ask)


def test_a_chat_grows_by_the_same_length_and_fills_the_window() -> None:
    turns = chat(FULL).turns
    assert [turn.continues for turn in turns] == list(range(-1, 99))
    grown = {b.prompt_tokens - a.prompt_tokens for a, b in pairwise(turns)}
    assert max(grown) - min(grown) <= 1
    assert 7900 < turns[-1].prompt_tokens + ANSWER_TOKENS < FULL.window


def test_restarts_come_every_so_many_turns_and_new_tokens_are_counted_once() -> None:
    model = FakeModel()
    spent = held(chat(FULL), model)
    assert (spent.turns, spent.restarts, model.servers) == (100, 9, 10)
    assert spent.ratio == 1
    assert spent.most_behind == 0
    assert spent.new_tokens == spent.computed_tokens
    # every token of the last prompt was new once, but for those of the 99 answers before
    assert spent.new_tokens == len(model.seen[-1]) - 100 * ANSWER_TOKENS
    assert spent.disk_tokens > 0
    assert len(model.seen[-1]) <= FULL.window
    assert model.bodies[1]["messages"][1] == {"role": "assistant", "content": model_answer(model)}


def model_answer(model: FakeModel) -> str:
    return " ".join(model.seen[0][-ANSWER_TOKENS:])


def test_what_is_forgotten_in_a_restart_is_not_new() -> None:
    spent = held(chat(FULL), FakeModel(forgets=50))
    assert spent.computed_tokens == spent.new_tokens + 9 * 50
    assert spent.most_behind == 50
    assert spent.ratio > 1.05


def test_a_turn_that_begins_again_keeps_the_systems_message_only() -> None:
    conversation = Conversation(
        key="t",
        title="t",
        system_tokens=20,
        turns=(Turn(-1, 60, 4), Turn(0, 90, 4), Turn(-1, 70, 4), Turn(2, 120, 4)),
    )
    model = FakeModel()
    spent = held(conversation, model)
    first, second, third, last = (body["messages"] for body in model.bodies)
    assert [m["role"] for m in first] == ["system", "user"]
    assert [m["role"] for m in second] == ["system", "user", "assistant", "user"]
    assert third[0] == first[0]
    assert len(third) == 2
    assert third[1] != first[1]
    assert last[:2] == third
    # the word "system" and those of "user" are shared too, and counted as new: 2 tokens once
    assert spent.computed_tokens == spent.new_tokens - 2


def requests(*found: tuple[int, int, list[int]]) -> dict[str, Any]:
    return {
        "system_tokens": 100,
        "tool_tokens": 540,
        "requests": [{"in": n, "out": out, "hash_ids": ids} for n, out, ids in found],
    }


def written(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_a_trace_is_scaled_to_the_window_and_branches_where_it_did(tmp_path: Path) -> None:
    recorded = requests(
        (6400, 200, list(range(100))),
        (12_800, 100, [*range(99), *range(300, 401)]),  # the last block of the first is another
        (7000, 100, [*range(10), *range(500, 599)]),  # begins again behind the first ten blocks
        (25_600, 20, [*range(10), *range(500, 700), *range(700, 890)]),  # continues that
    )
    sizes = replace(FULL, window=1000)
    found = trace(written(tmp_path / "claudecode_1.json", recorded), sizes)
    assert [turn.continues for turn in found.turns] == [-1, 0, -1, 2]
    lengths = [turn.prompt_tokens for turn in found.turns]
    assert lengths == [213, 427, 233, 855]
    assert lengths[-1] + ANSWER_TOKENS + 100 < sizes.window
    assert found.system_tokens == int(640 * lengths[-1] / 25_600)
    assert [turn.answer_tokens for turn in found.turns] == [7, 3, 3, 1]
    assert "0.033" in found.title
    short = trace(tmp_path / "claudecode_1.json", replace(sizes, trace_turns=2))
    assert len(short.turns) == 2


@pytest.mark.parametrize("content", [[], {}, {"requests": []}, {"requests": [{"in": 1}]}])
def test_a_file_that_is_no_trace_is_refused(tmp_path: Path, content: object) -> None:
    with pytest.raises(ConfigError, match=r"x\.json is no trace"):
        trace(written(tmp_path / "x.json", content), QUICK)


def test_traces_are_found_by_name(tmp_path: Path) -> None:
    for name in ("claudecode_2.json", "claudecode_1.json", "other.json"):
        (tmp_path / name).touch()
    names = [path.name for path in find_traces(tmp_path)]
    assert names == ["claudecode_1.json", "claudecode_2.json"]
    assert find_traces(tmp_path / "none") == []


def test_a_text_that_is_used_up_is_an_error() -> None:
    source = Source(range(5), decode)
    assert source.take(3) == "0 1 2"
    with pytest.raises(ConfigError, match="too short"):
        source.take(3)
