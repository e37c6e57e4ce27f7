"""The rules of a stream: headers at once, silence, comments, failures as events, overload, ends."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from virtual_server import World, world

from kvasir.core.plans import StepPlan
from kvasir.service.served import Limits

URL = "/v1/chat/completions"
QUICK = Limits(verdict_s=0.05, silence_s=0.3, pulse_s=0.1)


def body(text: str = "hello", **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"messages": messages, "max_tokens": 8, "seed": 1, "stream": True} | fields


def payloads(lines: Iterator[str] | list[str]) -> list[str]:
    return [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]


class Gate:
    """Holds the engine's steps until it is opened."""

    def __init__(self, own: World) -> None:
        self._open = threading.Event()
        own.runner.before = self._wait

    def _wait(self, _plan: StepPlan) -> None:
        assert self._open.wait(20)

    def open(self) -> None:
        self._open.set()


def test_headers_come_before_anything_is_computed_or_said() -> None:
    with world(limits=Limits(verdict_s=0.05)) as own, own.http() as http:
        gate = Gate(own)
        with http.stream("POST", URL, json=body()) as response:
            assert response.status_code == 200
            gate.open()
            assert payloads(response.iter_lines())[-1] == "[DONE]"


def test_comments_come_after_a_silence_and_no_choices_before_text() -> None:
    with world(limits=QUICK) as own, own.http() as http:
        gate = Gate(own)
        with http.stream("POST", URL, json=body()) as response:
            assert response.status_code == 200  # the engine has not made a step yet
            lines: list[str] = []
            for line in response.iter_lines():
                lines.append(line)
                if lines.count(": still working") == 3:
                    gate.open()
        first_data = next(i for i, line in enumerate(lines) if line.startswith("data: "))
        comments = [line for line in lines[:first_data] if line]
        assert set(comments) == {": still working"}
        assert len(comments) >= 3
        first = json.loads(payloads(lines)[0])
        assert first["choices"][0]["delta"]["content"]
        assert payloads(lines)[-1] == "[DONE]"


def test_a_stream_that_speaks_has_no_comments(http: httpx2.Client) -> None:
    with http.stream("POST", URL, json=body(max_tokens=200)) as response:
        assert not [line for line in response.iter_lines() if line.startswith(":")]


def test_progress_that_nobody_asked_for_does_not_put_off_the_comments() -> None:
    with world(limits=QUICK, step_budget_s=0.001, long_stretch=1.0) as own, own.http() as http:
        own.runner.pace_s = 0.05
        with http.stream("POST", URL, json=body()) as response:  # a token or so per step
            lines = list(response.iter_lines())
        assert own.client.status().steps > 12  # so there was progress all the time
        assert ": still working" in lines


def test_a_failure_inside_a_step_is_an_event_of_its_request_alone() -> None:
    with world() as own, own.http() as http:
        own.runner.pace_s = 0.01
        poison = own.served.codec.tokenizer.encode("~")[0]

        def fail(plan: StepPlan) -> None:
            if any(work.start > 100 and work.seq == 1 for work in plan.works):
                raise RuntimeError(f"secret internals {poison}")

        own.runner.before = fail
        other: dict[str, Any] = {}

        def ask_other() -> None:
            with own.http() as second:
                while not own.client.status().running:
                    time.sleep(0.001)
                other["response"] = second.post(URL, json=body(stream=False, max_tokens=100))

        thread = threading.Thread(target=ask_other)
        thread.start()
        with http.stream("POST", URL, json=body(max_tokens=500)) as response:
            data = payloads(response.iter_lines())
        thread.join()
        assert data[-1] == "[DONE]"
        error = json.loads(data[-2])["error"]
        assert error["code"] == "engine_failure"
        assert "secret" not in error["message"]
        assert json.loads(data[0])["choices"][0]["delta"]["content"]
        assert other["response"].status_code == 200
        assert other["response"].json()["usage"]["completion_tokens"] == 100
        assert http.get("/health").status_code == 200


def test_a_failure_before_the_first_byte_is_a_500_of_its_request_alone() -> None:
    with world() as own, own.http() as http:
        own.runner.before = lambda plan: (_ for _ in ()).throw(RuntimeError("planted"))
        response = http.post(URL, json=body(stream=False))
        assert response.status_code == 500
        assert response.json()["error"]["code"] == "engine_failure"
        assert "planted" not in response.text
        own.runner.before = None
        assert http.post(URL, json=body(stream=False)).status_code == 200
        own.wait_until_idle()
        own.cache.check()


