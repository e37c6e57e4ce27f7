"""The engines as candidates: exact lengths, reuse within a topic only, batches, and one model."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bench_fakes import SETUP
from bench_models import gguf_model
from synthetic_models import config_of, write_folder
from virtual_server import make_engine

from kvasir.bench.candidate import Candidate, Setup, common_prefix
from kvasir.bench.checkpoint import make_checkpoint
from kvasir.bench.engines import kvasir as ours
from kvasir.bench.engines import transformers as theirs
from kvasir.core.errors import EngineStopped

VOCAB = 60
N_TOKENS = 12


def prompt(n: int, seed: int) -> list[int]:
    source = random.Random(seed)
    return [source.randrange(VOCAB) for _ in range(n)]


DOCUMENT = prompt(40, seed=1)
FIRST, SECOND = [*DOCUMENT, *prompt(5, seed=2)], [*DOCUMENT, *prompt(7, seed=3)]


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    """A small random model in float32, as a checkpoint made from a GGUF file."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    files = gguf_model(folder / "m.gguf", "llama")
    return replace(
        SETUP,
        weights=str(make_checkpoint(files, folder / "checkpoint")),
        dtype="float32",
        window=128,
        client_tokens=64,
        kv_gib=0.001,
        home=str(folder / "home"),
    )


@pytest.fixture(scope="module", params=["kvasir", "transformers"])
def engine(request: pytest.FixtureRequest, setup: Setup) -> Iterator[Candidate]:
    module = ours if request.param == "kvasir" else theirs
    candidate = module.load(replace(setup, engine=request.param))
    yield candidate
    candidate.close()


def test_an_answer_has_its_length_and_its_times(engine: Candidate) -> None:
    got = engine.answer(FIRST, N_TOKENS, "length")
    assert len(got.tokens) == N_TOKENS
    assert 0 < got.first_s < got.total_s
    one = engine.answer(FIRST, 1, "one")
    assert one.tokens == got.tokens[:1]
    assert one.total_s >= one.first_s > 0


def test_a_second_question_reuses_the_shared_text_and_nothing_else(engine: Candidate) -> None:
    fresh = engine.answer(SECOND, N_TOKENS, "fresh")
    assert fresh.reused_tokens == 0
    engine.answer(FIRST, N_TOKENS, "shared")
    again = engine.answer(SECOND, N_TOKENS, "shared")
    assert again.reused_tokens == common_prefix(FIRST, SECOND)
    assert again.tokens == fresh.tokens
    assert engine.answer(SECOND, 1, "yet another").reused_tokens == 0


def test_the_very_same_prompt_still_computes_its_last_token(engine: Candidate) -> None:
    first = engine.answer(FIRST, N_TOKENS, "same")
    again = engine.answer(FIRST, N_TOKENS, "same")
    assert again.reused_tokens == len(FIRST) - 1
    assert again.tokens == first.tokens
    longer = [*FIRST, *first.tokens]
    assert engine.answer(longer, 1, "same").reused_tokens == len(longer) - 1


def test_a_batch_answers_each_prompt_as_alone(engine: Candidate) -> None:
    prompts = [prompt(30, seed) for seed in range(10, 15)]
    alone = [engine.answer(p, N_TOKENS, f"alone {i}").tokens for i, p in enumerate(prompts)]
    together = engine.answer_all(prompts, N_TOKENS, "together")
    assert list(together.tokens) == alone
    assert together.reused_tokens == 0
    assert together.total_s > 0


def test_versions_and_notes_are_for_readers(engine: Candidate, setup: Setup) -> None:
    assert engine.versions()["torch"] == torch.__version__
    assert engine.notes()
    assert not any(str(Path(setup.weights).parent) in note for note in engine.notes())


def test_both_engines_run_the_same_model(setup: Setup) -> None:
    """The benchmark compares speeds, so what is computed must be one thing."""
    answers = []
    for name, module in (("kvasir", ours), ("transformers", theirs)):
        candidate = module.load(replace(setup, engine=name))
        answers.append(candidate.answer(FIRST, N_TOKENS, "t").tokens)
        candidate.close()
    assert answers[0] == answers[1]
    assert len(set(answers[0])) > 1


def test_a_sliding_window_that_cannot_be_cut_back_is_read_anew(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", config_of("mistral", sliding_window=8))
    candidate = theirs.load(replace(SETUP, weights=str(folder), dtype="float32"))
    fresh = candidate.answer(SECOND, N_TOKENS, "fresh")
    candidate.answer(FIRST, N_TOKENS, "shared")
    again = candidate.answer(SECOND, N_TOKENS, "shared")
    assert again.reused_tokens == 0
    assert again.tokens == fresh.tokens


def test_a_refused_request_fails_the_benchmark_and_does_not_hang_it() -> None:
    engine, *_ = make_engine(n_blocks=4)
    candidate = ours.KvasirCandidate(engine, engine.stop)
    with pytest.raises(EngineStopped, match="refused as never_fits"):
        candidate.answer(range(1, 2000), 8, "t")
    candidate.close()
    with pytest.raises(EngineStopped):
        candidate.answer([1, 2, 3], 8, "t")


@pytest.mark.parametrize(
    ("one", "other", "n"), [([], [1], 0), ([1, 2], [1, 2, 3], 2), ([1, 2, 3], [1, 9, 3], 1)]
)
def test_common_prefix(one: list[int], other: list[int], n: int) -> None:
    assert common_prefix(one, other) == n
