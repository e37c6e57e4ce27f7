"""From the engine's events to text: what each choice of a request has said, and when it has ended.

``Answers`` is a pure state machine over events, without time or threads. A stop string ends a
choice here, not in the engine: the engine aborts whole requests, and a choice's index is part of
its random numbers, so a stopped choice's further tokens are dropped until all choices of its
request have stopped, and then the request is aborted.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass

from kvasir.core.events import (
    Event,
    Finished,
    FinishReason,
    Progress,
    Refused,
    Scored,
    Started,
    Token,
    TokenScore,
    Usage,
)
from kvasir.core.requests import Request
from kvasir.service.errors import engine_failure, refused, stopping
from kvasir.service.metrics import Metrics
from kvasir.service.replies import Finish
from kvasir.service.stream import Feed
from kvasir.text.stream import TextStream
from kvasir.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Piece:
    """New text of a choice, with the scores of the tokens since the piece before."""

    index: int
    text: str
    scores: tuple[TokenScore, ...]


@dataclass(frozen=True, slots=True)
class Ended:
    """A choice has ended; no piece of it follows."""

    index: int
    reason: Finish


@dataclass(frozen=True, slots=True)
class Reading:
    """A prompt is read up to here."""

    prompt: int
    progress: Progress


Item = Piece | Ended | Reading


class Choice:
    """One answer as far as it has come."""

    __slots__ = ("_pending", "index", "parts", "reason", "scores", "stopped", "stream", "tokens",
                 "usage")  # fmt: skip

    def __init__(self, index: int, stream: TextStream) -> None:
        self.index = index
        self.stream = stream
        self.tokens: list[int] = []
        self.parts: list[str] = []
        self.scores: list[TokenScore] = []
        self.reason: Finish | None = None
        self.stopped = False  # by a stop string
        self.usage: Usage | None = None  # set when the engine has ended it
        self._pending: list[TokenScore] = []

    @property
    def text(self) -> str:
        """All text so far."""
        return "".join(self.parts)

    @property
    def completion_tokens(self) -> int:
        """Tokens up to the one that ended the answer, that one included."""
        if self.stopped or self.usage is None:
            return len(self.tokens)
        return self.usage.completion_tokens

    def push(self, event: Token) -> Iterator[Item]:
        """Take one token, unless the answer has ended."""
        if self.reason is not None:
            return
        self.tokens.append(event.token)
        if event.score is not None:
            self._pending.append(event.score)
        piece = self.stream.push(event.token)
        if piece.text or (piece.stop is not None and self._pending):
            yield self._say(piece.text)
        if piece.stop is not None:
            self.stopped = True
            yield self._end("stop")

    def finish(self, event: Finished) -> Iterator[Item]:
        """Take the engine's word that nothing follows. Raises ``ApiError`` for an answer that was
        cut short."""
        self.usage = event.usage
        if self.reason is not None:
            return
        if event.reason is FinishReason.FAILED:
            raise engine_failure(event.message)
        if event.reason is FinishReason.CANCELLED:
            raise stopping()  # nobody here aborts an answer that has not ended
        rest = self.stream.finish()
        if rest or self._pending:
            yield self._say(rest)
        yield self._end("stop" if event.reason is FinishReason.STOP else "length")

    def _say(self, text: str) -> Piece:
        scores = tuple(self._pending)
        self._pending.clear()
        self.scores.extend(scores)
        self.parts.append(text)
        return Piece(self.index, text, scores)

    def _end(self, reason: Finish) -> Ended:
        self.reason = reason
        return Ended(self.index, reason)


class Answers:
    """All choices of all prompts of one HTTP request; index = prompt × n + choice."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        requests: Sequence[Request],
        stop: Sequence[str],
        *,
        prompt_param: str,
        context_tokens: int = 0,
    ) -> None:
        """``context_tokens`` of the prompts together are those of a context."""
        self.context_tokens = context_tokens
        self.tokenizer = tokenizer
        self.requests = tuple(requests)
        self.n = requests[0].n
        self.choices = [
            Choice(index, TextStream(tokenizer, stop)) for index in range(len(requests) * self.n)
        ]
        self.prompt_scores: list[dict[int, TokenScore]] = [{} for _ in requests]
        self._prompt_of = {request.id: at for at, request in enumerate(requests)}
        self._prompt_param = prompt_param
        self._aborted: set[str] = set()

    @property
    def finished(self) -> bool:
        """Whether the engine has ended every choice."""
        return all(choice.usage is not None for choice in self.choices)

    def of_prompt(self, prompt: int) -> list[Choice]:
        """The choices of one prompt."""
        return self.choices[prompt * self.n : (prompt + 1) * self.n]

    def take(self, event: Event) -> Iterator[Item]:
        """What ``event`` means to the caller. Raises ``ApiError`` where it is a refusal or a
        failure."""
        prompt = self._prompt_of[event.request_id]
        match event:
            case Token():
                yield from self.choices[prompt * self.n + event.choice].push(event)
            case Finished():
                yield from self.choices[prompt * self.n + event.choice].finish(event)
            case Progress():
                if event.choice == 0:
                    yield Reading(prompt, event)
            case Scored():
                # by position, since every choice of a request and a resumed one report them anew
                for position, score in enumerate(event.scores, start=event.start):
                    self.prompt_scores[prompt][position] = score
            case Refused():
                raise refused(event, self._prompt_param)
            case Started():
                pass

    def take_idle(self) -> list[str]:
        """Requests whose choices have all ended here while the engine still computes them; each is
        told once."""
        idle = [
            request.id
            for at, request in enumerate(self.requests)
            if request.id not in self._aborted
            and all(c.reason is not None for c in self.of_prompt(at))
            and any(c.usage is None for c in self.of_prompt(at))
        ]
        self._aborted.update(idle)
        return idle


async def generate(feed: Feed, answers: Answers, metrics: Metrics) -> AsyncIterator[Item]:
    """All items until the engine has ended every choice; measures latencies on the way."""
    began_s = time.monotonic()
    last_s: dict[tuple[str, int], float] = {}
    while not answers.finished:
        event = await feed.next()
        if isinstance(event, Token):
            now_s = time.monotonic()
            key = (event.request_id, event.choice)
            if key in last_s:
                metrics.token_after(now_s - last_s[key])
            else:
                metrics.first_token_after(now_s - began_s)
            last_s[key] = now_s
        for item in answers.take(event):
            yield item
        if isinstance(event, Token):
            for request_id in answers.take_idle():
                feed.abort(request_id)
