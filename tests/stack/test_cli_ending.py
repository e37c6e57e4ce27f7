"""How a server ends, and commands that run their own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx2
from cli_process import START_S, accounts, environment, kvasir, serving

from kvasir.cli.home import Home

ENDLESS = {
    "messages": [{"role": "user", "content": "Tell a long story."}],
    "max_tokens": 8000,
    "ignore_eos": True,
    "stream": True,
}


def _stream(url: str) -> httpx2.Client:
    return httpx2.Client(base_url=url, timeout=60.0)


def test_sigterm_ends_streams_cleanly_and_the_second_one_at_once(
    tmp_path: Path, embedded_gguf: Path
) -> None:
    home = tmp_path / "home"
    with serving(home, str(embedded_gguf), "--grace-s", "1") as server, _stream(server.url) as http:
        with http.stream("POST", "/v1/chat/completions", json=ENDLESS) as response:
            data = (line[6:] for line in response.iter_lines() if line.startswith("data: "))
            assert json.loads(next(data))["choices"][0]["delta"]["content"]
            server.signal(signal.SIGTERM)
            *_, error, done = data
        assert json.loads(error)["error"]["code"] == "server_stopping"
        assert done == "[DONE]"
        assert server.wait() == 0
        assert "Tell a long story" not in server.stderr
        assert "Traceback" not in server.stderr
    assert not Home(home).socket_path.exists()
    assert Home(home).owner_pid() is None

    with (
        serving(home, str(embedded_gguf), "--grace-s", "600") as server,
        _stream(server.url) as http,
        http.stream("POST", "/v1/chat/completions", json=ENDLESS) as response,
    ):
        next(response.iter_lines())
        server.signal(signal.SIGINT)
        while "SIGINT" not in server.stderr:
            time.sleep(0.02)
        server.signal(signal.SIGINT)
        assert server.wait() == 0
    assert Home(home).owner_pid() is None


def test_ask_runs_its_own_engine_where_no_server_runs(tmp_path: Path, embedded_gguf: Path) -> None:
    home, story = tmp_path / "home", tmp_path / "story.txt"
    story.write_text("The keeper of the lighthouse was called Anselm. " * 20)
    arguments = ("ask", "--model", str(embedded_gguf), str(story), "Who?", "--max-tokens", "5")
    done = kvasir(home, *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert accounts(done.stderr)[0].reused == 0
    assert "first seen" in done.stderr
    assert Home(home).owner_pid() is None
    assert not Home(home).socket_path.exists()


def test_an_interrupted_answer_ends_without_a_word(tmp_path: Path, embedded_gguf: Path) -> None:
    home, story = tmp_path / "home", tmp_path / "story.txt"
    story.write_text("Once upon a time. " * 50)
    command = ["ask", "--model", str(embedded_gguf), str(story), "Tell", "--max-tokens", "8000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "kvasir", *command],
        env=environment(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        begun = process.stdout.read(1)  # the model may end its answer by itself, but not so soon
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=START_S)
    finally:
        process.kill()
    assert begun, rest
    assert process.returncode == 130
    assert "Traceback" not in rest
    assert Home(home).owner_pid() is None


def test_doctor_says_what_is_in_the_way(tmp_path: Path) -> None:
    done = kvasir(tmp_path / "home", "doctor", "--json")
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert "kvasir pull" in told["problem"]
    assert told["machine"]["cores"] >= 1
    assert not (tmp_path / "home").exists()  # looking changes nothing


def test_a_model_that_is_not_there_is_one_clear_error(tmp_path: Path) -> None:
    done = kvasir(tmp_path / "home", "serve", str(tmp_path / "none.gguf"), "--port", "0")
    assert done.returncode == 1
    assert "none.gguf" in done.stderr
    assert len(done.stderr.splitlines()) <= 3
