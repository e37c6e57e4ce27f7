"""The prompts of the benchmark: sizes, no overlap, and the texts they are cut from."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from kvasir.bench.workload import (
    FULL,
    QUESTIONS,
    QUICK,
    Sizes,
    find_text,
    load_text,
    make,
    make_text,
    tokens_needed,
)
from kvasir.core.errors import ConfigError

ASKED = ([1_000_001, 1_000_002], [1_000_001, 1_000_003, 1_000_004])


@pytest.mark.parametrize("sizes", [FULL, QUICK])
def test_prompts_have_their_sizes_and_share_no_text(sizes: Sizes) -> None:
    made = make(range(tokens_needed(sizes)), ASKED, sizes)  # type: ignore[arg-type]
    assert {n: len(p) for n, p in made.contexts.items()} == {n: n for n in sizes.contexts}
    assert {n: len(p) for n, p in made.warm_up.items()} == {n: n for n in sizes.contexts}
    assert len(made.shared) == sizes.shared
    assert [len(p) for p in made.clients] == [sizes.client_prompt] * sizes.clients
    cut = [
        *(made.start, made.served, made.served_warm_up, made.shared),
        *made.contexts.values(),
        *made.warm_up.values(),
        *made.clients,
    ]
    used = list(itertools.chain.from_iterable(cut))
    assert len(set(used)) == len(used) == tokens_needed(sizes)


def test_the_longest_prompt_counts_its_answer() -> None:
    made = make(range(tokens_needed(FULL)), ASKED, FULL)  # type: ignore[arg-type]
    assert made.longest == 8000 + FULL.decode_tokens
    quick = make(range(tokens_needed(QUICK)), ASKED, QUICK)  # type: ignore[arg-type]
    assert quick.longest == 256 + 3 + QUICK.shared_answer


def test_a_text_that_is_too_short_is_refused_with_the_counts() -> None:
    needed = tokens_needed(QUICK)
    with pytest.raises(ConfigError, match=f"{needed - 1} tokens .* needs {needed}"):
        make(range(needed - 1), ASKED, QUICK)  # type: ignore[arg-type]


def test_the_full_size_fits_the_demonstration_model() -> None:
    assert FULL.fitted(8192) == FULL


def test_what_does_not_fit_the_window_is_left_out() -> None:
    fitted = FULL.fitted(4096)
    assert fitted.read == (512, 2048)
    assert fitted.decode == (128, 2048)
    question_room = 4096 - fitted.shared - fitted.shared_answer
    assert question_room >= 64
    with pytest.raises(ConfigError, match="window of 256 tokens"):
        FULL.fitted(256)


def test_a_made_text_is_its_seed_and_long_enough() -> None:
    text = make_text(5000, seed=3)
    assert text == make_text(5000, seed=3)
    assert text != make_text(5000, seed=4)
    assert len(text.split()) >= 5000
    sentences = text.split(". ")
    assert len(set(sentences)) > 0.99 * len(sentences)


def test_the_questions_differ_after_a_common_beginning() -> None:
    assert QUESTIONS[0] != QUESTIONS[1]


def test_texts_come_from_the_data_folder(tmp_path: Path) -> None:
    assert find_text(tmp_path) is None
    (tmp_path / "books").mkdir()
    for name in ("b.txt", "a.txt", "0.pdf"):
        (tmp_path / "books" / name).write_text("one two three")
    found = find_text(tmp_path)
    assert found == tmp_path / "books" / "a.txt"
    assert load_text(tmp_path / "books" / "a.txt", 1) == "one two "
    with pytest.raises(ConfigError, match=r"missing\.txt"):
        load_text(tmp_path / "missing.txt", 1)
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ConfigError, match="UTF-8"):
        load_text(tmp_path / "bad.txt", 1)
