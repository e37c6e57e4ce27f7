"""Serving on sockets that are ours, and the order in which things end."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from kvasir.cli.listener import Listener, bind_tcp, listening_in_background
from kvasir.core.errors import ConfigError


class World:
    """An application whose one stream goes on until the engine is stopped."""

    def __init__(self) -> None:
        self.engine_stopped = threading.Event()
        self.graces: list[float] = []
        self.app = FastAPI()
        self.socket = bind_tcp("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.ready = 0
        self.app.get("/stream")(self._stream)
        self.listener = Listener(
            self.app, [self.socket], grace_s=5.0, stop_engine=self._stop, on_ready=self._note_ready
        )

    def _note_ready(self) -> None:
        self.ready += 1

    def _stop(self, grace_s: float) -> None:
        self.graces.append(grace_s)
        self.engine_stopped.set()

    async def _stream(self) -> StreamingResponse:
        async def lines() -> AsyncIterator[str]:
            yield "begun\n"
            while not self.engine_stopped.is_set():
                await asyncio.sleep(0.01)
            yield "ended\n"

        return StreamingResponse(lines())


def test_an_end_stops_the_engine_and_lets_streams_finish() -> None:
    world = World()
    with listening_in_background(world.listener), httpx2.Client() as client:
        assert world.ready == 1
        with client.stream("GET", f"{world.url}/stream") as response:
            lines = response.iter_lines()
            assert next(lines) == "begun"
            world.listener.end()
            assert list(lines) == ["ended"]
    assert world.graces == [5.0]


def test_leaving_the_block_ends_everything() -> None:
    world = World()
    before = threading.active_count()
    with listening_in_background(world.listener):
        pass
    assert world.graces == [5.0]
    assert threading.active_count() == before
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(world.url)


def test_a_second_end_changes_nothing() -> None:
    world = World()
    with listening_in_background(world.listener):
        world.listener.end()
        world.listener.end(0.0)
    assert world.graces == [5.0]


def test_no_connection_waits_while_the_model_is_loaded() -> None:
    """A bound port that nobody listens on refuses at once; in a backlog, clients would hang."""
    with (
        bind_tcp("127.0.0.1", 0) as bound,
        socket.socket() as client,
        pytest.raises(ConnectionRefusedError),
    ):
        client.connect(bound.getsockname())


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port}: Address already in use"):
            bind_tcp("127.0.0.1", port)


def test_an_unknown_host_is_named() -> None:
    with pytest.raises(ConfigError, match="cannot listen on 'no such host'"):
        bind_tcp("no such host", 0)


def test_a_port_taken_while_loading_is_an_error_and_no_hang() -> None:
    world = World()
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        thief.bind(world.socket.getsockname())
        thief.listen()
        began_s = time.monotonic()
        with pytest.raises(ConfigError, match="cannot listen"):
            world.listener.listen()
        assert time.monotonic() - began_s < 60
    world.socket.close()