@pytest.mark.parametrize("streaming", [False, True])
def test_a_full_queue_is_a_429_with_the_time_to_come_back(streaming: bool) -> None:
    with world(max_running=1, max_waiting=1) as own, own.http() as http:
        own.runner.pace_s = 0.005
        busy = [threading.Thread(target=_drain, args=(own, f"busy {i}")) for i in range(2)]
        until_s = time.monotonic() + 10
        for count, thread in enumerate(busy, start=1):  # one after the other: the first must run
            thread.start()
            while own.client.status().waiting + own.client.status().running < count:
                assert time.monotonic() < until_s
                time.sleep(0.002)
        response = http.post(URL, json=body("one too many", stream=streaming))
        assert response.status_code == 429
        error = response.json()["error"]
        assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
        seconds, ms = (int(response.headers[h]) for h in ("retry-after", "retry-after-ms"))
        assert seconds >= 1
        assert (seconds - 1) * 1000 < max(ms, 1) <= seconds * 1000
        for thread in busy:
            thread.join()
        page = http.get("/metrics").text
        assert 'kvasir_requests_refused_total{kind="queue_full"} 1.0' in page


def _drain(own: World, text: str) -> None:
    with own.http() as http:
        assert http.post(URL, json=body(text, stream=False, max_tokens=150)).status_code == 200


def test_a_request_that_can_never_fit_is_a_400_with_the_numbers() -> None:
    with world(n_blocks=8) as own, own.http() as http:
        response = http.post(URL, json=body("x" * 300))
        error = response.json()["error"]
        assert response.status_code == 400
        assert error["param"] == "messages"
        assert "128" in error["message"]  # 8 blocks of 16 tokens


def test_an_engine_that_stops_ends_streams_with_an_event_and_takes_nothing_new() -> None:
    with world() as own, own.http() as http:
        own.runner.pace_s = 0.02
        stopper = threading.Thread(target=own.client.stop, args=(0.3,))
        with http.stream("POST", URL, json=body(max_tokens=2000, n=2)) as response:
            lines = response.iter_lines()
            first = next(line for line in lines if line)
            assert json.loads(first.removeprefix("data: "))["choices"]
            stopper.start()
            while not own.client.status().stopping:
                time.sleep(0.001)
            with own.http() as other:
                refused = other.post(URL, json=body(stream=False))
                assert refused.status_code == 503
                assert refused.json()["error"]["code"] == "server_stopping"
                assert other.get("/health").status_code == 503
            data = payloads(lines)
        stopper.join()
        assert data[-1] == "[DONE]"
        assert json.loads(data[-2])["error"]["code"] == "server_stopping"


def test_an_answer_that_ends_within_the_grace_is_finished() -> None:
    with world() as own, own.http() as http:
        own.runner.pace_s = 0.01
        stopper = threading.Thread(target=own.client.stop, args=(20.0,))
        with http.stream("POST", URL, json=body(max_tokens=30)) as response:
            lines = response.iter_lines()
            next(lines)
            stopper.start()
            data = payloads(lines)
        stopper.join()
        assert json.loads(data[-2])["choices"][0]["finish_reason"] == "length"


def test_an_engine_that_dies_ends_every_choice() -> None:
    with world() as own, own.http() as http:
        own.runner.pace_s = 0.005  # or both answers could end before the engine does

        def die(*_: object) -> None:
            raise RuntimeError("secret internals")

        with http.stream("POST", URL, json=body(max_tokens=2000, n=2)) as response:
            lines = response.iter_lines()
            next(lines)
            own.cache.seal = die  # type: ignore[method-assign]
            data = payloads(lines)
        assert data[-1] == "[DONE]"
        error = json.loads(data[-2])["error"]
        assert error["code"] == "engine_failure"
        assert "secret" not in error["message"]
        health = http.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "dead")
        assert http.post(URL, json=body()).status_code == 503


def test_a_reader_that_does_not_read_is_cut_off_and_holds_nobody_up() -> None:
    with world(limits=Limits(unread_events=200)) as own, own.http() as http:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(("127.0.0.1", own.port))
            data = json.dumps(body(max_tokens=3500, n=16, logprobs=True, top_logprobs=20)).encode()
            sock.sendall(
                b"POST " + URL.encode() + b" HTTP/1.1\r\nHost: localhost\r\n"
                b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(data) + data
            )
            assert sock.recv(10)
            until_s = time.monotonic() + 30
            while not own.client.status().finished.get("cancelled"):
                assert time.monotonic() < until_s
                assert http.get("/health").status_code == 200
                time.sleep(0.01)
        assert http.post(URL, json=body(stream=False)).status_code == 200
