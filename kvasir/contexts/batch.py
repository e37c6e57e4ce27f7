"""Many requests to the engine, a bounded number at a time, for one thread that takes the results.

Invariants: every request that was begun ends in one ``Done`` or is aborted, also when the caller
stops taking; a full queue is waited for as long as the engine says, never reported as a result.
"""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from kvasir.core.errors import EngineStopped
from kvasir.core.events import (
    Event,
    Finished,
    FinishReason,
    Progress,
    RefusalKind,
    Refused,
    Token,
    Usage,
)
from kvasir.core.ports import Engine
from kvasir.core.requests import Request

_LOOK_S = 0.1  # how often a caller that waits is asked whether it still wants to
_RETRY_S = 0.5  # where a refusal names no time

OnProgress = Callable[[str, int], None]  # request id, tokens of its prompt that are read
Enough = Callable[[Sequence[int]], bool]  # whether an answer of these ids needs no further one


@dataclass(frozen=True, slots=True)
class Done:
    """How one request ended: the generated ids, without the one that stopped it, and the cost.
    ``problem`` says why there is no result; empty where there is one."""

    request: Request
    tokens: tuple[int, ...]
    usage: Usage
    problem: str = ""


class Cancelled(Exception):
    """The caller does not want the results any more; what ran was aborted."""


def run_all(
    engine: Engine,
    requests: Iterable[Request],
    *,
    width: int,
    cancelled: Callable[[], bool] = lambda: False,
    on_progress: OnProgress = lambda _id, _tokens: None,
    enough: Enough = lambda _tokens: False,
) -> Iterator[Done]:
    """The results of ``requests``, each of one choice, in the order in which they end; at most
    ``width`` of them are with the engine at a time. An answer of which there is ``enough`` ends.

    Raises ``Cancelled`` soon after ``cancelled`` says so, ``EngineStopped`` when the engine ends.
    """
    batch = _Batch(engine, iter(requests), width, enough)
    try:
        while batch.fill():
            if cancelled():
                raise Cancelled
            done = batch.wait(on_progress)
            if done is not None:
                yield done
    finally:
        batch.abort()


class _Batch:
    """What is with the engine, and what has to be handed to it again."""

    def __init__(
        self, engine: Engine, requests: Iterator[Request], width: int, enough: Enough
    ) -> None:
        self._engine = engine
        self._enough = enough
        self._ended: set[str] = set()  # by us, because enough was there
        self._requests = requests
        self._width = width
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._running: dict[str, tuple[Request, list[int]]] = {}
        self._again: deque[Request] = deque()
        self._not_before_s = 0.0

    def fill(self) -> bool:
        """Hand over what may be; whether anything is left to wait for."""
        while len(self._running) < self._width and time.monotonic() >= self._not_before_s:
            request = self._again.popleft() if self._again else next(self._requests, None)
            if request is None:
                break
            self._running[request.id] = (request, [])
            try:
                self._engine.submit(request, self._events.put)
            except EngineStopped:
                del self._running[request.id]
                raise
        return bool(self._running or self._again)

    def wait(self, on_progress: OnProgress) -> Done | None:
        """Take one event; the result, where it was the last of a request."""
        try:
            event = self._events.get(timeout=_LOOK_S)
        except queue.Empty:
            return None
        known = self._running.get(event.request_id)
        if known is None:
            return None
        request, tokens = known
        match event:
            case Token() if request.id not in self._ended:
                tokens.append(event.token)
                if self._enough(tokens):
                    self._ended.add(request.id)
                    self._engine.abort(request.id)
            case Progress():
                on_progress(request.id, event.processed_tokens)
            case Refused():
                return self._refused(request, event)
            case Finished():
                del self._running[request.id]
                problem = "" if request.id in self._ended else _problem(event)
                return Done(request, tuple(tokens), event.usage, problem)
        return None

    def abort(self) -> None:
        """End what still runs."""
        for request_id in self._running:
            self._engine.abort(request_id)
        self._running.clear()

    def _refused(self, request: Request, event: Refused) -> Done | None:
        del self._running[request.id]
        if event.kind is RefusalKind.QUEUE_FULL:
            self._again.append(request)
            self._not_before_s = time.monotonic() + (event.retry_after_s or _RETRY_S)
            return None
        if event.kind is RefusalKind.STOPPING:
            raise EngineStopped(event.message)
        usage = Usage(prompt_tokens=len(request.tokens), reused_tokens=0)
        return Done(request, (), usage, event.message)


def _problem(event: Finished) -> str:
    if event.reason is FinishReason.FAILED:
        return event.message or "the engine failed while computing it"
    if event.reason is FinishReason.CANCELLED:
        raise EngineStopped(
            "The server is shutting down and ended what was running; it goes on after the restart."
        )
    return ""
