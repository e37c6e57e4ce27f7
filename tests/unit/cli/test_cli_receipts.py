"""What commands say of contexts: nothing that was not read goes uncounted, and no promise more than
was given."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvasir.cli.context_client import Context, Forecast, Unread, context_of
from kvasir.cli.receipts import (
    duration,
    forecast_text,
    receipt_text,
    short_receipt,
    stopped_text,
    unread_lines,
)


def context(**changes: Any) -> Context:
    raw = {
        "id": "ctx_1",
        "name": "a report.pdf",
        "status": "completed",
        "model": "m",
        "sectioned": False,
        "sections": 1,
        "tokens": 1000,
        "bytes": 2**20,
        "receipt": {
            "tier": "disk",
            "until": 1_800_000_000,
            "survives_restart": True,
            "survives_memory_pressure": True,
        },
        "progress": {"processed_tokens": 1000},
        "pinned": False,
        "origin": "explicit",
        "created_at": 1_700_000_000,
        "last_active_at": 1_700_000_000,
        "usage": {"requests": 0, "computed_tokens": 900, "reused_tokens": 100, "read_seconds": 2.0},
        "error": None,
        "unread": [],
    }
    return replace(context_of(raw), **changes)


def test_a_receipt_says_what_was_read_where_it_is_and_how_to_go_on() -> None:
    text = receipt_text(context())
    assert "1,000 tokens in 2.0 s (900 computed, 100 kept already)" in text
    assert "kept on disk (1 MiB), until 20" in text
    assert "survives a restart and memory pressure" in text
    assert "kvasir ask --context 'a report.pdf'" in text
    assert "not read" not in text
    assert "section" not in text


def test_no_more_is_promised_than_was_given() -> None:
    in_memory = context(kept="memory", survives_restart=False, survives_pressure=False)
    assert "survives" not in receipt_text(in_memory)
    assert "gone when the server ends" in receipt_text(in_memory)
    text_alone = receipt_text(context(kept="text", survives_restart=False))
    assert "its text alone is kept" in text_alone
    assert "is read" not in text_alone
    assert "pinned" in receipt_text(context(pinned=True))
    assert "until it is removed" in receipt_text(context(until=None))


def test_what_was_there_already_was_not_read_again() -> None:
    text = receipt_text(context(), existed=True)
    assert "is there already" in text
    assert "computed, " not in text


def test_the_short_receipt_counts_what_is_missing() -> None:
    missing = (Unread("a", 3, "page", "scanned"), Unread(None, None, "file", "empty"))
    assert "2 things not read" in short_receipt(context(unread=missing))
    assert "not read" not in short_receipt(context())
    assert "in 7 sections read in" in short_receipt(context(sectioned=True, sections=7))


def test_a_stopped_reading_says_how_much_is_kept() -> None:
    text = stopped_text(context(status="cancelled"), 250)
    assert "250 of 1,000 tokens" in text
    assert "256 KiB" in text
    assert len(text.splitlines()) == 3


def test_a_forecast_that_does_not_fit_says_why() -> None:
    forecast = Forecast(
        existing=None,
        sectioned=True,
        sections=9,
        tokens=9000,
        n_bytes=2**30,
        read_s=61.0,
        sweep_s=3.0,
        fits=False,
        refusal="Choose a larger cap.",
        unread=(),
        raw={},
    )
    text = forecast_text("book", forecast)
    assert "9 sections" in text
    assert "1 min 1 s" in text
    assert "no room" in text
    assert "Choose a larger cap." in text
    assert text.endswith("nothing was done")


PAGES = [Unread("a.pdf", page, "page", "it is scanned") for page in (2, 3, 4, 8)]


def test_pages_with_one_reason_are_one_line() -> None:
    assert unread_lines(PAGES) == [
        "not read: 4 things",
        "  pages 3-5, 9 of a.pdf: it is scanned",
    ]
    assert unread_lines([PAGES[0]])[1] == "  page 3 of a.pdf: it is scanned"
    figure = [Unread("a.pdf", 0, "figure", "an image")]
    assert unread_lines(figure)[1] == "  page 1 of a.pdf, figure: an image"
    assert unread_lines([]) == []


rows = st.builds(
    Unread,
    st.sampled_from(["a", "b", None]),
    st.integers(0, 30) | st.none(),
    st.sampled_from(["page", "figure", "file"]),
    st.sampled_from(["one", "two", "three"]),
)


@given(st.lists(rows, max_size=60))
def test_every_page_that_was_not_read_is_told(unread: list[Unread]) -> None:
    """Whoever reads all lines knows every page of every document."""
    told: set[tuple[str, int]] = set()
    for line in unread_lines(unread, most=10**6)[1:]:
        match = re.match(r"  pages? ([\d-]+(?:, [\d-]+)*)(?: of (\w))?", line)
        if match is None:
            continue
        for span in match[1].split(", "):
            first, _, last = span.partition("-")
            told |= {
                (match[2] or "", page - 1) for page in range(int(first), int(last or first) + 1)
            }
    assert told == {(u.document or "", u.page) for u in unread if u.page is not None}


@given(st.lists(rows, min_size=1, max_size=60))
def test_what_is_not_shown_is_counted(unread: list[Unread]) -> None:
    short, whole = unread_lines(unread, most=2), unread_lines(unread, most=10**6)
    assert short[0] == whole[0]
    assert str(len(unread)) in short[0]
    if len(whole) > 3:
        assert short[1:3] == whole[1:3]
        assert f"and {len(whole) - 3} more" in short[3]
    else:
        assert short == whole


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0.04, "0.0 s"),
        (59.9, "59.9 s"),
        (60, "1 min 0 s"),
        (3599.7, "1 h 0 min"),
        (7260, "2 h 1 min"),
    ],
)
def test_durations(seconds: float, told: str) -> None:
    assert duration(seconds) == told
