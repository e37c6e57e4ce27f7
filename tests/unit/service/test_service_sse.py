"""Streams on ASGI: comments only in silences, and an end whatever happens."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator

import pytest
from starlette.types import Message

from kvasir.service.errors import Disconnected, stopping
from kvasir.service.replies import DetokenizeReply
from kvasir.service.served import Limits
from kvasir.service.sse import DONE, PULSE, EventStream, events, while_connected

LIMITS = Limits(silence_s=0.2, pulse_s=0.1)


async def never() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


def test_comments_come_only_in_silences() -> None:
    sent: list[tuple[float, bytes]] = []
    closed: list[bool] = []

    async def speak() -> AsyncIterator[bytes]:
        for _ in range(30):
            await asyncio.sleep(0.02)
            yield b"data: x\n\n"
        await asyncio.sleep(0.7)
        yield DONE

    async def send(message: Message) -> None:
        sent.append((time.monotonic(), message.get("body", b"")))

    stream = EventStream(speak(), limits=LIMITS, close=lambda: closed.append(True))
    asyncio.run(stream({"type": "http"}, never, send))
    assert closed == [True]
    comments = [at for at, (_, data) in enumerate(sent) if data == PULSE]
    assert len(comments) >= 2
    for at in comments:
        before_s, before = sent[at - 1]
        wanted_s = LIMITS.pulse_s if before == PULSE else LIMITS.silence_s
        # measured here, so that a slow machine only makes it longer
        assert sent[at][0] - before_s >= 0.9 * wanted_s
    assert [data for _, data in sent][-2:] == [DONE, b""]


def test_a_client_that_goes_ends_the_stream_and_closes_it() -> None:
    ended: list[str] = []

    async def speak() -> AsyncIterator[bytes]:
        try:
            yield b"data: x\n\n"
            await asyncio.Event().wait()
        finally:
            ended.append("speaking")

    async def run() -> None:
        said = asyncio.Event()

        async def receive() -> Message:
            await said.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            if message.get("body"):
                said.set()

        stream = EventStream(speak(), limits=LIMITS, close=lambda: ended.append("feed"))
        await stream({"type": "http"}, receive, send)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(run())
    assert ended == ["speaking", "feed"]


@pytest.mark.parametrize(
    ("error", "code"), [(stopping(), "server_stopping"), (KeyError("secret"), "internal_error")]
)
def test_a_failure_is_an_event_and_done_comes_all_the_same(error: Exception, code: str) -> None:
    async def fail() -> AsyncIterator[DetokenizeReply]:
        yield DetokenizeReply(prompt="x")
        raise error

    async def collect() -> list[bytes]:
        return [data async for data in events(fail())]

    said = asyncio.run(collect())
    assert said[0] == b'data: {"prompt":"x"}\n\n'
    assert json.loads(said[1].removeprefix(b"data: "))["error"]["code"] == code
    assert b"secret" not in said[1]
    assert said[2] == DONE


def test_work_for_a_client_that_has_gone_is_cancelled() -> None:
    cancelled: list[bool] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def gone() -> Message:
        await asyncio.sleep(0.01)
        return {"type": "http.disconnect"}

    async def run() -> None:
        with pytest.raises(Disconnected):
            await while_connected(gone, work())

    asyncio.run(run())
    assert cancelled == [True]
