"""vLLM as a candidate, on a stand-in for its package; and the environment of its process."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from bench_fakes import SETUP

from kvasir.bench import vllm_env as env_module
from kvasir.bench.candidate import Candidate, common_prefix, load
from kvasir.bench.vllm_env import vllm_env

MODULE = "kvasir.bench.engines.vllm"
BLOCK = 4
STEP_TOKENS = 8  # of a prompt, in one step


@dataclass
class FakeRequest:
    name: str
    prompt: list[int]
    salt: str
    n_tokens: int
    read: int = 0
    reused: int = 0
    tokens: list[int] = field(default_factory=list)


class FakeEngine:
    """Reads ``STEP_TOKENS`` of each prompt a step, then counts up from its last token.

    A step takes a second of ``clock``. Prompts are kept in blocks, by salt.
    """

    def __init__(self, args: Mapping[str, Any]) -> None:
        self.args = args
        self.clock = 100.0
        self.too_short = False
        self.is_shut = False
        self.running: list[FakeRequest] = []
        self.largest_batch = 0
        self.kept: dict[str, list[int]] = {}
        self.engine_core = SimpleNamespace(shutdown=lambda: setattr(self, "is_shut", True))
        self.vllm_config = SimpleNamespace(
            compilation_config=SimpleNamespace(mode=SimpleNamespace(name="TRACED")),
            scheduler_config=SimpleNamespace(max_num_batched_tokens=STEP_TOKENS),
            cache_config=SimpleNamespace(block_size=BLOCK),
        )

    def add_request(self, name: str, prompt: dict[str, Any], params: dict[str, Any]) -> str:
        assert params["temperature"] == 0
        assert params["ignore_eos"]
        tokens, salt = prompt["prompt_token_ids"], prompt["cache_salt"]
        same = min(common_prefix(self.kept.get(salt, []), tokens), len(tokens) - 1)
        reused = same // BLOCK * BLOCK
        request = FakeRequest(name, tokens, salt, params["max_tokens"], read=reused, reused=reused)
        self.running.append(request)
        return f"{name}-internal"

    def has_unfinished_requests(self) -> bool:
        return bool(self.running)

    def step(self) -> list[Any]:
        self.clock += 1
        self.largest_batch = max(self.largest_batch, len(self.running))
        outputs = [self._advance(request) for request in self.running]
        n_left = int(self.too_short)
        self.running = [r for r in self.running if len(r.tokens) + n_left < r.n_tokens]
        return [output for output in outputs if output is not None]

    def _advance(self, request: FakeRequest) -> Any:
        request.read += STEP_TOKENS
        if request.read < len(request.prompt):
            return None
        self.kept[request.salt] = request.prompt
        request.tokens.append(request.prompt[-1] + 1 + len(request.tokens))
        return SimpleNamespace(
            request_id=request.name,
            outputs=[SimpleNamespace(token_ids=list(request.tokens))],
            num_cached_tokens=request.reused or None,
        )


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Candidate, FakeEngine]]:
    """A candidate on the stand-in, loaded as a worker loads it, and the stand-in."""
    fake: Any = ModuleType("vllm")
    made: list[FakeEngine] = []

    def make(args: Mapping[str, Any]) -> FakeEngine:
        made.append(FakeEngine(args))
        return made[-1]

    fake.__version__ = "0.0.test"
    fake.EngineArgs = fake.SamplingParams = fake.TokensPrompt = dict
    fake.LLMEngine = SimpleNamespace(from_engine_args=make)
    monkeypatch.setitem(sys.modules, "vllm", fake)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    candidate = load(replace(SETUP, engine="vllm", kv_gib=0.5))
    module = importlib.import_module(MODULE)
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: made[0].clock))
    yield candidate, made[0]
    del sys.modules[MODULE]


Engine = tuple[Candidate, FakeEngine]


def test_the_engine_is_made_for_the_workload(engine: Engine) -> None:
    candidate, fake = engine
    assert fake.args["model"] == SETUP.weights
    assert fake.args["dtype"] == "bfloat16"
    assert fake.args["max_model_len"] == SETUP.window
    assert fake.args["kv_cache_memory_bytes"] == 2**29
    assert fake.args["enable_prefix_caching"]
    candidate.close()
    assert fake.is_shut


def test_without_a_size_the_pool_is_left_to_vllm(engine: Engine) -> None:
    del engine
    module = importlib.import_module(MODULE)
    candidate = module.load(replace(SETUP, engine="vllm", kv_gib=0.0))
    assert candidate._engine.args["kv_cache_memory_bytes"] is None


def test_the_first_token_has_its_own_time(engine: Engine) -> None:
    candidate, _ = engine
    got = candidate.answer(range(20), 5, "t")  # three steps for the prompt
    assert (got.first_s, got.total_s) == (3, 7)
    assert got.tokens == (20, 21, 22, 23, 24)
    one = candidate.answer(range(100, 103), 1, "u")
    assert (one.first_s, one.total_s, one.tokens) == (1, 1, (103,))


def test_whole_blocks_of_the_same_topic_are_reused_and_no_others(engine: Engine) -> None:
    candidate, _ = engine
    text = list(range(18))
    assert candidate.answer([*text, 90], 1, "shared").reused_tokens == 0
    again = candidate.answer([*text, 80], 1, "shared")
    assert (again.reused_tokens, again.first_s) == (16, 1)
    assert candidate.answer([*text, 70], 1, "another").reused_tokens == 0


def test_a_batch_runs_at_once_and_answers_in_order(engine: Engine) -> None:
    candidate, fake = engine
    prompts = [list(range(start, start + 8)) for start in (50, 10, 30)]
    got = candidate.answer_all(prompts, 3, "crowd")
    assert fake.largest_batch == 3
    assert got.tokens == ((58, 59, 60), (18, 19, 20), (38, 39, 40))
    assert (got.total_s, got.reused_tokens) == (3, 0)
    assert candidate.answer_all(prompts[2:], 1, "crowd").reused_tokens == BLOCK


def test_an_answer_that_is_too_short_is_a_failure(engine: Engine) -> None:
    candidate, fake = engine
    fake.too_short = True
    with pytest.raises(RuntimeError, match="4 tokens instead of 5"):
        candidate.answer([1, 2, 3], 5, "t")


def test_versions_and_notes_are_for_readers(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidate, _ = engine
    assert candidate.versions()["vllm"] == "0.0.test"
    monkeypatch.setenv("LD_PRELOAD", "/somewhere/liballoc.so:/elsewhere/libomp.so")
    first, second, *_ = candidate.notes()
    assert "liballoc.so and libomp.so preloaded" in first
    assert "TRACED" in first
    assert f"blocks of {BLOCK} tokens" in second
    assert "/" not in "".join(candidate.notes())
    monkeypatch.delenv("LD_PRELOAD")
    assert "nothing preloaded" in candidate.notes()[0]


# --- the environment ------------------------------------------------------------------------------


def made_env(tmp_path: Path, base: Mapping[str, str], threads: int = 2) -> dict[str, str]:
    python = str(tmp_path / "venv" / "bin" / "python")
    return vllm_env(python, threads=threads, cache=tmp_path / "cache", base=base)


def test_one_process_computes_on_as_many_cores_as_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(env_module, "_cores", lambda: [3, 5, 7])
    env = made_env(tmp_path, {})
    assert env["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert env["KMP_AFFINITY"].endswith("proclist=[3,5]")
    assert Path(env["TORCHINDUCTOR_CACHE_DIR"]).is_relative_to(tmp_path / "cache")


def test_cores_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    assert env_module._cores()
    monkeypatch.delattr(env_module.os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(env_module.os, "cpu_count", lambda: 3)
    assert env_module._cores() == [0, 1, 2]


def test_what_vllm_advises_is_preloaded_where_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(env_module.ctypes.util, "find_library", lambda name: None)
    assert made_env(tmp_path, {})["LD_PRELOAD"] == ""
    library = tmp_path / "venv" / "lib" / "libiomp5.so"
    library.parent.mkdir(parents=True)
    library.touch()
    monkeypatch.setattr(env_module.ctypes.util, "find_library", lambda name: f"lib{name}.so.4")
    assert made_env(tmp_path, {})["LD_PRELOAD"] == f"libtcmalloc_minimal.so.4:{library}"
    own = {"LD_PRELOAD": "/opt/libtcmalloc.so"}
    assert made_env(tmp_path, own)["LD_PRELOAD"] == f"/opt/libtcmalloc.so:{library}"


def test_a_link_in_a_virtual_environment_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(env_module.ctypes.util, "find_library", lambda name: None)
    for folder in ("venv/bin", "venv/lib"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "python").symlink_to(sys.executable)
    library = tmp_path / "venv" / "lib" / "libiomp5.so"
    library.touch()
    assert made_env(tmp_path, {})["LD_PRELOAD"] == str(library)
