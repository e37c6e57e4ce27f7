"""The map: one question to many sections, each from its kept KV, batched; every section answers
with a quote or says that there is nothing.

Invariant: every section that was to be asked has exactly one ``SectionAnswer``, also where its
question failed; an answer is called ``found`` only for a quote that stands in that section.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from kvasir.catalog.values import ContextRow, SectionRow
from kvasir.contexts.asking import tail_ids
from kvasir.contexts.batch import Done, run_all
from kvasir.contexts.citations import Citation, citations_in
from kvasir.contexts.definition import Definition
from kvasir.contexts.library import Library
from kvasir.contexts.outline import unpacked
from kvasir.contexts.promise import SWEEP_WIDTH
from kvasir.core.requests import Request
from kvasir.core.tiers import Tier

Outcome = Literal["found", "unverified", "empty", "failed"]

MAX_TOKENS = 64  # of one section's answer: a sentence
_QUESTION = (
    "{question}\n"
    "Quote the one sentence of the text above that answers this. If none does, say: nothing here."
)
_NOTHING = re.compile(r"^\W*nothing here\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class SectionAnswer:
    """What one section said. ``tokens`` are the generated ids."""

    section: SectionRow
    outcome: Outcome
    answer: str
    passages: tuple[Citation, ...]
    tokens: tuple[int, ...]
    computed_tokens: int
    memory_tokens: int  # reused from memory
    disk_tokens: int  # reused from disk
    problem: str = ""


def sweep(
    library: Library,
    row: ContextRow,
    definition: Definition,
    sections: Sequence[SectionRow],
    question: str,
    *,
    unwanted: Callable[[], bool],
) -> Iterator[SectionAnswer]:
    """The answers of ``sections`` as they come. Raises ``Cancelled`` once ``unwanted`` says so."""
    namespace = library.namespace_of(row.tenant)
    ids = library.tokens(row)
    tail = tail_ids(library, row, _QUESTION.format(question=question))
    stamp = f"{time.time_ns():x}"
    by_id = {f"ask-{row.id}-{stamp}-{s.index}": s for s in sections}

    def requests() -> Iterator[Request]:
        for request_id, section in by_id.items():
            yield Request(
                id=request_id,
                namespace=namespace,
                tokens=[*unpacked(ids[section.index]), *tail],
                max_tokens=MAX_TOKENS,
                stop_token_ids=library.codec.tokenizer.eos_ids,
                transient=True,
            )

    enough = _one_line(library)
    for done in run_all(
        library.engine, requests(), width=SWEEP_WIDTH, cancelled=unwanted, enough=enough
    ):
        yield _judged(library, definition, by_id[done.request.id], done)


def _one_line(library: Library) -> Callable[[Sequence[int]], bool]:
    """Ends an answer behind its first line: what is asked for is one sentence. A model that thinks
    aloud first is let think."""
    tokenizer = library.codec.tokenizer

    def enough(tokens: Sequence[int]) -> bool:
        if b"\n" not in tokenizer.token_bytes(tokens[-1]):
            return False
        said = tokenizer.decode(tokens).lstrip()
        return "\n" in said and not (said.startswith("<think>") and "</think>" not in said)

    return enough


def _judged(
    library: Library, definition: Definition, section: SectionRow, done: Done
) -> SectionAnswer:
    answer = library.codec.tokenizer.decode(done.tokens, skip_special=True).strip()
    if len(done.tokens) == MAX_TOKENS:  # it was cut off, maybe within a word
        answer = answer.rpartition(" ")[0] or answer
    passages: tuple[Citation, ...] = ()
    outcome: Outcome = "empty"
    if done.problem:
        outcome = "failed"
    elif answer and not _NOTHING.match(answer):
        passages = citations_in(definition, section, answer)
        outcome = "found" if any(p.verified for p in passages) else "unverified"
    on_disk = done.usage.reused_by_tier.get(Tier.DISK, 0)
    return SectionAnswer(
        section=section,
        outcome=outcome,
        answer=answer,
        passages=passages,
        tokens=done.tokens,
        computed_tokens=done.usage.computed_tokens,
        memory_tokens=done.usage.reused_tokens - on_disk,
        disk_tokens=on_disk,
        problem=done.problem,
    )
