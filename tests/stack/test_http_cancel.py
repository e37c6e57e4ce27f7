"""Clients that go: the engine stops computing for them, and nothing of them is left behind."""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import threading
import time
from typing import Any

import pytest
from virtual_server import World, world

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
DISCONNECTS = 1000
SEED = 20261122


def raw_request(path: str, body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


async def leave_early(port: int, rng: random.Random) -> None:
    """Send a request, or a part of one, read a part of the answer, or none, and go."""
    text = "x" * rng.choice((1, 50, 1500))
    fields = {"max_tokens": rng.choice((1, 30, 2000)), "stream": rng.random() < 0.6}
    fields["n"] = rng.choice((1, 1, 3))
    if rng.random() < 0.5:
        body = {"messages": [{"role": "user", "content": text}], **fields}
        data = raw_request(CHAT, body)
    else:
        data = raw_request(COMPLETIONS, {"prompt": [text, "second"], **fields})
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        if rng.random() < 0.1:
            data = data[: rng.randrange(len(data))]
        writer.write(data)
        await writer.drain()
        if rng.random() < 0.5:
            async with asyncio.timeout(rng.random() * 0.05):
                await reader.read(rng.choice((1, 300, 5000)))
        elif rng.random() < 0.7:
            await asyncio.sleep(rng.random() * 0.03)
    except TimeoutError:
        pass
    finally:
        if rng.random() < 0.5:
            writer.transport.abort()  # a reset instead of an orderly end
        else:
            writer.close()


async def leave_in_a_crowd(port: int, count: int) -> None:
    rng = random.Random(SEED)
    places = asyncio.Semaphore(32)

    async def one() -> None:
        async with places:
            await leave_early(port, random.Random(rng.random()))

    await asyncio.gather(*(one() for _ in range(count)))


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def settle(own: World, files: int) -> None:
    """Wait until everything that was going on has ended: connections and tasks first, since a text
    that is being tokenised for somebody who has gone is submitted, and aborted, afterwards."""
    until_s = time.monotonic() + 30
    while (open_files() > files or own.tasks() > own.idle_tasks) and time.monotonic() < until_s:
        time.sleep(0.01)
    quiet = 0
    while quiet < 20 and time.monotonic() < until_s:
        status = own.client.status()
        quiet = 0 if status.running or status.waiting else quiet + 1
        time.sleep(0.01)


@pytest.mark.slow
def test_a_thousand_disconnects_leave_nothing_behind() -> None:
    with world() as own:
        own.runner.pace_s = 0.001
        asyncio.run(leave_in_a_crowd(own.port, 50))  # threads and modules that come once
        own.wait_until_idle(30)
        time.sleep(0.1)
        files, threads = open_files(), {t.name for t in threading.enumerate()}
        asyncio.run(leave_in_a_crowd(own.port, DISCONNECTS))
        settle(own, files)
        assert open_files() <= files
        assert {t.name for t in threading.enumerate()} == threads
        status = own.client.status()
        assert status.finished["cancelled"] > DISCONNECTS / 10
        assert status.blocks_free + status.blocks_idle == status.blocks_total
        own.cache.check()
        assert own.tasks() == own.idle_tasks
        with own.http() as http:
            body = {"messages": [{"role": "user", "content": "still there?"}], "max_tokens": 4}
            assert http.post(CHAT, json=body).status_code == 200


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("phase", ["reading", "writing"])
def test_closing_the_connection_ends_the_computing(phase: str, streaming: bool) -> None:
    with world(step_budget_s=0.005) as own:
        own.runner.pace_s = 0.005
        body = {
            "messages": [{"role": "user", "content": "x" * (2000 if phase == "reading" else 10)}],
            "max_tokens": 2000,
            "stream": streaming,
        }
        with socket.create_connection(("127.0.0.1", own.port)) as sock:
            sock.sendall(raw_request(CHAT, body))
            wait_for(own, phase)
        own.wait_until_idle(5)
        status = own.client.status()
        assert status.finished["cancelled"] == 1
        assert (status.generated_tokens == 0) == (phase == "reading")
        assert status.generated_tokens < 2000
        own.cache.check()
        assert own.tasks() == own.idle_tasks


def wait_for(own: World, phase: str) -> None:
    until_s = time.monotonic() + 10
    while time.monotonic() < until_s:
        status = own.client.status()
        if status.running and (phase == "reading" or status.generated_tokens > 3):
            return
        time.sleep(0.001)
    raise AssertionError("the request did not get that far")


def test_what_was_read_before_the_client_went_is_reused() -> None:
    with world(step_budget_s=0.005) as own, own.http() as http:
        body = {"prompt": "x" * 2000, "max_tokens": 2000, "stream": True}
        own.runner.pace_s = 0.002
        with http.stream("POST", COMPLETIONS, json=body) as response:
            next(response.iter_lines())
        own.wait_until_idle(5)
        assert own.client.status().finished["cancelled"] == 1
        again = http.post(COMPLETIONS, json=body | {"stream": False, "max_tokens": 1}).json()
        assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == 1999
