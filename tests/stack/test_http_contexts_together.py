"""Many clients at the same contexts over HTTP: one context of one content, and afterwards nothing
is left over: no work, no holds of what is gone, no files, nothing that another tenant sees."""

from __future__ import annotations

import hashlib
import hmac
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Event
from typing import Any

import httpx2
import pytest
from virtual_server import World, world

from kvasir.contexts.outline import unpacked
from kvasir.core.config import Config
from kvasir.core.plans import StepPlan
from kvasir.sched.virtual import expected_answer

SEED = int(os.environ.get("KVASIR_TEST_SEED", "0"))
SECONDS = 6.0
THREADS = 8
KEYS = {"alice-1": "alice", "bob-1": "bob"}
TEXT = "The raven sat on the roof. Nobody had seen it come. "
TAIL = "\nWhen?<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture
def made(tmp_path: Path) -> Iterator[World]:
    digests = {hashlib.sha256(key.encode()).hexdigest(): name for key, name in KEYS.items()}
    config = Config(home=tmp_path, disk_gib=0.25, keys=digests)
    with world(config, stored=config, max_step_tokens=256) as one:
        one.runner.pace_s = 0.001
        yield one


def client(made: World, key: str = "alice-1") -> httpx2.Client:
    return made.http(headers={"authorization": f"Bearer {key}"})


def text_input(text: str) -> list[dict[str, str]]:
    return [{"type": "input_text", "text": text, "title": "a.txt"}]


def wait_until_read(made: World, http: httpx2.Client) -> dict[str, dict[str, Any]]:
    until_s = time.monotonic() + 60
    while time.monotonic() < until_s:
        rows = {row["id"]: row for row in http.get("/v1/contexts?limit=1000").json()["data"]}
        if all(row["status"] not in ("queued", "in_progress") for row in rows.values()):
            return rows
        time.sleep(0.05)
    raise AssertionError(f"somebody is never read: {rows}")


def holders(made: World) -> set[str]:
    return made.client.call(lambda: set(made.cache.keeping._holders))


def check_nothing_is_left(made: World, rows: dict[str, dict[str, Any]]) -> None:
    """After the storm: the engine is idle and whole, and all that lies there is listed."""
    made.wait_until_idle()
    made.client.call(made.cache.check)
    assert holders(made) <= set(rows), "a context that is gone holds KV"
    lying = {path.name.partition(".")[0] for path in (made.served.home / "contexts").iterdir()}
    assert lying == set(rows)
    assert not list((made.served.home / "files").iterdir())


def test_sixty_four_that_create_the_same_make_one(made: World) -> None:
    start = Barrier(64)

    def create(_: int) -> str:
        with client(made) as http:
            start.wait()
            reply = http.post("/v1/contexts", json={"input": text_input(TEXT * 40)})
            assert reply.status_code == 200, reply.text
            return str(reply.json()["id"])

    with ThreadPoolExecutor(64) as pool:
        ids = set(pool.map(create, range(64)))
    assert len(ids) == 1
    with client(made) as http:
        rows = wait_until_read(made, http)
        assert set(rows) == ids
        (row,) = rows.values()
        assert row["usage"]["computed_tokens"] == row["tokens"]
        check_nothing_is_left(made, rows)
    with client(made, "bob-1") as http:
        assert http.get("/v1/contexts").json()["data"] == []


