"""An answer by sections in words: what stands in the text, and what does not, are never mixed."""

from __future__ import annotations

from typing import Any

import pytest
from test_cli_receipts import context

from kvasir.cli.client import ServerError
from kvasir.cli.context_client import Happening
from kvasir.cli.section_answer import (
    account_lines,
    answer_text,
    begun_lines,
    print_section_answer,
)
from kvasir.core.errors import KvasirError


def passage(text: str, *, verified: bool = True, label: str | None = "iv") -> dict[str, Any]:
    return {
        "text": text,
        "verified": verified,
        "filename": "a.pdf",
        "page": 3,
        "page_label": label,
        "title_path": ["Part I", "Ravens"],
        "document": 0,
        "start_char_index": len(text),
        "end_char_index": 2 * len(text),
    }


def begun(**changes: Any) -> dict[str, Any]:
    return {
        "mode": "sweep",
        "why": "all 3 sections are asked",
        "predicted_seconds": 2.0,
        "sections_asked": 3,
        "sections": 3,
        "ranking": [],
        "miss_rate": None,
    } | changes


def answer(passages: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    sections = [{"index": 2, "outcome": "failed", "problem": "no room"}]
    return {
        "begun": begun(),
        "passages": passages,
        "closest": [],
        "answer": "In May.",
        "found": [0],
        "unverified": [],
        "empty": [1],
        "failed": [2],
        "sections": sections,
        "unread": [{"document": "a.pdf", "page": 2, "what": "page", "reason": "scanned"}],
        "usage": {
            "computed_tokens": 10,
            "reused_tokens": 30,
            "reused_from_memory": 20,
            "reused_from_disk": 10,
            "completion_tokens": 5,
        },
        "ask_seconds": 1.0,
        "join_seconds": 0.5,
    } | changes


def test_a_quote_has_its_place_and_comes_before_the_models_words() -> None:
    text = answer_text(answer([passage("The raven\n came in May.")]))
    assert text.startswith("“The raven came in May.”\n  a.pdf, page iv, Part I > Ravens")
    assert text.index("came in May") < text.index("The model's answer, generated from the quotes")
    assert text.endswith("In May.")
    assert "page" not in answer_text(answer([passage("Text.", label=None)])).splitlines()[1]


def test_what_is_not_in_the_text_is_never_quoted() -> None:
    text = answer_text(answer([passage("Truth."), passage("Invented.", verified=False)]))
    assert "“Truth.”" in text
    assert "“Invented.”" not in text
    before, _, after = text.partition("NOT found in the text")
    assert "Truth." in before
    assert "Invented. (a.pdf" in after
    only = answer_text(answer([passage("Invented.", verified=False)]))
    assert "No passage was found by the model in the 3 sections asked, of 3." in only
    assert "generated from nothing that stands in the text" in only


def test_what_is_closest_by_words_is_told_apart_and_never_twice() -> None:
    found, close = passage("Truth."), passage("Nearly so.")
    text = answer_text(answer([found], closest=[found, close]))
    assert text.count("“Truth.”") == 1
    before, _, after = text.partition("no model had a say")
    assert "Truth." in before
    assert "“Nearly so.”\n  a.pdf, page iv" in after
    assert "no model" not in answer_text(answer([found], closest=[found]))


def test_without_a_quote_that_stands_there_may_be_no_answer() -> None:
    text = answer_text(answer([passage("Invented.", verified=False)], answer=""))
    assert text.endswith("The model gives no answer: nothing that it quoted stands in the text.")


def test_the_account_has_all_numbers() -> None:
    lines = "\n".join(account_lines(answer([])))
    assert "3 of 3 sections asked: 1 found, 1 empty, 1 failed" in lines
    assert "2.0 s predicted, 1.5 s taken" in lines
    assert "30 tokens reused (20 from memory, 10 from disk), 10 computed" in lines
    assert "section 3 failed: no room" in lines
    assert "page 3 of a.pdf: scanned" in lines
    assert "not measured" in lines


def test_the_measured_miss_rate_is_told() -> None:
    rate = {"facts": 50, "missed": 4, "measured_on": "2026-11-25"}
    lines = account_lines(answer([], begun=begun(miss_rate=rate)))
    assert "missed 4 of 50 planted facts by sweep" in lines[-1]


def test_the_ranking_says_which_are_not_asked() -> None:
    ranking = [
        {"index": n, "score": 9.0 - n, "title_path": [f"Chapter {n}"] if n else []}
        for n in range(8)
    ]
    lines = begun_lines(begun(mode="focus", sections_asked=2, sections=8, ranking=ranking))
    assert lines[1] == "  1. section 1 (score 9.0)"
    assert lines[2] == "  2. Chapter 1 (score 8.0)"
    assert all("not asked" in line for line in lines[3:])
    assert lines[-1] == "  and 3 further sections, not asked"


class Told:
    """What a server would tell; raises it where it is an error."""

    def __init__(self, *events: Happening | Exception) -> None:
        self.events = events
        self.asked: list[Any] = []

    def ask(self, name: str, question: Any) -> Any:
        self.asked.append((name, question))
        for event in self.events:
            if isinstance(event, Exception):
                raise event
            yield event


EVENTS = (
    Happening("begun", 0, begun()),
    Happening("section", 0, {"outcome": "found"}),
    Happening("joining", 0, {"passages": 1}),
)


def test_stdout_has_the_answer_and_stderr_the_account(capsys: pytest.CaptureFixture[str]) -> None:
    told = Told(*EVENTS, Happening("answer", 0, answer([passage("Truth.")])))
    print_section_answer(told, context(), {"question": "When?"})  # type: ignore[arg-type]
    assert told.asked == [("ctx_1", {"question": "When?"})]
    out, err = capsys.readouterr()
    assert "“Truth.”" in out
    assert "sections asked" not in out
    assert "all 3 sections are asked" in err
    assert "3 of 3 sections asked" in err


def test_no_document_speaks_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = passage("Truth.\x1b]52;c;cm0gLXJm\x07 \x9b2J")
    hostile["title_path"] = ["\x1b[2J"]
    told = Told(*EVENTS, Happening("answer", 0, answer([hostile], answer="In\x1b[8m May.")))
    print_section_answer(told, context(), {"question": "When?"})  # type: ignore[arg-type]
    out, err = capsys.readouterr()
    assert "Truth." in out
    assert not [c for c in out + err if not c.isprintable() and c != "\n"]


def test_an_answer_that_breaks_off_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    for told in (Told(*EVENTS), Told(*EVENTS, ServerError("gone"))):
        with pytest.raises(KvasirError):
            print_section_answer(told, context(), {"question": "?"})  # type: ignore[arg-type]
    assert capsys.readouterr().out == ""
