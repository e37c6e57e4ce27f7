"""How often the right passage is among the first ones, and whether altered quotes are told apart.

Invariant: the questions, and the passages that answer them, were written and fixed before anything
was tuned on them; tuning looked at fifty of them only, and those and the held out ones are reported
apart. So are those in the document's words, a hundred, which the target is about, and the forty in
quite other words. The same files give the same report.

A question is answered by a passage that holds one of its phrases, on the page that is named with
it. The manual says some things twice, so a question may have several. Counted beside it, and
easier: any passage on such a page.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path

import kvasir
from kvasir.bench.focus_quotes import QuoteCheck, check_quotes
from kvasir.core.errors import ConfigError
from kvasir.documents.extract import extract
from kvasir.documents.passages import Passage, passages_of
from kvasir.documents.quotes import QuoteIndex, Span
from kvasir.documents.ranking import PassageIndex
from kvasir.documents.values import Document

QUESTIONS = "debian_policy_questions.json"
KINDS = ("direct", "paraphrase")
HALVES = ("tuning", "held out")
DEPTHS = (1, 3, 10)
TARGET_KIND, TARGET_DEPTH, TARGET_SHARE = "direct", 3, 0.9
N_QUOTES = 1000
SEED = 5
COMMAND = "kvasir bench documents"
_LIBRARIES = ("bm25s", "PyStemmer", "numpy", "pypdfium2")
_NOT_FOUND = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A phrase on a page that answers a question. ``page`` is the printed label."""

    page: str
    page_index: int
    phrase: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a person would ask. ``kind``: in the document's words, or in others; ``half``: whether
    it was looked at while tuning (the held out ones have become more than a half)."""

    question: str
    kind: str
    half: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """At which place, from 1, the ranking has a passage that answers, and one on the right page."""

    question: Question
    passage_rank: int
    page_rank: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FocusReport:
    """What was found, and with what."""

    document: str
    n_passages: int
    found: tuple[Found, ...]
    quotes: QuoteCheck
    versions: dict[str, str]
    command: str = COMMAND

    def hits(self, depth: int, *, kind: str = "", half: str = "", page: bool = False) -> int:
        """Questions, of a kind and half where given, with an answer among the first ``depth``."""
        ranks = [f.page_rank if page else f.passage_rank for f in self.of(kind, half)]
        return sum(rank <= depth for rank in ranks)

    def of(self, kind: str = "", half: str = "") -> list[Found]:
        """What was found for the questions of a kind and half, for all where not given."""
        return [
            found
            for found in self.found
            if kind in ("", found.question.kind) and half in ("", found.question.half)
        ]

    def target_met(self) -> bool:
        """Whether enough of the direct questions, tuned on or not, are answered early enough."""
        n = len(self.of(TARGET_KIND))
        return n > 0 and self.hits(TARGET_DEPTH, kind=TARGET_KIND) >= TARGET_SHARE * n

    def lines(self) -> list[str]:
        """The report for people."""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        quotes = self.quotes
        return [
            f"{self.command}: {self.document}, {self.n_passages:,} passages; {versions}",
            f"{'questions':<24}{'n':>4}"
            + "".join(f"{f'first {d}':>10}" for d in DEPTHS)
            + f"{f'page in {TARGET_DEPTH}':>11}",
            *[self._row(kind, half) for kind in (*KINDS, "") for half in (*HALVES, "")],
            f"target, {TARGET_SHARE:.0%} of the {TARGET_KIND} questions in the first "
            f"{TARGET_DEPTH}: {self.hits(TARGET_DEPTH, kind=TARGET_KIND)} of "
            f"{len(self.of(TARGET_KIND))}, {'met' if self.target_met() else 'missed'}",
            f"altered quotes: {len(quotes.verified)} of {quotes.n_altered:,} verified (must be 0); "
            f"unaltered quotes set anew: {quotes.n_reset - len(quotes.missed):,} of "
            f"{quotes.n_reset:,} verified at their place",
        ]

    def _row(self, kind: str, half: str) -> str:
        n = len(self.of(kind, half))
        cells = [self.hits(depth, kind=kind, half=half) for depth in DEPTHS]
        page = self.hits(TARGET_DEPTH, kind=kind, half=half, page=True)
        name = f"{kind or 'all'}, {half or 'both'}"
        return f"{name:<24}{n:>4}" + "".join(f"{cell:>10}" for cell in cells) + f"{page:>11}"


def run(data: Path, n_quotes: int = N_QUOTES) -> FocusReport:
    """Rank the labelled questions over the manual in ``data``, the folder with ``documents/`` in
    it, and check ``n_quotes`` quotes of each sort. Raises ``ConfigError`` where it is not there."""
    name, asked = questions()
    path = data / "documents" / name
    if not path.is_file():
        raise ConfigError(
            f"there is no {path}, which the labelled questions are about; name the folder that has "
            "documents/ in it"
        )
    document = extract(path, name).documents[0]
    passages = passages_of(document)
    return FocusReport(
        document=name,
        n_passages=len(passages),
        found=rank(document, passages, asked),
        quotes=check_quotes(document.text, n_quotes, SEED),
        versions={
            "kvasir": kvasir.__version__,
            "Python": platform.python_version(),
            **{library: metadata.version(library) for library in _LIBRARIES},
        },
    )


def questions() -> tuple[str, tuple[Question, ...]]:
    """The name of the document that is asked about, and what is asked."""
    text = resources.files("kvasir.bench").joinpath("data", QUESTIONS).read_text("utf-8")
    data = json.loads(text)
    return data["document"], tuple(
        Question(
            question=row["question"],
            kind=row["kind"],
            half=row["half"],
            answers=tuple(Answer(**answer) for answer in row["answers"]),
        )
        for row in data["questions"]
    )


def rank(
    document: Document, passages: Sequence[Passage], asked: Sequence[Question]
) -> tuple[Found, ...]:
    """Where the ranking of ``passages`` has the answers of each question. Raises ``ValueError`` for
    a phrase that is not on its page."""
    index = PassageIndex(passages)
    pages: dict[int, QuoteIndex] = {}
    found = []
    for question in asked:
        order = [ranked.passage for ranked in index.search(question.question, len(passages))]
        spans = [place(document, answer, pages) for answer in question.answers]
        right = {answer.page_index for answer in question.answers}
        found.append(
            Found(
                question,
                _first([any(_holds(p, span) for span in spans) for p in order]),
                _first([p.page.index in right for p in order]),
            )
        )
    return tuple(found)


def place(document: Document, answer: Answer, pages: dict[int, QuoteIndex]) -> Span:
    """Where in the text the phrase of ``answer`` stands. ``pages`` remembers pages looked at."""
    page = document.pages[answer.page_index]
    if page.index not in pages:
        pages[page.index] = QuoteIndex(document.text[page.start : page.end])
    span = pages[page.index].find_letters(answer.phrase)
    if span is None:
        raise ValueError(f"{answer.phrase!r} is not on page {answer.page} of {document.name}")
    return Span(page.start + span.start, page.start + span.end)


def _holds(passage: Passage, span: Span) -> bool:
    """Whether the better half of ``span`` is in ``passage``: a phrase may go over its border."""
    common = min(passage.end, span.end) - max(passage.start, span.start)
    return 2 * common > span.end - span.start


def _first(right: Sequence[bool]) -> int:
    return right.index(True) + 1 if True in right else _NOT_FOUND
