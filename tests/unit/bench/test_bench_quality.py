"""Quality is scored right for known predictions and stretches, and needles are found again."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bench_models import gguf_model

from kvasir.bench import quality, quality_run
from kvasir.bench.made_model import random_tensors, small_qwen
from kvasir.bench.options import FORMATS
from kvasir.bench.quality_needles import ANSWER_TOKENS, make_needles, rate
from kvasir.bench.quality_reader import BLOCK_TOKENS, Reader
from kvasir.bench.quality_scores import Tally, stretches
from kvasir.core.errors import ConfigError
from kvasir.kernels.native import library
from kvasir.model.native_forward import NativeForward
from kvasir.model.spec import ModelSpec

needs_native = pytest.mark.skipif(library.best() is None, reason="no native kernels here")
WINDOW = 512


def small(window: int = WINDOW) -> ModelSpec:
    return replace(
        small_qwen(window),
        n_layers=2,
        hidden=64,
        n_heads=4,
        n_kv_heads=2,
        head_dim=32,
        intermediate=96,
        vocab_size=320,
    )


# --- options --------------------------------------------------------------------------------------


def test_the_text_is_named_or_that_of_the_data_folder(tmp_path: Path) -> None:
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "a.txt").touch()
    env = {"KVASIR_TEST_DATA": str(tmp_path)}
    assert quality.parse([], env).text == tmp_path / "books" / "a.txt"
    options = quality.parse(["--text", "b.txt", "--json", "/x/o.json"], env)
    assert options.text == Path("b.txt")
    assert (options.needles, options.window, options.out) == (40, 0, Path("/x/o.json"))
    assert options.command == "kvasir bench quality --text b.txt --json o.json"


def test_without_a_text_it_says_how_to_give_one(tmp_path: Path) -> None:
    for env in ({}, {"KVASIR_TEST_DATA": str(tmp_path)}):
        with pytest.raises(ConfigError, match=r"--text FILE.*KVASIR_TEST_DATA"):
            quality.parse([], env)


@pytest.mark.parametrize("argv", [("--threads", "0"), ("--needles", "-1"), ("--window", "9")])
def test_values_that_do_not_do_are_refused_by_name(argv: tuple[str, str]) -> None:
    with pytest.raises(ConfigError, match=argv[0]):
        quality.parse([*argv, "--text", "a.txt"], {})


# --- scores ---------------------------------------------------------------------------------------


def test_scores_of_known_distributions() -> None:
    reference = torch.tensor([[0.5, 0.25, 0.25], [0.2, 0.3, 0.5]]).log() + 3  # logits shift freely
    other = torch.tensor([[0.25, 0.5, 0.25], [0.1, 0.1, 0.8]]).log()
    targets = torch.tensor([0, 2])
    whole, parts = Tally(), Tally()
    whole.add(reference, other, targets)
    for row in range(2):
        one = slice(row, row + 1)
        parts.add(reference[one], other[one], targets[one])
    for score in (whole.score(), parts.score()):
        assert score.n_tokens == 2
        assert score.reference_perplexity == pytest.approx((0.5 * 0.5) ** -0.5)
        assert score.perplexity == pytest.approx((0.25 * 0.8) ** -0.5)
        assert score.change_percent == pytest.approx(100 * (math.sqrt(0.25 / 0.2) - 1), rel=1e-5)
        first = 0.5 * math.log(2) - 0.25 * math.log(2)
        second = 0.2 * math.log(2) + 0.3 * math.log(3) + 0.5 * math.log(0.5 / 0.8)
        assert score.kl_nats == pytest.approx((first + second) / 2, rel=1e-5)
        assert score.top1_agreement == 0.5


def test_a_computation_agrees_with_itself() -> None:
    logits = torch.randn(7, 11)
    tally = Tally()
    tally.add(logits, logits, torch.arange(7))
    score = tally.score()
    assert (score.kl_nats, score.change_percent, score.top1_agreement) == (0.0, 0.0, 1.0)
    with pytest.raises(ValueError, match="no position"):
        Tally().score()


def test_stretches_do_not_overlap_and_every_position_has_a_next_token() -> None:
    assert stretches(8192) == {
        "first": range(512),
        "middle": range(3584, 4096),
        "last": range(6144, 8191),
    }
    assert stretches(256) == {"first": range(192), "last": range(192, 255)}


def test_a_chapter_begins_behind_the_table_of_contents() -> None:
    contents = "Licence\nChapter 1\nChapter 2\n\n"
    text = "CHAPTER 1\n" + "word " * 1000 + "\nCHAPTER 2\n" + "more " * 1000
    assert quality_run.chapter(contents + text) == text
    assert quality_run.chapter("no heading") == "no heading"


# --- needles --------------------------------------------------------------------------------------


def test_needles_lie_in_the_last_quarter_of_prompts_that_end_near_the_window() -> None:
    tokens = [1000 + i for i in range(1024)]
    needles = make_needles(tokens, lambda t: list(t.encode()), 5, block_tokens=64, seed=3)
    assert len({needle.word for needle in needles}) == 5
    assert needles == make_needles(tokens, lambda t: list(t.encode()), 5, block_tokens=64, seed=3)
    for needle in needles:
        assert needle.place >= 768
        assert needle.place % 64 == 0
        assert needle.place + len(needle.rest) == 1024 - ANSWER_TOKENS
        text = bytes(token for token in needle.rest if token < 256).decode()
        assert text.startswith(f"\n\nThe secret number of {needle.word} is {needle.digits}.")
        assert text.endswith(f"The secret number of {needle.word} is")
        filler = [token for token in needle.rest if token >= 1000]
        assert filler == tokens[needle.place : needle.place + len(filler)]


def test_a_window_without_room_for_a_needle_is_refused() -> None:
    with pytest.raises(ConfigError, match="--needles 0"):
        make_needles(range(128), lambda t: list(t.encode()), 1, block_tokens=64, seed=0)


def test_answers_are_rated_by_exact_numbers_and_by_digits() -> None:
    found = rate([("12345", "12345"), ("12345", "12945"), ("12345", "no"), ("12345", "123")])
    assert found.asked == 4
    assert found.exact_share == 0.25
    assert found.digit_share == (5 + 4 + 0 + 3) / 20


@needs_native
def test_a_branch_reads_the_shared_text_in_place() -> None:
    spec = small()
    isa = library.best()
    assert isa is not None
    forward = NativeForward(spec, random_tensors(spec, 1), isa=isa, threads=1)
    tokens = torch.randint(320, (WINDOW,), generator=torch.Generator().manual_seed(0)).tolist()
    other = [5, *tokens[400:440], 6]
    place = 384
    assert place % BLOCK_TOKENS == 0
    reader = Reader(forward, WINDOW, "bfloat16")
    reader.read(tokens, {})
    branched = reader.last(reader.branch(place), other, place)
    whole = Reader(forward, WINDOW, "bfloat16")
    text = [*tokens[:place], *other]
    kept = whole.read(text, {"end": range(len(text) - 1, len(text))})
    assert torch.equal(forward.logits(branched), forward.logits(kept["end"]))
    # what was read is still there for the next branch
    again = reader.last(reader.branch(place), other, place)
    assert torch.equal(branched, again)
    forward.close()


# --- the whole ------------------------------------------------------------------------------------


@needs_native
def test_more_bits_are_nearer_to_float32() -> None:
    isa = library.best()
    assert isa is not None
    subject = quality_run.made_subject(small(), seed=1)
    report = quality_run.measure(subject, isa, 1, lambda _: None)
    assert [(s.weights, s.kv) for s in report.settings] == list(FORMATS)
    kl = {(s.weights, s.kv): s.scores["last"].kl_nats for s in report.settings}
    assert 0 < kl["bf16", "bf16"] < kl["int8", "bf16"] < kl["int4", "bf16"] < 0.2
    assert kl["bf16", "bf16"] < kl["bf16", "int8"]
    assert report.settings[0].scores["last"].n_tokens == WINDOW // 4 - 1


@needs_native
def test_the_command_prints_tables_and_writes_every_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gguf_model(tmp_path / "m.gguf", "llama", window=2048)
    text = tmp_path / "book.txt"
    text.write_text("Some words of a long book. " * 200)
    monkeypatch.setattr(quality_run, "small_qwen", small)
    out = tmp_path / "new" / "out.json"
    argv = [
        *("--model", str(tmp_path / "m.gguf"), "--home", str(tmp_path / "home")),
        *("--text", str(text), "--window", "1280", "--needles", "2", "--threads", "1"),
        *("--json", str(out)),
    ]
    assert quality.main(argv) == 0
    printed = capsys.readouterr().out
    assert "m, window of 1,280 tokens" in printed
    assert "of 2 needles" in printed
    data = json.loads(out.read_text())
    assert str(tmp_path) not in out.read_text()
    real, made = data["models"]
    assert (real["name"], real["stretches"]["last"]) == ("m", [960, 1278])
    assert [len(real["settings"]), len(made["settings"])] == [6, 6]
    assert real["reference_needles"]["asked"] == real["settings"][0]["needles"]["asked"] == 2
    assert {"cpu", "flags"} <= set(data["machine"])
    assert {"kvasir", "torch", "python"} == set(data["versions"])


def test_a_text_that_is_too_short_is_refused(tmp_path: Path) -> None:
    files = gguf_model(tmp_path / "m.gguf", "llama", window=2048)
    text = tmp_path / "book.txt"
    text.write_text("short")
    options = quality.parse(["--text", str(text)], {})
    with pytest.raises(ConfigError, match=r"book.txt has \d+ tokens"):
        quality_run.real_subject(options, files)


def test_without_native_kernels_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "best", lambda: None)
    options = quality.parse(["--text", "a.txt", "--home", str(tmp_path)], {})
    with pytest.raises(ConfigError, match="no native kernels here"):
        quality_run.run(options, lambda _: None)
