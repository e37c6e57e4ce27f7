"""lm-evaluation-harness's local-completions, unchanged, on two small tasks of our own."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
from client_server import ALIAS, WINDOW, Address

pytest.importorskip("lm_eval", reason="the clients have an environment: make clients")

TASKS = Path(__file__).parent / "task"


@pytest.fixture(scope="module", autouse=True)
def offline_and_apart(tmp_path_factory: pytest.TempPathFactory):
    """The data sets library keeps no cache of these tasks, and nothing asks a hub."""
    patch = pytest.MonkeyPatch()
    patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
    patch.setenv("HF_DATASETS_OFFLINE", "1")
    patch.setenv("HF_HUB_OFFLINE", "1")
    yield
    patch.undo()


def _evaluate(server: Address, task: str, **arguments: object) -> dict:
    import lm_eval
    from lm_eval.tasks import TaskManager

    before = Path.cwd()
    os.chdir(TASKS)  # the tasks name their data beside them
    try:
        return lm_eval.simple_evaluate(
            model="local-completions",
            model_args={
                "model": ALIAS,
                "base_url": f"{server.url}/v1/completions",
                "tokenizer_backend": "remote",
                "max_length": WINDOW,
                **arguments,
            },
            tasks=[task],
            task_manager=TaskManager(include_path=str(TASKS), include_defaults=False),
            log_samples=True,
            bootstrap_iters=0,
        )
    finally:
        os.chdir(before)


@pytest.mark.parametrize("arguments", [{}, {"batch_size": 4}, {"num_concurrent": 3}])
def test_loglikelihood(server: Address, arguments: dict) -> None:
    done = _evaluate(server, "birds", **arguments)
    assert done["results"]["birds"]["acc,none"] >= 0.8  # a sixth wrong at most; chance is a third
    scores = [
        (float(logprob), is_greedy)
        for sample in done["samples"]["birds"]
        for ((logprob, is_greedy),) in sample["resps"]
    ]
    assert len(scores) == 18
    assert all(math.isfinite(logprob) and logprob < 0 for logprob, _ in scores)


def test_generate_until(server: Address) -> None:
    done = _evaluate(server, "copy")
    assert done["results"]["copy"]["exact_match,none"] == 1.0
