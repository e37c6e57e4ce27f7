"""The reduce: what sections have said becomes one answer, in levels where it does not fit at once.

Invariant: every prompt of it fits the window with room for its answer; every passage that is given
is in exactly one prompt of the first level.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from kvasir.catalog.values import ContextRow
from kvasir.contexts.asking import plain_ids
from kvasir.contexts.batch import run_all
from kvasir.contexts.citations import Citation
from kvasir.contexts.library import Library
from kvasir.contexts.outline import room_tokens
from kvasir.contexts.summaries import fitting
from kvasir.core.errors import RequestError
from kvasir.core.requests import Request, Sampling

MAX_TOKENS = 192  # of an answer of one or two sentences
# the likeliest answer; small models go round in circles without the penalty
_SAMPLING = Sampling(temperature=0.0, repetition_penalty=1.1)
_WIDTH = 8
_LEAST_TOKENS = 64  # for passages, in a prompt
_FROM_PASSAGES = (
    "Passages of a document:\n\n{parts}\n\n"
    "Answer this question in one or two sentences, from these passages alone. If they do not "
    "answer it, say so.\n\n{question}"
)


def written(passage: Citation) -> str:
    """A passage as it stands in a prompt, on one line."""
    return f"- {' '.join(passage.text.split())}"


def join(
    library: Library,
    row: ContextRow,
    question: str,
    passages: Sequence[Citation],
    *,
    unwanted: Callable[[], bool],
) -> str:
    """One answer to ``question`` from ``passages``; empty where there are none. Raises
    ``Cancelled``, and ``RequestError`` where the question alone is too long."""
    parts = [written(passage) for passage in passages]
    window, tokenizer = library.card.window, library.codec.tokenizer
    n_frame = len(plain_ids(library, _FROM_PASSAGES.format(parts="", question=question)))
    most = window - room_tokens(window) - n_frame
    if most < _LEAST_TOKENS:
        raise RequestError(
            f"The question leaves no room for passages in the window of {window} tokens. Ask a "
            "shorter one.",
            param="question",
        )
    answer = ""
    limit = most - 1
    while parts:
        cut = [_cut(library, part, limit) for part in parts]
        groups = list(fitting(cut, [n + 1 for n in tokenizer.count(cut)], most))
        answers = list(_answers(library, row, question, groups, unwanted))
        answer = next((a for a in answers if a), "")
        if len(groups) == 1:
            break
        parts = [f"- {each}" for each in answers if each]
        limit = most // 2 - 1  # two at least go together, so that every level is a smaller one
    return answer


def _cut(library: Library, part: str, limit: int) -> str:
    """``part`` in at most ``limit`` tokens. What is shortened, which only what is longer than half
    of a window's room ever is, says so at its end."""
    shown = part
    while library.codec.tokenizer.count([shown])[0] > limit:
        part = part[: len(part) // 2]
        shown = f"{part} …"
    return shown


def _answers(
    library: Library,
    row: ContextRow,
    question: str,
    groups: Sequence[Sequence[str]],
    unwanted: Callable[[], bool],
) -> Iterator[str]:
    """The answers to the groups, in their order."""
    stamp = f"{time.time_ns():x}"
    ids = [f"join-{row.id}-{stamp}-{number}" for number in range(len(groups))]

    def requests() -> Iterator[Request]:
        for request_id, group in zip(ids, groups, strict=True):
            text = _FROM_PASSAGES.format(parts="\n".join(group), question=question)
            yield Request(
                id=request_id,
                namespace=library.namespace_of(row.tenant),
                tokens=plain_ids(library, text),
                max_tokens=min(MAX_TOKENS, room_tokens(library.card.window)),
                sampling=_SAMPLING,
                stop_token_ids=library.codec.tokenizer.eos_ids,
                transient=True,
            )

    made: dict[str, str] = {}
    for done in run_all(library.engine, requests(), width=_WIDTH, cancelled=unwanted):
        text = library.codec.tokenizer.decode(done.tokens, skip_special=True)
        made[done.request.id] = "" if done.problem else text.strip()
    return iter(made[request_id] for request_id in ids)
