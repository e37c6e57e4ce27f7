"""The commands on a running server: one for all tests, the demonstration model in float32."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from cli_process import Server, accounts, kvasir, serving

STORY = "The lighthouse keeper was called Anselm. He kept two goats and a telescope. " * 12


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serving") / "home"


@pytest.fixture(scope="module")
def server(home: Path, embedded_gguf: Path) -> Iterator[Server]:
    arguments = [str(embedded_gguf), "--dtype", "float32", "--alias", "gpt-4o-mini"]
    with serving(home, *arguments) as running:
        yield running


@pytest.fixture
def story(tmp_path: Path) -> str:
    path = tmp_path / "story.txt"
    path.write_text(STORY)
    return str(path)


def test_the_announced_example_works(server: Server) -> None:
    curl = ""
    while "-d '" not in curl:
        curl += server.lines.get(timeout=5)
    command = shlex.split(curl[curl.index("curl") :].replace("\\\n", " "))
    # at random, a small model goes on to the end of its window once in a while
    command[-1] = json.dumps(json.loads(command[-1]) | {"max_tokens": 40})
    done = subprocess.run([*command, "-s"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["choices"][0]["message"]["content"]


def test_memory_is_told_before_the_model_is_loaded(server: Server) -> None:
    said = server.stderr
    assert said.index("GiB weights") < said.index("loaded in")
    assert "available" in said


def test_a_second_question_reads_only_the_question(server: Server, story: str) -> None:
    arguments = ("--max-tokens", "8")
    first = kvasir(server.home, "ask", story, "What was the keeper called?", *arguments)
    second = kvasir(server.home, "ask", story, "How many goats did he keep?", *arguments)
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert first.stdout.strip()
    (one,), (two,) = accounts(first.stderr), accounts(second.stderr)
    assert one.prompt > 200
    assert one.reused < 100  # the template's own beginning at most
    assert two.computed < 40
    assert two.reused > one.prompt - 40
    assert one.computed + one.reused == one.prompt


def test_the_same_question_gives_the_same_answer(server: Server, story: str) -> None:
    answers = {
        kvasir(server.home, "ask", story, "Who is Anselm?", "--max-tokens", "12").stdout
        for _ in range(2)
    }
    assert len(answers) == 1


def test_standard_input_is_a_document(server: Server) -> None:
    done = kvasir(server.home, "ask", "-", "Who?", "--max-tokens", "4", stdin=STORY)
    assert done.returncode == 0, done.stderr
    assert accounts(done.stderr)[0].prompt > 200


def test_every_turn_of_a_chat_computes_only_what_is_new(server: Server) -> None:
    turns = "Tell me about ravens.\nWhere do they live?\nWhat do they eat?\n"
    done = kvasir(server.home, "chat", "--max-tokens", "24", stdin=turns)
    assert done.returncode == 0, done.stderr
    first, second, third = accounts(done.stderr)
    assert second.reused >= first.prompt
    assert third.reused >= second.prompt
    assert second.computed < 20
    assert third.computed < 20


def test_an_overlong_turn_of_a_chat_is_left_out_with_the_counts(server: Server) -> None:
    done = kvasir(server.home, "chat", "--max-tokens", "4", stdin=STORY * 50 + "\nWho?\n")
    assert done.returncode == 0, done.stderr
    assert "at most 8,192" in done.stderr
    (account,) = accounts(done.stderr)  # of the second turn alone
    assert account.prompt < 100


def test_the_lock_is_held(server: Server) -> None:
    done = kvasir(server.home, "serve", "--port", "0")
    assert done.returncode == 1
    assert f"in use by process {server.process.pid}" in done.stderr


def test_another_model_is_not_answered_by_this_one(server: Server, story: str) -> None:
    done = kvasir(server.home, "ask", "--model", "org/other", story, "Who?")
    assert done.returncode == 1
    assert "org/other" in done.stderr
    named = kvasir(server.home, "ask", "--model", "gpt-4o-mini", "--max-tokens", "2", story, "Who?")
    assert named.returncode == 0, named.stderr


def test_doctor_sees_the_server(server: Server, embedded_gguf: Path) -> None:
    done = kvasir(server.home, "doctor", str(embedded_gguf), "--json", KVASIR_DTYPE="float32")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["home"]["owner_pid"] == server.process.pid
    assert told["home"]["serves"] == embedded_gguf.stem
    assert told["settings"]["dtype"] == {"value": "float32", "source": "KVASIR_DTYPE"}
    assert told["settings"]["port"] == {"value": 8000, "source": "default"}
    assert told["kv"]["pool_tokens"] >= told["model"]["window"]
    assert {choice["subject"] for choice in told["choices"]} >= {"dtype", "attention", "kv pool"}
    assert told["problem"] is None


def test_the_socket_needs_no_key_and_no_known_host(server: Server) -> None:
    socket_path = server.home / "kvasir.sock"
    assert os.stat(socket_path).st_mode & 0o077 == 0
    transport = httpx2.HTTPTransport(uds=str(socket_path))
    with httpx2.Client(transport=transport, base_url="http://owner.invalid") as client:
        assert client.get("/v1/models").status_code == 200
    refused = httpx2.get(f"{server.url}/v1/models", headers={"host": "owner.invalid"})
    assert refused.status_code == 403
