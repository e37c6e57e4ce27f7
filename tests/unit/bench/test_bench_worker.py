"""A worker and its parent: messages, noise, failures, deaths, time limits."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from bench_fakes import SETUP, FakeCandidate, load, script

from kvasir.bench import candidate
from kvasir.bench.process import PACKAGE, Worker, WorkerFailed, environment, only_kvasir
from kvasir.bench.worker import peak_rss_bytes, serve

# --- the worker's side ----------------------------------------------------------------------------


def told(*messages: object, loader: Callable[..., Any] = load) -> list[dict[str, Any]]:
    """The replies of a worker to ``messages``."""
    replies = io.StringIO()
    lines = [m if isinstance(m, str) else json.dumps(m) for m in messages]
    serve(io.StringIO("".join(line + "\n" for line in lines)), replies, loader)
    return [json.loads(line) for line in replies.getvalue().splitlines()]


def test_a_worker_loads_answers_and_tells_about_itself() -> None:
    loaded, about, one, many, memory = told(
        {"op": "load", "setup": asdict(SETUP)},
        {"op": "about"},
        {"op": "answer", "prompt": [7, 8], "n_tokens": 3, "topic": "t"},
        {"op": "answer_all", "prompts": [[1], [5]], "n_tokens": 2, "topic": "t"},
        {"op": "memory"},
    )
    assert loaded == {"ok": True, "value": None}
    assert about["value"] == {"versions": {"fake": "1"}, "notes": ["counts up"]}
    assert one["value"]["tokens"] == [9, 10, 11]
    assert many["value"]["tokens"] == [[2, 3], [6, 7]]
    assert memory["value"] > 2**20


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ({"op": "answer", "prompt": [1], "n_tokens": 1, "topic": ""}, "before an engine"),
        ({"op": "load", "setup": asdict(replace(SETUP, engine="other"))}, "no other here"),
        ({"op": "memory?"}, "before an engine"),
        ("not JSON", "JSONDecodeError"),
        ({}, "KeyError"),
    ],
)
def test_a_worker_reports_what_fails_and_goes_on(message: object, error: str) -> None:
    failed, after = told(message, {"op": "memory"})
    assert not failed["ok"]
    assert error in failed["error"]
    assert after["ok"]


def test_a_worker_lets_go_of_its_engine_at_the_end() -> None:
    engine = FakeCandidate()
    told({"op": "load", "setup": asdict(SETUP)}, loader=lambda _: engine)
    assert engine.closed


def test_only_known_engines_are_loaded() -> None:
    with pytest.raises(ValueError, match="unknown engine 'os'"):
        candidate.load(replace(SETUP, engine="os"))


def test_peak_memory_is_of_this_process_image() -> None:
    """A child of a process that had much memory does not inherit its peak."""
    ballast = bytearray(os.urandom(1) * (200 * 2**20))
    code = "from kvasir.bench.worker import peak_rss_bytes; print(peak_rss_bytes())"
    env = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, env=env, check=True)
    assert peak_rss_bytes() > len(ballast) > 2 * int(child.stdout)


# --- the parent's side ----------------------------------------------------------------------------


def worker(command: list[str], tmp_path: Path, timeout_s: float = 20.0) -> Worker:
    return Worker(command, env=os.environ, cwd=tmp_path, timeout_s=timeout_s)


def test_long_messages_pass_both_ways(tmp_path: Path) -> None:
    echo = script("print(json.dumps({'ok': True, 'value': message['prompt']}), flush=True)")
    prompt = list(range(200_000))  # far beyond what a pipe holds
    with worker(echo, tmp_path) as child:
        assert child.ask("echo", prompt=prompt) == prompt
        assert child.ask("echo", prompt=[1]) == [1]


def test_a_refusal_is_raised_with_its_words(tmp_path: Path) -> None:
    refusing = script("print(json.dumps({'ok': False, 'error': 'too much'}), flush=True)")
    with (
        pytest.raises(WorkerFailed, match="'answer' failed: too much"),
        worker(refusing, tmp_path) as child,
    ):
        child.ask("answer")


def test_a_death_is_raised_with_the_last_words(tmp_path: Path) -> None:
    dying = script("sys.stderr.write('out of luck'); sys.exit(3)")
    with (
        pytest.raises(WorkerFailed, match="code 3 during 'answer': out of luck"),
        worker(dying, tmp_path) as child,
    ):
        child.ask("answer")


def test_a_worker_that_is_dead_already_is_a_failure_too(tmp_path: Path) -> None:
    with worker([sys.executable, "-S", "-c", "pass"], tmp_path) as child:
        child._process.wait()
        with pytest.raises(WorkerFailed, match="code 0"):
            child.ask("answer", prompt=list(range(100_000)))


def test_a_silent_worker_is_given_up_and_ended(tmp_path: Path) -> None:
    started_s = time.monotonic()
    with (
        pytest.raises(WorkerFailed, match=r"not answered within 0\.2 s"),
        worker(script("import time; time.sleep(600)"), tmp_path, 0.2) as child,
    ):
        child.ask("answer")
    assert child._process.returncode is not None
    assert time.monotonic() - started_s < 100


def test_what_is_no_json_is_a_failure(tmp_path: Path) -> None:
    with (
        pytest.raises(WorkerFailed, match="not JSON"),
        worker(script("print('hello', flush=True)"), tmp_path) as child,
    ):
        child.ask("answer")


def test_the_real_worker_runs_without_site_packages(tmp_path: Path) -> None:
    """As in an interpreter that has a peer but none of Kvasir's dependencies (-I -S hides ours);
    what libraries print does not mix with the answers."""
    path = only_kvasir(tmp_path)
    code = (
        f"import os, sys; sys.path.insert(0, {str(path)!r})\n"
        "from kvasir.bench import worker\n"
        "worker.main.__globals__['_obey'] = lambda *_: os.write(1, b'noise') and 5\n"
        "worker.main()"
    )
    with worker([sys.executable, "-I", "-S", "-c", code], tmp_path) as child:
        assert child.ask("memory") == 5


def test_the_import_path_offers_kvasir_and_nothing_else(tmp_path: Path) -> None:
    path = only_kvasir(tmp_path)
    assert [entry.name for entry in only_kvasir(path).iterdir()] == ["kvasir"]
    assert (path / "kvasir").resolve() == PACKAGE
    env = environment({"PYTHONPATH": "theirs", "X": "1"}, threads=3, import_path=path)
    assert env["PYTHONPATH"] == f"{path}{os.pathsep}theirs"
    assert (env["OMP_NUM_THREADS"], env["X"], env["HF_HUB_OFFLINE"]) == ("3", "1", "1")
