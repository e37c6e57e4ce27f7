"""An answer by sections on the terminal: passages of the document first, then the model's words.

Invariant: stdout has passages and the answer, each marked as what it is: a passage that was not
found in the document is never shown as a quote, and the model's words never as the document's.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from typing import Any

from kvasir.cli import show
from kvasir.cli.context_client import Context, Contexts, unread_of
from kvasir.cli.receipts import duration, unread_lines
from kvasir.core.errors import KvasirError

_MOST_PROBLEMS = 3
_MOST_CHARS = 300  # of a passage that was not quoted
_MOST_QUOTE_CHARS = 1000  # on a terminal; over HTTP it is whole
_NEXT_RANKED = 3  # that are shown behind those that are asked


def print_section_answer(contexts: Contexts, context: Context, question: Mapping[str, Any]) -> None:
    """Ask ``question`` (``service.contexts.bodies.AskRequest``) and print what comes of it.

    Ends the answer on the server when interrupted.
    """
    answer: Mapping[str, Any] | None = None
    with _Counting() as counting:
        for event in contexts.ask(context.id, question):
            match event.kind:
                case "begun":
                    for line in begun_lines(event.data):
                        show.note(line)
                    counting.begin(event.data["sections_asked"])
                case "section":
                    counting.count(event.data["outcome"])
                case "joining":
                    counting.join(event.data["passages"])
                case "answer":
                    answer = event.data
    if answer is None:
        raise KvasirError("the answer ended before it began; ask again")
    print(show.printable(answer_text(answer)))
    sys.stdout.flush()
    for line in account_lines(answer):
        show.note(line)


def begun_lines(begun: Mapping[str, Any]) -> list[str]:
    """How the question is asked and why, and in focus the ranking."""
    lines = [f"{begun['mode']}: {begun['why']}"]
    asked = begun["sections_asked"]
    ranking = begun["ranking"]
    for number, ranked in enumerate(ranking[: asked + _NEXT_RANKED], start=1):
        title = " > ".join(ranked["title_path"]) or f"section {ranked['index'] + 1}"
        mark = "" if number <= asked else ", not asked"
        lines.append(f"  {number}. {title} (score {ranked['score']:.1f}{mark})")
    left = len(ranking) - asked - _NEXT_RANKED
    if left > 0:
        lines.append(f"  and {show.count(left, 'further section')}, not asked")
    return lines


def answer_text(answer: Mapping[str, Any]) -> str:
    """What stands in the document first: quotes, then what is closest by words; then what the model
    gave as quotes and was not found; then its answer."""
    passages = answer["passages"]
    verified = [passage for passage in passages if passage["verified"]]
    blocks = [_quoted(passage) for passage in verified]
    if not verified:
        asked, sections = answer["begun"]["sections_asked"], answer["begun"]["sections"]
        blocks.append(
            f"No passage was found by the model in the {show.count(asked, 'section')} asked, of "
            f"{sections:,}."
        )
    shown = {_span(passage) for passage in verified}
    closest = [passage for passage in answer["closest"] if _span(passage) not in shown]
    if closest:
        blocks.append("Closest to the question by their words (no model had a say in this):")
        blocks += [_quoted(passage) for passage in closest]
    others = [passage for passage in passages if not passage["verified"]]
    if others:
        blocks.append(
            "Given as quotes by the model, but NOT found in the text, so maybe made up:\n"
            + "\n".join(f"  - {_one_line(passage)} ({_place(passage)})" for passage in others)
        )
    return "\n\n".join([*blocks, _models_words(answer["answer"].strip(), bool(verified))])


def _models_words(said: str, verified: bool) -> str:
    if not said:
        return "The model gives no answer: nothing that it quoted stands in the text."
    source = "the quotes above" if verified else "nothing that stands in the text"
    return f"The model's answer, generated from {source}:\n{said}"


def _quoted(passage: Mapping[str, Any]) -> str:
    text = _one_line(passage)
    if len(text) > _MOST_QUOTE_CHARS:
        text = f"{text[:_MOST_QUOTE_CHARS]} …"
    return f"“{text}”\n  {_place(passage)}"


def _span(passage: Mapping[str, Any]) -> tuple[Any, ...]:
    return passage["document"], passage["start_char_index"], passage["end_char_index"]


def _one_line(passage: Mapping[str, Any]) -> str:
    return " ".join(str(passage["text"]).split())


def _short(passage: Mapping[str, Any]) -> str:
    text = _one_line(passage)
    return text if len(text) <= _MOST_CHARS else text[:_MOST_CHARS].rsplit(" ", 1)[0] + " …"


def _place(passage: Mapping[str, Any]) -> str:
    where = [str(passage["filename"])]
    if passage["page_label"] is not None:
        where.append(f"page {passage['page_label']}")
    titles = " > ".join(title for title in passage["title_path"] if title)
    return ", ".join([*where, titles] if titles else where)


def account_lines(answer: Mapping[str, Any]) -> list[str]:
    """What was asked, what came of it, what it took, and how far it can be trusted."""
    begun, usage = answer["begun"], answer["usage"]
    counts = {kind: len(answer[kind]) for kind in ("found", "unverified", "empty", "failed")}
    took = answer["ask_seconds"] + answer["join_seconds"]
    lines = [
        f"{begun['sections_asked']:,} of {show.count(begun['sections'], 'section')} asked: "
        + ", ".join(f"{n:,} {kind}" for kind, n in counts.items() if n or kind == "found")
        + f"; {duration(begun['predicted_seconds'])} predicted, {duration(took)} taken "
        f"({duration(answer['ask_seconds'])} asking, {duration(answer['join_seconds'])} joining)",
        f"{usage['reused_tokens']:,} tokens reused ({usage['reused_from_memory']:,} from memory, "
        f"{usage['reused_from_disk']:,} from disk), {usage['computed_tokens']:,} computed, "
        f"{usage['completion_tokens']:,} answered by sections",
    ]
    problems = [s for s in answer["sections"] if s["outcome"] == "failed"]
    lines += [
        f"section {section['index'] + 1} failed: {section['problem']}"
        for section in problems[:_MOST_PROBLEMS]
    ]
    lines += unread_lines(unread_of(answer["unread"]), most=_MOST_PROBLEMS)
    return [*lines, miss_text(begun)]


def miss_text(begun: Mapping[str, Any]) -> str:
    """How often the model misses what is there, as measured."""
    rate = begun["miss_rate"]
    if rate is None:
        return f"how often this model misses what is there by {begun['mode']}: not measured"
    return (
        f"this model missed {rate['missed']} of {rate['facts']} planted facts by {begun['mode']} "
        f"(measured {rate['measured_on']})"
    )


class _Counting:
    """Sections on a terminal as they answer: how many of how many, found, empty."""

    def __init__(self) -> None:
        self._open = contextlib.ExitStack()
        self._update: show.Counted | None = None
        self._counts: dict[str, int] = {}

    def __enter__(self) -> _Counting:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def begin(self, n_sections: int) -> None:
        """So many are asked."""
        self._update = self._open.enter_context(show.counted("asking", n_sections))

    def count(self, outcome: str) -> None:
        """One more has answered."""
        self._counts[outcome] = self._counts.get(outcome, 0) + 1
        if self._update is not None:
            self._update(sum(self._counts.values()), self._words())

    def join(self, n_passages: int) -> None:
        """All have; one answer is made."""
        if self._update is not None:
            words = f"joining {show.count(n_passages, 'passage')}"
            self._update(sum(self._counts.values()), words)

    def _words(self) -> str:
        return ", ".join(f"{n:,} {outcome}" for outcome, n in sorted(self._counts.items()))
