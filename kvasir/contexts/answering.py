"""A question on a context from beginning to end, told as it goes on.

``answer`` yields one ``Begun``, a ``SectionAnswer`` per section that is asked, one ``Joining`` and
one ``Answered``. Invariants: every section is accounted for (asked and found, unverified, empty or
failed; or not asked, in focus); what an answer is made of is told with it; the model's words are
never mixed with the document's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from kvasir.catalog.values import ContextRow, SectionRow
from kvasir.contexts.asking import prompt_on_whole
from kvasir.contexts.batch import run_all
from kvasir.contexts.choosing import Mode, Question, choose
from kvasir.contexts.citations import Citation, citations_in
from kvasir.contexts.definition import Definition
from kvasir.contexts.focus import RankedSection, Ranker
from kvasir.contexts.joining import MAX_TOKENS, join
from kvasir.contexts.library import Library
from kvasir.contexts.miss_rates import MissRate, measured
from kvasir.contexts.ordering import best_first
from kvasir.contexts.sweep import SectionAnswer, sweep
from kvasir.core.errors import KvasirError
from kvasir.core.requests import Request
from kvasir.core.tiers import Tier

_UNVERIFIED_SHOWN = 3
_CLOSEST = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """How the question is asked, why so, and what of the document was never read."""

    mode: Mode
    why: str
    predicted_s: float
    sections: tuple[SectionRow, ...]  # that are asked
    n_sections: int  # of the context
    ranking: tuple[RankedSection, ...]  # in focus
    miss_rate: MissRate | None  # as measured for this model and mode


@dataclass(frozen=True, slots=True, kw_only=True)
class Joining:
    """The sections have answered; from ``n_passages`` passages one answer is made."""

    n_passages: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """The end: passages of the document, the best first, and the model's words apart from them."""

    answer: str
    passages: tuple[Citation, ...]
    closest: tuple[Citation, ...]  # to the question by their words; no model had a say in them
    n_found: int
    n_unverified: int
    n_empty: int
    n_failed: int
    computed_tokens: int
    memory_tokens: int
    disk_tokens: int
    completion_tokens: int
    ask_s: float
    join_s: float


Told = Begun | SectionAnswer | Joining | Answered


def answer(
    library: Library,
    ranker: Ranker,
    row: ContextRow,
    question: Question,
    *,
    unwanted: Callable[[], bool] = lambda: False,
) -> Iterator[Told]:
    """Ask ``question`` of ``row``, which must be usable. Raises ``Cancelled`` once ``unwanted``
    says so, ``RequestError`` and ``EngineStopped``."""
    definition = library.definition(row)
    library.catalog.contexts.touch(row.tenant, row.id, library.now())
    if not row.sectioned:
        yield from _whole(library, ranker, row, definition, question, unwanted)
        return
    sections = library.sections(row)
    ranking = ranker.rank(row, definition, sections, question.text)
    choice = choose(library, row, sections, ranking, question)
    yield Begun(
        mode=choice.mode,
        why=choice.why,
        predicted_s=choice.predicted_s,
        sections=choice.sections,
        n_sections=len(sections),
        ranking=ranking if choice.mode == "focus" else (),
        miss_rate=measured(library.card.realm, choice.mode),
    )
    began_s = time.monotonic()
    told: list[SectionAnswer] = []
    for each in sweep(library, row, definition, choice.sections, question.text, unwanted=unwanted):
        told.append(each)
        yield each
    ask_s = time.monotonic() - began_s
    passages = best_first(told, ranking, question.text)
    # what could not be verified is shown as such, and nothing is concluded from it
    verified = [passage for passage in passages if passage.verified]
    yield Joining(n_passages=len(verified))
    began_s = time.monotonic()
    text = join(library, row, question.text, verified, unwanted=unwanted)
    closest = ranker.closest(row, definition, question.text, _CLOSEST)
    yield _answered(told, passages, closest, text, question, ask_s, time.monotonic() - began_s)


def _shown(passages: Sequence[Citation], n: int) -> tuple[Citation, ...]:
    """The ``n`` first that were verified; where none was, a few of the others."""
    verified = [passage for passage in passages if passage.verified]
    return tuple(verified[:n] or passages[: min(n, _UNVERIFIED_SHOWN)])


def _quoted(passages: Sequence[Citation], answer: str) -> tuple[Citation, ...]:
    """Verified passages before the others. An answer that is one sentence was looked for as a
    whole; where it does not stand in the text it is an answer and no false quote."""
    given = [p for p in passages if p.verified or p.text not in (answer, *answer.splitlines())]
    return tuple(sorted(given, key=lambda passage: not passage.verified))


def _answered(
    told: Sequence[SectionAnswer],
    passages: Sequence[Citation],
    closest: tuple[Citation, ...],
    text: str,
    question: Question,
    ask_s: float,
    join_s: float,
) -> Answered:
    outcomes = [each.outcome for each in told]
    return Answered(
        answer=text,
        passages=_shown(passages, question.n_passages),
        closest=closest,
        n_found=outcomes.count("found"),
        n_unverified=outcomes.count("unverified"),
        n_empty=outcomes.count("empty"),
        n_failed=outcomes.count("failed"),
        computed_tokens=sum(each.computed_tokens for each in told),
        memory_tokens=sum(each.memory_tokens for each in told),
        disk_tokens=sum(each.disk_tokens for each in told),
        completion_tokens=sum(len(each.tokens) for each in told),
        ask_s=ask_s,
        join_s=join_s,
    )


def _whole(
    library: Library,
    ranker: Ranker,
    row: ContextRow,
    definition: Definition,
    question: Question,
    unwanted: Callable[[], bool],
) -> Iterator[Told]:
    """A context that the model reads at once: one prompt, one answer, and what it quotes."""
    prompt = prompt_on_whole(library, row, [{"role": "user", "content": question.text}])
    section, *_ = library.sections(row)
    yield Begun(
        mode="whole",
        why="the context fits the window, so the model sees all of it",
        predicted_s=library.costs().prefill_s(len(prompt.ids) - prompt.n_context, prompt.n_context),
        sections=(section,),
        n_sections=1,
        ranking=(),
        miss_rate=measured(library.card.realm, "whole"),
    )
    began_s = time.monotonic()
    request = Request(
        id=f"ask-{row.id}-{time.time_ns():x}",
        namespace=library.namespace_of(row.tenant),
        tokens=prompt.ids,
        max_tokens=min(MAX_TOKENS, library.card.window - len(prompt.ids)),
        stop_token_ids=library.codec.tokenizer.eos_ids,
    )
    for done in run_all(library.engine, [request], width=1, cancelled=unwanted):
        if done.problem:
            raise KvasirError(done.problem)
        text = library.codec.tokenizer.decode(done.tokens, skip_special=True).strip()
        passages = citations_in(definition, section, text)
        on_disk = done.usage.reused_by_tier.get(Tier.DISK, 0)
        yield Answered(
            answer=text,
            passages=_quoted(passages, text)[: question.n_passages],
            closest=ranker.closest(row, definition, question.text, _CLOSEST),
            n_found=int(any(p.verified for p in passages)),
            n_unverified=int(bool(passages) and not any(p.verified for p in passages)),
            n_empty=int(not passages),
            n_failed=0,
            computed_tokens=done.usage.computed_tokens,
            memory_tokens=done.usage.reused_tokens - on_disk,
            disk_tokens=on_disk,
            completion_tokens=done.usage.completion_tokens,
            ask_s=time.monotonic() - began_s,
            join_s=0.0,
        )
