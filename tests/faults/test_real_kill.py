"""kill -9 of the real server on the demonstration model: a conversation goes on as if nothing had
happened, from what is on disk."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from cli_process import START_S, serving
from kill_driver import stored, wait_for

KILLS = int(os.environ.get("KVASIR_TEST_REAL_KILLS", "3"))
SEED = int(os.environ.get("KVASIR_TEST_SEED", "0"))
BOOK = "".join(
    f"In year {year} the keeper of the lighthouse saw {year * 7 % 31} ships and {year * 5 % 13} "
    f"storms, and wrote to his sister about number {year * 11 % 17}.\n"
    for year in range(1, 13)
)
QUESTIONS = ("How many storms were there?", "Who was his sister?", "And then?", "Why is that?")


@dataclass(frozen=True)
class Turn:
    """What was said, and what it cost."""

    text: str
    prompt_tokens: int
    on_disk: int

    @property
    def kept_tokens(self) -> int:
        """What is to be stored of it: the answer's last token has no KV."""
        return self.prompt_tokens - 1


def complete(http: httpx2.Client, prompt: str) -> Turn:
    body = {"prompt": prompt, "max_tokens": 12, "temperature": 0, "seed": 1, "ignore_eos": True}
    reply = http.post("/v1/completions", json=body)
    assert reply.status_code == 200, reply.text
    usage: dict[str, Any] = reply.json()["usage"]
    on_disk = usage["prompt_tokens_details"]["cached_tokens_by_tier"]["disk"]
    return Turn(reply.json()["choices"][0]["text"], usage["prompt_tokens"], on_disk)


def question(turn: int) -> str:
    return f"\n\nQuestion {turn + 1}: {QUESTIONS[turn % len(QUESTIONS)]}\nAnswer:"


def talk_on(url: str) -> None:
    """Another answer, which is never received in full."""
    body = {"prompt": "Once upon a time", "max_tokens": 2000, "stream": True, "ignore_eos": True}
    with (
        contextlib.suppress(httpx2.TransportError),
        httpx2.stream("POST", f"{url}/v1/completions", json=body, timeout=START_S) as response,
    ):
        response.read()


def uninterrupted(home: Path, arguments: list[str]) -> list[Turn]:
    turns: list[Turn] = []
    with serving(home, *arguments) as server, httpx2.Client(base_url=server.url) as http:
        http.timeout = START_S
        prompt = BOOK
        for turn in range(KILLS + 1):
            prompt += question(turn)
            turns.append(complete(http, prompt))
            prompt += turns[-1].text
    return turns


def test_a_conversation_goes_on_over_kills(tmp_path: Path, embedded_gguf: Path) -> None:
    arguments = [str(embedded_gguf), "--dtype", "float32", "--max-window", "4096"]
    expected = uninterrupted(tmp_path / "uninterrupted", arguments)
    home, rng = tmp_path / "home", random.Random(SEED)
    prompt, kept_before = BOOK, 0
    for turn, whole in enumerate(expected):
        prompt += question(turn)
        with serving(home, *arguments) as server:
            assert not list((home / "kv").glob("*.part"))
            with httpx2.Client(base_url=server.url, timeout=START_S) as http:
                said = complete(http, prompt)
            assert (said.text, said.prompt_tokens) == (whole.text, whole.prompt_tokens)
            assert said.on_disk >= kept_before, f"turn {turn}: {said}"
            wait_for(
                lambda n=said.kept_tokens: sum(r["tokens"] for r in stored(home)) >= n,  # type: ignore[misc]
                "the conversation to be stored",
            )
            talker = threading.Thread(target=talk_on, args=(server.url,))
            talker.start()
            talker.join(rng.uniform(0, 1.0))
            server.signal(signal.SIGKILL)
            assert server.wait() == -signal.SIGKILL
            talker.join()
            assert "Traceback" not in server.stderr
        prompt += said.text
        kept_before = said.kept_tokens
