"""Kvasir as a candidate: its engine behind the port, as the server uses it, without HTTP."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import kvasir
from kvasir.bench.candidate import Answer, Answers, Setup
from kvasir.core.config import load as load_config
from kvasir.core.errors import EngineStopped
from kvasir.core.events import Event, Finished, FinishReason, Refused, Token
from kvasir.core.ports import Engine
from kvasir.core.requests import GREEDY, Request


class _Listener:
    """Takes one request's events on the engine's thread; another thread waits for the end."""

    def __init__(self) -> None:
        self.times_s: list[float] = []
        self.tokens: list[int] = []
        self.reused_tokens = 0
        self._failure = ""
        self._ended = threading.Event()

    def deliver(self, event: Event) -> None:
        if isinstance(event, Token):
            self.times_s.append(time.perf_counter())
            self.tokens.append(event.token)
        elif isinstance(event, Finished):
            self.reused_tokens = event.usage.reused_tokens
            if event.reason is not FinishReason.LENGTH:
                self._failure = f"ended as {event.reason}: {event.message}"
            self._ended.set()
        elif isinstance(event, Refused):
            self._failure = f"refused as {event.kind}: {event.message}"
            self._ended.set()

    def wait(self) -> None:
        """Return when the answer is there. Raises ``EngineStopped`` if it will not come."""
        self._ended.wait()
        if self._failure:
            raise EngineStopped(f"a request of the benchmark {self._failure}")


class KvasirCandidate:
    """An engine behind its port. A topic is a namespace, so nothing is shared between topics."""

    def __init__(self, engine: Engine, stop: Callable[[], None], about: Sequence[str] = ()) -> None:
        self._engine = engine
        self._stop = stop
        self._about = list(about)
        self._ids = itertools.count()

    def versions(self) -> dict[str, str]:
        return {"kvasir": kvasir.__version__, "torch": torch.__version__}

    def notes(self) -> list[str]:
        return ["the engine in process, prefix reuse on", *self._about]

    def answer(self, prompt: Sequence[int], n_tokens: int, topic: str) -> Answer:
        start_s = time.perf_counter()
        listener = self._submit(prompt, n_tokens, topic)
        listener.wait()
        return Answer(
            first_s=listener.times_s[0] - start_s,
            total_s=listener.times_s[-1] - start_s,
            tokens=tuple(listener.tokens),
            reused_tokens=listener.reused_tokens,
        )

    def answer_all(self, prompts: Sequence[Sequence[int]], n_tokens: int, topic: str) -> Answers:
        start_s = time.perf_counter()
        listeners = [self._submit(prompt, n_tokens, topic) for prompt in prompts]
        for listener in listeners:
            listener.wait()
        return Answers(
            total_s=max(listener.times_s[-1] for listener in listeners) - start_s,
            tokens=tuple(tuple(listener.tokens) for listener in listeners),
            reused_tokens=sum(listener.reused_tokens for listener in listeners),
        )

    def _submit(self, prompt: Sequence[int], n_tokens: int, topic: str) -> _Listener:
        listener = _Listener()
        request = Request(
            id=f"bench-{next(self._ids)}",
            namespace=topic.encode(),
            tokens=tuple(prompt),
            max_tokens=n_tokens,
            sampling=GREEDY,
        )
        self._engine.submit(request, listener.deliver)
        return listener

    def close(self) -> None:
        self._stop()


def load(setup: Setup) -> KvasirCandidate:
    """Build the engine on ``setup.weights`` with default settings, but for the sizes of pool and
    window, which are those of the workload, for the formats that the setup names, and without the
    disk tier."""
    from kvasir.engine.build import build

    home = Path(setup.home)
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    settings = {
        "model": setup.weights,
        "dtype": setup.dtype,
        "threads": setup.threads,
        "kv_gib": setup.kv_gib,
        "weights": setup.weights_format,
        "kv_dtype": setup.kv_dtype,
        "max_window": setup.window,
        "home": home,
        # Peers have nothing on disk: it must neither answer a repeat from what the one before it
        # kept, nor take the machine's time for saving. `kvasir bench restore` measures it.
        "disk_gib": 0,
    }
    built = build(load_config(settings, env={}), report=print)
    choices = [f"{choice.subject}: {choice.taken}" for choice in built.choices]
    return KvasirCandidate(built.engine, built.engine.stop, choices)
