"""A chat that goes on after a restart: answers tokenise back to other ids than were generated."""

from __future__ import annotations

import contextlib
import hmac
import logging
import socket
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from cli_process import kvasir
from virtual_server import World, byte_tokenizer, listening, world

from kvasir.core.config import Config
from kvasir.core.realm import namespace_tag
from kvasir.text.transcript_db import FILE_NAME

TOKENIZER = byte_tokenizer(pairs=True)
QUESTION = "a long text " * 60
JSON = {"content-type": "application/json"}


@pytest.fixture
def stored(tmp_path: Path) -> Config:
    return Config(home=tmp_path, disk_gib=0.01)


def ask(own: World, *texts: str) -> tuple[str, dict[str, Any]]:
    """The answer to a conversation, user first, and its usage."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    with own.http() as http:
        body = {"model": "virtual", "messages": messages, "max_tokens": 60, "seed": 7}
        reply = http.post("/v1/chat/completions", json=body)
        assert reply.status_code == 200, reply.text
        whole = reply.json()
    return whole["choices"][0]["message"]["content"], whole["usage"]


def wait_until_stored(own: World, n_tokens: int) -> None:
    until_s = time.monotonic() + 20
    while sum(record.tokens for record in own.client.kept()) < n_tokens:
        assert time.monotonic() < until_s, f"only {own.client.kept()} are stored"
        time.sleep(0.01)


def first_turns(own: World) -> list[str]:
    """Two turns of a chat, all of whose KV is stored: question, answer, question, answer."""
    first, _ = ask(own, QUESTION)
    assert len(TOKENIZER.encode(first)) < 60  # read anew, it would be other tokens
    second, usage = ask(own, QUESTION, first, "why?")
    # nobody has asked for what follows the last token, so it was never computed
    wait_until_stored(own, usage["total_tokens"] - 1)
    return [QUESTION, first, "why?", second]


def computed(usage: dict[str, Any]) -> int:
    return int(usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"])


def test_a_follow_up_after_a_restart_finds_the_kv_of_the_answers(stored: Config) -> None:
    with world(stored=stored, tokenizer=TOKENIZER) as own:
        chat = first_turns(own)
    with world(stored=stored, tokenizer=TOKENIZER) as own:
        answer, after = ask(own, *chat, "and then?")
    with world(tokenizer=TOKENIZER) as own:
        assert ask(own, *chat[:1])[0] == chat[1]
        assert ask(own, *chat[:3])[0] == chat[3]
        expected, uninterrupted = ask(own, *chat, "and then?")
    assert answer == expected
    assert after["prompt_tokens"] == uninterrupted["prompt_tokens"], "the generated ids themselves"
    assert computed(after) == computed(uninterrupted) < 60
    assert after["prompt_tokens_details"]["cached_tokens_by_tier"]["disk"] > 0


def test_without_its_file_the_answers_would_be_read_anew(stored: Config) -> None:
    """What the test above relies on."""
    with world(stored=stored, tokenizer=TOKENIZER) as own:
        chat = first_turns(own)
    (stored.home / FILE_NAME).unlink()
    with world(stored=stored, tokenizer=TOKENIZER) as own:
        _, after = ask(own, *chat, "and then?")
    assert computed(after) > 60


@pytest.mark.parametrize("tenant", ["", "local"])
def test_the_owner_clears_what_was_said(stored: Config, tenant: str) -> None:
    with world(stored=stored, tokenizer=TOKENIZER) as own:
        chat = first_turns(own)
        with owners_client(own) as owner:
            params = {"tenant": tenant} if tenant else {}
            kept = owner.delete("/kvasir/cache", headers=JSON, params={"tier": "disk"})
            assert kept.status_code == 200
            assert len(transcripts(own)) == 2, "one tier alone is not everything"
            cleared = owner.delete("/kvasir/cache", headers=JSON, params=params)
            assert cleared.status_code == 200
            assert len(transcripts(own)) == 0
            read_anew = ask(own, *chat, "and then?")[1]
            assert read_anew["prompt_tokens_details"]["cached_tokens"] == 0
    ids = TOKENIZER.encode(chat[1])[:20]  # only in what was said after the clear
    generated = [ord(character) - 32 for character in chat[1][:20]]
    data = (stored.home / FILE_NAME).read_bytes()
    assert little_endian(ids) in data
    assert little_endian(generated) not in data


def test_the_owner_clears_what_was_said_while_nobody_serves(stored: Config) -> None:
    path = stored.home / FILE_NAME
    with world(stored=stored, tokenizer=TOKENIZER) as own:
        first_turns(own)
    generated = path.read_bytes()
    assert kvasir(stored.home, "cache", "clear", "--tier", "disk").returncode == 0
    assert path.read_bytes() == generated, "one tier alone is not everything"
    done = kvasir(stored.home, "cache", "clear", "--tenant", namespace_tag(b"nobody").hex())
    assert done.returncode == 0
    assert n_rows(path) == 2
    tag = namespace_tag(hmac.digest(b"s" * 32, b"local", "sha256"))
    assert kvasir(stored.home, "cache", "clear", "--tenant", tag.hex()).returncode == 0
    assert n_rows(path) == 0
    assert kvasir(stored.home, "cache", "clear").returncode == 0
    assert not path.exists()


def n_rows(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path)) as db:
        return int(db.execute("SELECT count(*) FROM transcripts").fetchone()[0])


def transcripts(own: World) -> Any:
    return own.served.codec.transcripts._entries


def little_endian(ids: list[int]) -> bytes:
    return b"".join(i.to_bytes(4, "little") for i in ids)


@contextlib.contextmanager
def owners_client(own: World) -> Iterator[httpx2.Client]:
    """A client through a socket as a home has it."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "kvasir.sock")
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(path)
        transport = httpx2.HTTPTransport(uds=path)
        with (
            listening(own.app, sock, again=True),
            httpx2.Client(transport=transport, base_url="http://kvasir", timeout=30.0) as client,
        ):
            yield client


def test_a_file_that_cannot_be_used_costs_no_answer(
    stored: Config, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "kvasir")
    (stored.home / FILE_NAME).mkdir()
    with world(stored=stored, tokenizer=TOKENIZER) as own:
        first, _ = ask(own, QUESTION)
        _, usage = ask(own, QUESTION, first, "why?")
    assert computed(usage) < 60
    assert sum("not over a restart" in message for message in caplog.messages) == 1
