"""Which sections of a context a question is put to, and why: all, the likeliest, or those named.

Invariant: what is chosen by itself is told with its reason; nothing is left out without being said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kvasir.catalog.values import ContextRow, SectionRow
from kvasir.contexts.focus import RankedSection
from kvasir.contexts.library import Library
from kvasir.contexts.promise import forecast_of
from kvasir.core.errors import RequestError

Mode = Literal["whole", "sweep", "focus"]
Wish = Literal["auto", "sweep", "focus"]

_PATIENCE_S = 60.0  # a sweep that is predicted to take longer is not chosen by itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked, and how."""

    text: str
    wish: Wish = "auto"
    n_sections: int = 4  # that a focused question is put to
    n_passages: int = 20  # that the answer comes with
    only: tuple[int, ...] = ()  # indices of sections to ask, where not all or the likeliest


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The sections that are asked, and why these."""

    mode: Mode
    why: str
    predicted_s: float
    sections: tuple[SectionRow, ...]


def choose(
    library: Library,
    row: ContextRow,
    sections: Sequence[SectionRow],
    ranking: Sequence[RankedSection],
    question: Question,
) -> Choice:
    """Which of ``sections`` are asked. Raises ``RequestError`` where one is named that there is
    not."""
    all_s = _predicted_s(library, row, sections)
    n, n_focus = len(sections), min(len(sections), question.n_sections)
    if question.only:
        chosen, mode = _named(sections, question.only), "sweep"
        why = f"the {len(chosen)} sections that were named are asked"
    elif question.wish == "sweep":
        chosen, mode = tuple(sections), "sweep"
        why = f"all {n} sections are asked, as was wished"
    elif question.wish == "auto" and all_s <= _PATIENCE_S:
        chosen, mode = tuple(sections), "sweep"
        why = f"all {n} sections are asked: predicted {all_s:.1f} s"
    else:
        chosen, mode = tuple(each.section for each in ranking[:n_focus]), "focus"
        why = f"the {n_focus} likeliest of {n} sections are asked, as was wished"
        if question.wish == "auto":
            why = (
                f"asking all {n} sections is predicted to take {all_s:.0f} s, so the {n_focus} "
                "likeliest are asked; mode sweep asks all"
            )
    return Choice(
        mode="focus" if mode == "focus" else "sweep",
        why=why,
        predicted_s=_predicted_s(library, row, chosen),
        sections=chosen,
    )


def _named(sections: Sequence[SectionRow], wanted: Sequence[int]) -> tuple[SectionRow, ...]:
    by_index = {section.index: section for section in sections}
    missing = [index for index in wanted if index not in by_index]
    if missing:
        raise RequestError(
            f"There is no section {missing[0]}; this context has {len(sections)}, counted from 0.",
            param="only_sections",
        )
    return tuple(by_index[index] for index in wanted)


def _predicted_s(library: Library, row: ContextRow, sections: Sequence[SectionRow]) -> float:
    """Seconds of asking ``sections``; where no KV is kept they are read first."""
    forecast = forecast_of(library, [section.n_tokens for section in sections])
    return forecast.sweep_s + (forecast.read_s if row.keep == "text" else 0.0)
