"""Conversations whose server is started anew again and again: what is computed, and what had to be.

A conversation is told in tokens: which earlier turn is continued, how long the prompt becomes, how
long the answer may be. What it says is running text; a real session's text is not in its trace.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvasir.bench import http
from kvasir.bench.http import Reply
from kvasir.bench.restore_sizes import RestoreSizes
from kvasir.core.errors import ConfigError

ANSWER_TOKENS = 16  # at most: what is measured is what is read
_MARKUP_TOKENS = 10  # what a template puts around a turn; the next turn makes up for what it is not
_LEAST_TOKENS = 4  # of a user's message
_ROOM_TOKENS = 128

Serve = Callable[[], AbstractContextManager[int]]  # a new server on the same home; gives its port
Ask = Callable[[int, dict[str, Any]], Reply]  # (port, body of a chat completion)


@dataclass(frozen=True, slots=True)
class Turn:
    """One request. It continues turn ``continues``, or the system's message alone: that is -1."""

    continues: int
    prompt_tokens: int  # wanted, of the whole prompt
    answer_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """``system_tokens`` is 0 where there is no system message."""

    key: str
    title: str
    system_tokens: int
    turns: tuple[Turn, ...]


@dataclass(slots=True)
class Spent:
    """What a conversation cost, in tokens of prompts."""

    turns: int = 0
    restarts: int = 0
    prompt_tokens: int = 0
    computed_tokens: int = 0
    new_tokens: int = 0  # that no earlier turn had, in its prompt or its answer
    disk_tokens: int = 0
    most_behind: int = 0  # tokens that the worst turn computed although an earlier one had them

    @property
    def ratio(self) -> float:
        """Computed for each new token."""
        return self.computed_tokens / self.new_tokens


def chat(sizes: RestoreSizes) -> Conversation:
    """Turns of the same length that fill the window in the end."""
    room = sizes.window - _ROOM_TOKENS
    turns = tuple(
        Turn(index - 1, (index + 1) * room // sizes.chat_turns - ANSWER_TOKENS, ANSWER_TOKENS)
        for index in range(sizes.chat_turns)
    )
    title = f"chat of {sizes.chat_turns} turns"
    return Conversation(key="chat", title=title, system_tokens=0, turns=turns)


def find_traces(folder: Path) -> list[Path]:
    """The coding sessions of a folder of traces, in the order of their names."""
    return sorted(folder.glob("claudecode_*.json"))


def trace(path: Path, sizes: RestoreSizes) -> Conversation:
    """A recorded session, its lengths scaled so that the longest prompt fits the window.

    A request continues the latest earlier one whose full blocks it shares, but for the last, which
    ends with what a client adds anew to each request; else it begins again behind the system's
    message. Raises ``ConfigError`` for a file that is no such trace.
    """
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))
        requests = recorded["requests"][: sizes.trace_turns]
        longest = max(request["in"] + request["out"] for request in requests)
        scale = (sizes.window - _ROOM_TOKENS - ANSWER_TOKENS) / longest
        system_tokens = recorded["system_tokens"] + recorded["tool_tokens"]
        turns = tuple(
            Turn(
                _continued(requests, index),
                int(request["in"] * scale),
                max(1, min(ANSWER_TOKENS, round(request["out"] * scale))),
            )
            for index, request in enumerate(requests)
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path.name} is no trace of a coding session: {error!r}") from error
    return Conversation(
        key=path.stem,
        title=f"{path.stem}, {len(turns)} requests at {scale:.3f} of their lengths",
        system_tokens=int(system_tokens * scale),
        turns=turns,
    )


def _continued(requests: Sequence[dict[str, Any]], index: int) -> int:
    """The turn that request ``index`` continues; -1 where it begins again."""
    ids = requests[index]["hash_ids"]
    for earlier in range(index - 1, -1, -1):
        before = requests[earlier]["hash_ids"]
        shared = next(
            (i for i, (a, b) in enumerate(zip(before, ids, strict=False)) if a != b), None
        )
        if shared is None or shared >= len(before) - 1:
            return earlier
    return -1


class Source:
    """Running text that is used up."""

    def __init__(self, tokens: Sequence[int], decode: Callable[[list[int]], str]) -> None:
        self._tokens = tokens
        self._decode = decode
        self._at = 0

    def take(self, n_tokens: int) -> str:
        """The next ``n_tokens`` as text. Raises ``ConfigError`` where there are no more."""
        taken = list(self._tokens[self._at : self._at + n_tokens])
        if len(taken) < n_tokens:
            raise ConfigError("the text is too short for the conversations; give a longer one")
        self._at += n_tokens
        return self._decode(taken)


def hold(
    conversation: Conversation, source: Source, restart_every: int, serve: Serve, ask: Ask
) -> Spent:
    """Hold ``conversation``, each ``restart_every`` turns with a new server.

    The server is told to stop, never waited for otherwise.
    """
    spent = Spent()
    history = _History(conversation, source)
    for group in _groups(conversation.turns, restart_every):
        spent.restarts += spent.turns > 0
        with serve() as port:
            for turn in group:
                body = {
                    "model": http.MODEL,
                    "messages": history.continued(turn),
                    "max_tokens": turn.answer_tokens,
                    "temperature": 0,
                }
                reply = ask(port, body)
                new = reply.prompt_tokens - history.known_tokens(turn)
                history.add(reply)
                spent.turns += 1
                spent.prompt_tokens += reply.prompt_tokens
                spent.computed_tokens += reply.computed_tokens
                spent.new_tokens += new
                spent.disk_tokens += reply.disk_tokens
                spent.most_behind = max(spent.most_behind, reply.computed_tokens - new)
    return spent


def _groups(turns: Sequence[Turn], size: int) -> Iterator[Sequence[Turn]]:
    return (turns[at : at + size] for at in range(0, len(turns), size))


@dataclass(frozen=True, slots=True)
class _Said:
    """A conversation up to an answer: its messages, and how many tokens these are."""

    messages: tuple[dict[str, str], ...]
    n_tokens: int


class _History:
    """What each turn ended with."""

    def __init__(self, conversation: Conversation, source: Source) -> None:
        self._source = source
        system: tuple[dict[str, str], ...] = ()
        if conversation.system_tokens:
            system = ({"role": "system", "content": source.take(conversation.system_tokens)},)
        self._beginning = _Said(system, conversation.system_tokens)
        self._ends: list[_Said] = []
        self._asked: tuple[dict[str, str], ...] = ()

    def known_tokens(self, turn: Turn) -> int:
        """Tokens at the beginning of ``turn``'s prompt that an earlier turn had."""
        return self._before(turn).n_tokens if self._ends else 0

    def continued(self, turn: Turn) -> list[dict[str, str]]:
        """The messages of ``turn``."""
        before = self._before(turn)
        n_tokens = max(_LEAST_TOKENS, turn.prompt_tokens - before.n_tokens - _MARKUP_TOKENS)
        question = {"role": "user", "content": self._source.take(n_tokens)}
        self._asked = (*before.messages, question)
        return list(self._asked)

    def add(self, reply: Reply) -> None:
        """Take note of the answer to what ``continued`` gave."""
        answer = {"role": "assistant", "content": reply.text}
        n_tokens = reply.prompt_tokens + reply.completion_tokens
        self._ends.append(_Said((*self._asked, answer), n_tokens))

    def _before(self, turn: Turn) -> _Said:
        return self._ends[turn.continues] if turn.continues >= 0 else self._beginning
