"""The bridge from the engine's thread: order, aborting on every way out, bounds."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable

import pytest

from kvasir.core.errors import EngineStopped
from kvasir.core.events import Event, Finished, FinishReason, RefusalKind, Refused, Token, Usage
from kvasir.core.ports import Deliver, EngineStatus
from kvasir.core.requests import Request
from kvasir.service.errors import ApiError, stopping
from kvasir.service.stream import Feed
from kvasir.service.workers import Workers


class ScriptedEngine:
    """An engine that says what a test tells it to say, from a thread of its own."""

    def __init__(self) -> None:
        self.deliver: dict[str, Deliver] = {}
        self.aborted: list[str] = []
        self.submit_hook: Callable[[], None] = lambda: None

    def submit(self, request: Request, deliver: Deliver) -> None:
        self.submit_hook()
        self.deliver[request.id] = deliver

    def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)

    def status(self) -> EngineStatus:
        return EngineStatus()

    def say(self, *events: Event) -> None:
        def tell() -> None:
            for event in events:
                self.deliver[event.request_id](event)

        thread = threading.Thread(target=tell)
        thread.start()
        thread.join()


def request(name: str = "r", n: int = 1) -> Request:
    return Request(id=name, namespace=b"", tokens=[1], max_tokens=9, n=n)


def token(value: int, name: str = "r") -> Token:
    return Token(name, 0, value, None)


def finished(name: str = "r", choice: int = 0) -> Finished:
    usage = Usage(prompt_tokens=1, reused_tokens=0)
    return Finished(name, choice, FinishReason.LENGTH, usage)


def with_feed(
    test: Callable[[Feed, ScriptedEngine, Workers], Awaitable[None]], *, max_unread: int = 100
) -> ScriptedEngine:
    engine, workers = ScriptedEngine(), Workers()

    async def run() -> None:
        await test(Feed(engine, max_unread=max_unread), engine, workers)

    try:
        asyncio.run(run())
    finally:
        workers.close()
    return engine


def test_events_come_in_order_and_wake_the_reader() -> None:
    async def test(feed: Feed, engine: ScriptedEngine, workers: Workers) -> None:
        await feed.submit(request(), workers)
        reader = asyncio.create_task(feed.next())
        await asyncio.sleep(0)
        engine.say(*(token(i) for i in range(50)))
        assert await reader == token(0)
        assert [await feed.next() for _ in range(49)] == [token(i) for i in range(1, 50)]

    with_feed(test)


def test_closing_aborts_what_has_not_ended_and_once() -> None:
    async def test(feed: Feed, engine: ScriptedEngine, workers: Workers) -> None:
        for name in ("a", "b", "c"):
            await feed.submit(request(name, n=2), workers)
        engine.say(finished("a", 0), finished("a", 1), finished("b", 0))
        engine.say(Refused("c", RefusalKind.QUEUE_FULL, "full", 1.0))
        await asyncio.sleep(0)
        feed.close()
        feed.close()
        engine.say(token(1, "b"))  # comes too late; nobody may be hurt

    assert with_feed(test).aborted == ["b"]


def test_closing_while_a_submission_is_under_way_aborts_it() -> None:
    async def test(feed: Feed, engine: ScriptedEngine, workers: Workers) -> None:
        entered, leave = threading.Event(), threading.Event()

        def hook() -> None:
            entered.set()
            leave.wait(5)

        engine.submit_hook = hook
        task = asyncio.create_task(feed.submit(request(), workers))
        await asyncio.to_thread(entered.wait, 5)
        task.cancel()
        feed.close()
        engine.aborted.clear()  # this abort came before the engine knew the request
        leave.set()
        await workers.run(0, lambda: None)
        await asyncio.to_thread(workers.close)

    assert with_feed(test).aborted == ["r"]


def test_a_failure_comes_before_what_was_not_read() -> None:
    async def test(feed: Feed, engine: ScriptedEngine, workers: Workers) -> None:
        await feed.submit(request(), workers)
        engine.say(token(1))
        await asyncio.sleep(0)
        feed.fail(stopping())
        with pytest.raises(ApiError, match="shutting down"):
            await feed.next()

    assert with_feed(test).aborted == ["r"]


def test_a_reader_that_is_too_slow_is_cut_off() -> None:
    async def test(feed: Feed, engine: ScriptedEngine, workers: Workers) -> None:
        await feed.submit(request(), workers)
        engine.say(*(token(i) for i in range(4)))
        await asyncio.sleep(0)
        with pytest.raises(ApiError, match="too slow"):
            await feed.next()

    assert with_feed(test, max_unread=3).aborted == ["r"]


def test_the_verdict_is_a_refusal_or_nothing_and_takes_nothing_out() -> None:
    async def test(feed: Feed, engine: ScriptedEngine, workers: Workers) -> None:
        await feed.submit(request(), workers)
        assert await feed.verdict(0.001) is None
        refused = Refused("r", RefusalKind.QUEUE_FULL, "full", 1.0)
        engine.say(refused)
        assert await feed.verdict(5) == refused
        assert await feed.next() == refused

    with_feed(test)


def test_an_engine_that_has_ended_is_told_to_the_caller() -> None:
    async def test(feed: Feed, engine: ScriptedEngine, workers: Workers) -> None:
        def ended() -> None:
            raise EngineStopped("over")

        engine.submit_hook = ended
        with pytest.raises(EngineStopped):
            await feed.submit(request(), workers)
        feed.close()

    assert with_feed(test).aborted == []


def test_events_after_the_loop_has_closed_do_not_hurt_the_engine() -> None:
    async def test(feed: Feed, engine: ScriptedEngine, workers: Workers) -> None:
        await feed.submit(request(), workers)

    engine = with_feed(test)
    engine.deliver["r"](token(1))