class Somebody:
    """One of several clients that do at random what can be done with contexts."""

    def __init__(self, made: World, number: int, seen: Counter[str]) -> None:
        self.rng = random.Random(f"{SEED} {number}")
        self.key = "bob-1" if number % 4 == 3 else "alice-1"
        self.made = made
        self.seen = seen

    def go(self, end: Event) -> None:
        with client(self.made, self.key) as http:
            while not end.is_set():
                kind = self.rng.choice(
                    ("create", "create", "cancel", "delete", "fork", "ask", "ask", "change", "look")
                )
                reply = getattr(self, kind)(http)
                assert reply.status_code < 500, f"{kind}: {reply.status_code} {reply.text}"
                self.seen[f"{kind} {reply.status_code}"] += 1

    def create(self, http: httpx2.Client) -> httpx2.Response:
        number, length = self.rng.randrange(6), self.rng.choice((2, 40, 160))
        body: dict[str, Any] = {"input": text_input(f"{number}. " + TEXT * length)}
        body |= {"section_tokens": 600, "summaries": number == 0 and length == 160}
        if self.rng.random() < 0.2:
            body["keep"] = "text"
        return http.post("/v1/contexts", json=body)

    def some(self, http: httpx2.Client) -> str:
        rows = http.get("/v1/contexts?limit=100").json()["data"]
        return self.rng.choice(rows)["id"] if rows else "ctx_none"

    def cancel(self, http: httpx2.Client) -> httpx2.Response:
        return http.post(f"/v1/contexts/{self.some(http)}/cancel", json={})

    def delete(self, http: httpx2.Client) -> httpx2.Response:
        json = {"content-type": "application/json"}
        return http.delete(f"/v1/contexts/{self.some(http)}", headers=json)

    def fork(self, http: httpx2.Client) -> httpx2.Response:
        body = {"input": text_input(f"More {self.rng.randrange(3)}.")}
        return http.post(f"/v1/contexts/{self.some(http)}/fork", json=body)

    def change(self, http: httpx2.Client) -> httpx2.Response:
        body = {"name": f"n{self.rng.randrange(20)}", "pinned": self.rng.random() < 0.5}
        return http.patch(f"/v1/contexts/{self.some(http)}", json=body)

    def look(self, http: httpx2.Client) -> httpx2.Response:
        path = self.rng.choice(("", "/sections", "/events", "/export"))
        return http.get(f"/v1/contexts/{self.some(http)}{path}")

    def ask(self, http: httpx2.Client) -> httpx2.Response:
        """Where there is an answer, it is that of the context and nothing else."""
        name = self.some(http)
        body = {
            "context": name,
            "messages": [{"role": "user", "content": "When?"}],
            "max_tokens": 4,
            "seed": 3,
        }
        row = self.made.served.catalog.contexts.get(KEYS[self.key], name)
        if row is None or row.sectioned:
            return http.post(f"/v1/contexts/{name}/search", json={"query": "raven"})
        ids = self.made.served.catalog.contexts.section_tokens(name)
        reply = http.post("/v1/chat/completions", json=body)
        if reply.status_code == 200:
            codec, secret = self.made.served.codec, self.made.served.secret
            prompt = [*unpacked(ids[0]), *codec.tokenizer.encode(TAIL, bos=False)]
            namespace = hmac.digest(secret, KEYS[self.key].encode(), "sha256")
            said = expected_answer(namespace, prompt, 4, seed=3, vocab_size=95)
            assert reply.json()["choices"][0]["message"]["content"] == codec.tokenizer.decode(said)
            self.seen["answers"] += 1
        return reply


def test_whatever_eight_do_at_once_nothing_is_left_of_it(made: World) -> None:
    seen: Counter[str] = Counter()
    end = Event()
    with ThreadPoolExecutor(THREADS) as pool:
        going = [pool.submit(Somebody(made, n, seen).go, end) for n in range(THREADS)]
        until_s = time.monotonic() + SECONDS
        while time.monotonic() < until_s and not any(one.done() for one in going):
            time.sleep(0.05)
        end.set()
        for one in going:
            one.result()
    assert seen["answers"], seen
    for done in ("create 200", "delete 200", "cancel 200", "fork 200", "change 200", "look 200"):
        assert seen[done], (done, seen)
    with client(made) as alice, client(made, "bob-1") as bob:
        rows = [wait_until_read(made, http) for http in (alice, bob)]
        assert not rows[0].keys() & rows[1].keys()
        for each in rows:
            prints = [row["fingerprint"] for row in each.values()]
            assert len(set(prints)) == len(prints), "the same content is two contexts"
        check_nothing_is_left(made, rows[0] | rows[1])
        foreign = next(iter(rows[0]), "ctx_none")
        for path in ("", "/sections", "/events", "/export"):
            theirs = bob.get(f"/v1/contexts/{foreign}{path}")
            nobodys = bob.get(f"/v1/contexts/ctx_none{path}")
            assert theirs.status_code == nobodys.status_code == 404
            assert theirs.text.replace(foreign, "ctx_none") == nobodys.text
        for http in (alice, bob):
            for name in wait_until_read(made, http):
                json = {"content-type": "application/json"}
                assert http.delete(f"/v1/contexts/{name}", headers=json).status_code == 200
        check_nothing_is_left(made, {})
        assert not holders(made)


def test_reading_a_long_text_keeps_no_short_question_waiting(made: World) -> None:
    """A question that comes in the midst of reading a context of many steps is answered after a few
    of them; no time is measured."""
    long = "\n\n".join(f"CHAPTER {n}\n\n" + TEXT * 12 for n in range(60))
    steps: list[int] = []
    made.runner.pace_s = 0.01

    def count(plan: StepPlan) -> None:
        steps.append(plan.number)

    made.runner.before = count
    with client(made) as http:
        reply = http.post("/v1/contexts", json={"input": text_input(long), "summaries": False})
        context = reply.json()["id"]
        while len(steps) < 10:
            time.sleep(0.005)
        began = len(steps)
        answer = http.post("/v1/completions", json={"prompt": "Short?", "max_tokens": 3})
        took = len(steps) - began
        assert answer.status_code == 200
        assert http.get(f"/v1/contexts/{context}").json()["status"] == "in_progress"
        assert took <= 3 + 12, f"{took} steps passed"
        rows = wait_until_read(made, http)
        assert rows[context]["status"] == "completed"
        assert len(steps) > began + took + 20, "it was read in so few steps that nothing is shown"
