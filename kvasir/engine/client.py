"""The engine on a thread of its own, behind ``core.ports.Engine``.

The inbox is the only thing that other threads touch. While there is nothing to compute the thread
rests, then sleeps on it. Events go to each request's ``deliver`` on the engine's thread, in order.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import TypeVar

from kvasir.core.clock import Clock
from kvasir.core.errors import EngineStopped
from kvasir.core.events import Event, Finished, FinishReason, Refused, Usage
from kvasir.core.ports import Deliver, EngineStatus
from kvasir.core.requests import Request
from kvasir.core.tiers import KeptRecord, KeptText, Residence, Tier
from kvasir.engine.engine import Engine
from kvasir.engine.parcels import export, take_in
from kvasir.kv.keeping import Keeping
from kvasir.kv.text import KeyedText, keyed
from kvasir.sched.scheduler import Abort, Command, Submit

log = logging.getLogger(__name__)

_STOPPING_WAIT_S = 0.02
_SAVING_S = 10.0  # that the end of the engine may take to save what is still unsaved

T = TypeVar("T")


@dataclasses.dataclass(slots=True)
class _Caller:
    """Who is told about a request, and which of its choices are still open."""

    deliver: Deliver
    open_choices: set[int]
    n_prompt: int


class EngineClient:
    """Runs an ``Engine`` on its own thread; every method may be called from any thread."""

    def __init__(
        self,
        engine: Engine,
        clock: Clock,
        *,
        prepare: Callable[[], None] | None = None,
        close: Callable[[float], None] | None = None,
    ) -> None:
        """``prepare`` runs first on the engine's thread (thread-bound set-up, warm-up steps), and
        ``close`` last, with the seconds that it may take."""
        self._engine = engine
        self._clock = clock
        self._prepare = prepare
        self._close = close
        self._wake = threading.Condition()
        self._inbox: deque[Command] = deque()
        self._calls: deque[Callable[[], None]] = deque()  # to be made between two steps
        self._moved = False  # whether moves between tiers have ended that no step has seen
        self._callers: dict[str, _Caller] = {}
        self._status = engine.status()
        self._stepped_s = clock.now_s()
        self._unseen = 0  # choices submitted that the snapshot does not count yet
        self._taken = 0  # those of them that the current step has taken in
        self._stop_at_s: float | None = None
        self._ended = False
        self._failure = ""
        self._thread = threading.Thread(target=self._loop, name="kvasir-engine", daemon=True)

    def start(self) -> EngineClient:
        """Start the thread."""
        self._thread.start()
        return self

    def submit(self, request: Request, deliver: Deliver) -> None:
        """Queue ``request`` (see ``core.ports.Engine``); hashes its prompt on this thread."""
        cache = self._engine.sched.cache
        keys: list[bytes] = []
        cache.chain(request.namespace).extend(keys, request.tokens, cache.geometry.block_tokens)
        command = Submit(request, tuple(keys), self._clock.now_s())
        with self._wake:
            if self._ended:
                raise EngineStopped(self._failure or "the engine has been stopped")
            if request.id in self._callers:
                raise ValueError(f"request id {request.id!r} is in use")
            if not self._callers:  # the engine sleeps: its silence begins to count now
                self._stepped_s = self._clock.now_s()
            self._callers[request.id] = _Caller(deliver, set(range(request.n)), len(request.tokens))
            self._inbox.append(command)
            self._unseen += request.n
            self._wake.notify()

    def abort(self, request_id: str) -> None:
        """End ``request_id`` at the next step; unknown ids are ignored."""
        with self._wake:
            if request_id in self._callers and not self._ended:
                self._inbox.append(Abort(request_id))
                self._wake.notify()

    def status(self) -> EngineStatus:
        """A snapshot as of the last step; what was submitted since then is waiting."""
        with self._wake:
            status, waiting = self._status, self._status.waiting + self._unseen
            age_s = self._clock.now_s() - self._stepped_s if status.running or waiting else 0.0
        return dataclasses.replace(
            status,
            waiting=waiting,
            last_step_age_s=age_s,
            alive=self._thread.is_alive() and not self._ended,
            stopping=self._stop_at_s is not None,
        )

    def kept(self) -> Sequence[KeptRecord]:
        """All records of the stored tiers (see ``core.ports.Engine``)."""
        return self.call(self._engine.kept)

    def clear(self, tier: Tier | None, namespace_tag: bytes | None) -> int:
        """Forget stored KV (see ``core.ports.Engine``)."""
        return self.call(lambda: self._engine.sched.cache.keeping.clear(tier, namespace_tag))

    def hold(self, holder: str, namespace: bytes, texts: Sequence[Sequence[int]]) -> None:
        """Keep what is stored of ``texts`` (see ``core.ports.Engine``)."""
        ours = [self._keyed(namespace, tokens) for tokens in texts]
        self.call(lambda: self._keeping.hold(holder, ours))

    def let_go(self, holder: str) -> bool:
        """End a hold (see ``core.ports.Engine``)."""
        return self.call(lambda: self._keeping.let_go(holder))

    def residence(self, namespace: bytes, tokens: Sequence[int]) -> Residence:
        """Where a text is (see ``core.ports.Engine``)."""
        text = self._keyed(namespace, tokens)
        return self.call(lambda: self._keeping.residence(text))

    def texts(self, namespace: bytes) -> Sequence[KeptText]:
        """The longest texts that are stored (see ``core.ports.Engine``)."""
        return self.call(lambda: self._keeping.texts(namespace))

    def drop(self, namespace: bytes, texts: Sequence[Sequence[int]]) -> None:
        """Forget texts (see ``core.ports.Engine``)."""
        ours = [self._keyed(namespace, tokens) for tokens in texts]
        self.call(lambda: self._keeping.drop(ours))

    def parcels(self, namespace: bytes, tokens: Sequence[int]) -> Iterator[bytes]:
        """Export a text (see ``core.ports.Engine``)."""
        return export(self, self._engine.sched.cache, namespace, tokens)

    def accept(self, namespace: bytes, parcel: bytes) -> int:
        """Import a piece of a text (see ``core.ports.Engine``)."""
        return take_in(self, self._engine.sched.cache, namespace, parcel)

    def room_bytes(self, namespace: bytes) -> int:
        """How many bytes more can be held (see ``core.ports.Engine``)."""
        return self.call(lambda: self._keeping.room_bytes(namespace))

    def bytes_of(self, n_tokens: int) -> int:
        """What a text takes once it is stored (see ``core.ports.Engine``)."""
        return self._engine.sched.cache.stored.bytes_of(n_tokens)

    def verify(self) -> Sequence[KeptRecord]:
        """Read every record again (see ``core.ports.Engine``)."""
        damaged: Future[Sequence[KeptRecord]] = Future()
        self.call(lambda: self._engine.verify(damaged.set_result))
        return self.result(damaged)

    def call(self, function: Callable[[], T]) -> T:
        """What ``function`` gives, called on the engine's thread between two steps. Raises
        ``EngineStopped`` where that has ended."""
        result: Future[T] = Future()

        def call() -> None:
            try:
                result.set_result(function())
            except Exception as error:
                result.set_exception(error)

        with self._wake:
            if self._ended:
                raise EngineStopped(self._failure or "the engine has been stopped")
            self._calls.append(call)
            self._wake.notify()
        return self.result(result)

    def result(self, future: Future[T]) -> T:
        """What ``future`` is given on the engine's thread; raises ``EngineStopped`` where that has
        ended."""
        while True:
            try:
                return future.result(timeout=1.0)
            except TimeoutError:
                if future.done():  # what it was given may be a TimeoutError itself
                    return future.result()
                if not self._thread.is_alive():
                    raise EngineStopped("the engine has been stopped") from None

    def moves_ended(self) -> None:
        """Moves between tiers have ended: the engine is to look, also where it sleeps."""
        with self._wake:
            self._moved = True
            self._wake.notify()

    def stop(self, grace_s: float = 0.0) -> None:
        """Take nothing new, let what runs finish for up to ``grace_s`` seconds, then end.

        Returns when the thread has ended. A second call may shorten the grace.
        """
        with self._wake:
            until_s = self._clock.now_s() + grace_s
            self._stop_at_s = until_s if self._stop_at_s is None else min(until_s, self._stop_at_s)
            self._wake.notify()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()

    # on the engine's thread ----------------------------------------------------------------------

    def _loop(self) -> None:
        try:
            if self._prepare is not None:
                self._prepare()
            while not self._finished():
                events = self._engine.step(self._drain(), lambda: bool(self._inbox))
                self._note()
                self._tell(events)
            self._tell(self._engine.sched.abort_all())
            self._save_rest()
        except Exception as error:
            log.exception("the engine has failed and takes no more requests")
            self._failure = f"the engine has failed ({type(error).__name__}); restart the server"
        finally:
            self._end()

    def _drain(self) -> list[Command]:
        """What came in; rests, then sleeps, while there is nothing to do and nothing came."""
        while self._nothing_to_do() and self._engine.rest():
            self._note()
        with self._wake:
            while self._nothing_to_do():
                self._wake.wait()
            if self._engine.waits and not self._moved and not self._inbox:
                self._wake.wait(_STOPPING_WAIT_S)  # stopping: what was admitted is finished
            self._moved = False
            calls = list(self._calls)
            self._calls.clear()
            if self._stop_at_s is not None:
                self._engine.sched.stop()
            commands = list(self._inbox)
            self._inbox.clear()
            self._taken = sum(c.request.n for c in commands if isinstance(c, Submit))
        for call in calls:
            call()
        return commands

    def _nothing_to_do(self) -> bool:
        if self._inbox or self._calls or self._moved or self._stop_at_s is not None:
            return False
        return self._engine.idle or self._engine.waits

    @property
    def _keeping(self) -> Keeping:
        return self._engine.sched.cache.keeping

    def _keyed(self, namespace: bytes, tokens: Sequence[int]) -> KeyedText:
        cache = self._engine.sched.cache
        return keyed(cache.chain(namespace), namespace, tokens, cache.geometry.block_tokens)

    def _save_rest(self) -> None:
        """Have what is still to be saved saved, for a while: nothing else is done any more."""
        until_s = self._clock.now_s() + _SAVING_S
        while self._engine.sched.cache.saving and self._clock.now_s() < until_s:
            with self._wake:
                if not self._moved:
                    self._wake.wait(_STOPPING_WAIT_S)
                self._moved = False
            self._engine.sched.cache.poll()
        if self._close is not None:
            self._close(max(0.0, until_s - self._clock.now_s()))

    def _finished(self) -> bool:
        with self._wake:
            if self._stop_at_s is None or self._inbox:
                return False
            return self._engine.idle or self._clock.now_s() >= self._stop_at_s

    def _note(self) -> None:
        status = self._engine.status()
        with self._wake:
            self._stepped_s = self._clock.now_s()
            self._status = status
            self._unseen -= self._taken
            self._taken = 0

    def _tell(self, events: list[Event]) -> None:
        for event in events:
            caller = self._callers.get(event.request_id)
            if caller is None:
                continue
            try:
                caller.deliver(event)
            except Exception:  # a caller's fault must not end the engine
                log.exception("delivering an event of request %s failed", event.request_id)
            if isinstance(event, Finished):
                caller.open_choices.discard(event.choice)
            if isinstance(event, Refused) or not caller.open_choices:
                with self._wake:
                    self._callers.pop(event.request_id, None)

    def _end(self) -> None:
        """Whoever still waits for an answer is told that none will come."""
        with self._wake:
            self._ended = True
            callers, self._callers = self._callers, {}
            self._inbox.clear()
        reason = FinishReason.FAILED if self._failure else FinishReason.CANCELLED
        for request_id, caller in callers.items():
            usage = Usage(prompt_tokens=caller.n_prompt, reused_tokens=0)
            try:
                for choice in sorted(caller.open_choices):
                    caller.deliver(Finished(request_id, choice, reason, usage, None, self._failure))
            except Exception:
                log.exception("telling request %s of the end failed", request_id)
