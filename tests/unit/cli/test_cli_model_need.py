"""What a model would need to read documents whole: the least window, and words that do not promise
a time that nobody measured."""

from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from kvasir.cli.model_need import Need, need_text, window_for
from kvasir.contexts.outline import room_tokens


@given(st.integers(1, 10**7))
def test_the_window_is_the_least_that_leaves_room_for_a_question(tokens: int) -> None:
    window = window_for(tokens)
    assert window - room_tokens(window) >= tokens
    assert window - 1 - room_tokens(window - 1) < tokens


LONG = Need(
    model="small",
    window=8192,
    tokens=100_000,
    fits=False,
    sections=70,
    window_needed=114_286,
    kv_bytes={"bf16": 2**31, "int8": 2**30},
    weights_bytes=2**28,
    file_bytes=2**27,
    measured="not measured: serve it",
)


def test_a_text_that_does_not_fit_says_what_would() -> None:
    text = need_text(LONG)
    assert "does not fit: it would take a window of 114,286; here it is read in 70 sections" in text
    assert "2.0 GiB in bf16, 1.0 GiB in int8" in text
    assert "256 MiB in bf16 (128 MiB on disk)" in text
    assert "2.2 GiB for weights and all KV" in text
    assert "reading  not measured" in text


def test_a_time_is_told_with_where_it_comes_from() -> None:
    whole = dataclasses.replace(
        LONG, fits=True, sections=1, read_s=90.0, measured="as the running server has measured"
    )
    text = need_text(whole)
    assert "8,192 tokens: fits whole" in text
    assert "about 1 min 30 s, as the running server has measured" in text
    assert "section" not in text
