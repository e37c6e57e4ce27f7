"""Hostile and malformed requests over a real socket: a clear 4xx, and the server goes on."""

from __future__ import annotations

import json
import socket
import time
from typing import Any

import httpx2
import pytest
from virtual_server import World, world

from kvasir.service.served import Limits

POSTS = ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize")
JSON = {"content-type": "application/json"}


def check_error(response: httpx2.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["type"]
    return error


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"null",
        b"[]",
        b"{}",
        b'{"prompt": NaN, "messages": NaN, "tokens": NaN}',
        b'{"prompt": "\\udc00", "messages": "\\ud800"}',
        b"[" * 200_000,
        b'{"messages":' * 20_000,
        b'{"prompt":' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"seed": ' + b"1" * 100_000 + b"}",
    ],
    ids=range(12),
)
def test_malformed_bodies_are_a_400(http: httpx2.Client, path: str, data: bytes) -> None:
    check_error(http.post(path, content=data, headers=JSON), 400)
    assert http.get("/health").status_code == 200


@pytest.mark.parametrize(
    "field",
    ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty",
     "frequency_penalty", "seed", "n", "max_tokens", "top_logprobs", "max_completion_tokens",
     "logit_bias", "stop", "stop_token_ids", "stream_options", "messages", "model"],
)  # fmt: skip
def test_no_value_of_any_field_is_a_5xx(http: httpx2.Client, field: str) -> None:
    numbers = ["-1", "0", "-0.0", "1e-320", "1e999", "2147483648", "9223372036854775808", "NaN"]
    others = ["Infinity", '"x"', '""', "[]", "{}", "true", '[["x"]]', '{"x": {}}', "[null]"]
    for value in numbers + others:
        base = {"messages": '[{"role": "user", "content": "x"}]', "max_tokens": "2"}
        if field == "top_logprobs":
            base["logprobs"] = "true"
        data = "{" + ", ".join(f'"{k}": {v}' for k, v in (base | {field: value}).items()) + "}"
        response = http.post("/v1/chat/completions", content=data, headers=JSON)
        assert response.status_code in (200, 400, 404), (value, response.text)
        if response.status_code != 200:
            check_error(response, response.status_code)


def test_a_body_that_is_too_large_is_a_413_whatever_it_claims() -> None:
    with world(limits=Limits(body_bytes=10_000)) as own, own.http() as http:
        fits = json.dumps({"prompt": "x", "pad": "y" * 9_900})
        assert http.post("/v1/completions", content=fits, headers=JSON).status_code == 200

        def drip() -> Any:
            for _ in range(20):
                yield b" " * 1000

        chunked = http.post("/v1/completions", content=drip(), headers=JSON)
        assert check_error(chunked, 413)["code"] == "request_too_large"
        with socket.create_connection(("127.0.0.1", own.port), timeout=10) as sock:
            # nothing of the body is sent: the claim alone is refused
            sock.sendall(
                b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Content-Length: 99999999999999999999\r\n\r\n"
            )
            assert sock.recv(65536).startswith(b"HTTP/1.1 4")


def test_a_body_that_does_not_come_is_a_408() -> None:
    with (
        world(limits=Limits(body_s=0.1)) as own,
        socket.create_connection(("127.0.0.1", own.port), timeout=10) as sock,
    ):
        sock.sendall(
            b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 10\r\n\r\n{"
        )
        assert sock.recv(65536).startswith(b"HTTP/1.1 408")


def test_a_prompt_of_megabytes_is_refused_with_the_counts(http: httpx2.Client) -> None:
    response = http.post("/v1/completions", json={"prompt": "word " * 400_000})
    error = check_error(response, 400)
    assert error["code"] == "context_length_exceeded"
    assert "2000000 in the messages" in error["message"]


def test_an_enormous_list_of_messages_does_not_hold_up_the_others(
    shared: World, http: httpx2.Client
) -> None:
    import threading

    messages = [{"role": "user", "content": "x" * 100}] * 20_000
    data = json.dumps({"messages": messages}).encode()
    done = threading.Event()

    def send() -> None:
        with shared.http() as other:
            check_error(other.post("/v1/chat/completions", content=data, headers=JSON), 400)
        done.set()

    thread = threading.Thread(target=send)
    thread.start()
    answered = 0
    until_s = time.monotonic() + 60
    while not done.is_set() and time.monotonic() < until_s:
        assert http.get("/health").status_code == 200
        answered += 1
    thread.join()
    assert done.is_set()
    assert answered > 3


@pytest.mark.parametrize("path", ["/nope", "/v1", "/v1/chat", "/%00", "/v1/completions/x"])
def test_unknown_paths_are_a_404_in_openais_shape(http: httpx2.Client, path: str) -> None:
    check_error(http.get(path), 404)


def test_other_methods_are_a_405_that_says_which_are_allowed(http: httpx2.Client) -> None:
    response = http.get("/v1/completions")
    check_error(response, 405)
    assert response.headers["allow"] == "POST"
    check_error(http.put("/v1/models", json={}), 405)


def test_text_of_every_kind_is_answered(http: httpx2.Client) -> None:
    texts = ("\x00\x7f", "\u202e\u200b\ufeff", "🐦" * 50, "<|im_start|>system\n", "\r\n" * 9)
    for text in texts:
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": 2}
        assert http.post("/v1/chat/completions", json=body).status_code == 200
