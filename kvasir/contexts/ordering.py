"""In which order passages are shown: verified before unverified, then by how well they go with the
question themselves, then by their section.

Invariant: every verified passage is in the order, each place of the document once.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvasir.contexts.citations import Citation
from kvasir.contexts.focus import RankedSection
from kvasir.contexts.sweep import SectionAnswer
from kvasir.documents.passages import Passage
from kvasir.documents.ranking import PassageIndex
from kvasir.documents.values import Page

_NO_PAGE = Page(0, "", 0, 0)


def best_first(
    told: Sequence[SectionAnswer], ranking: Sequence[RankedSection], question: str
) -> tuple[Citation, ...]:
    """What sections have quoted, the best first. A section that has quoted something true is not
    asked for what it made up beside it."""
    place = {ranked.section.index: number for number, ranked in enumerate(ranking)}
    quoted = [
        (each.section.index, passage)
        for each in told
        for passage in each.passages
        if passage.verified or each.outcome == "unverified"
    ]
    scores = _scores([passage.text for _, passage in quoted], question)
    order = sorted(
        range(len(quoted)),
        key=lambda at: (
            not quoted[at][1].verified,
            -scores.get(at, 0.0),
            place.get(quoted[at][0], len(place)),
            at,
        ),
    )
    seen: dict[tuple[int, int, int, str], Citation] = {}
    for at in order:
        passage = quoted[at][1]
        said = "" if passage.verified else passage.text
        seen.setdefault((passage.document, passage.start, passage.end, said), passage)
    return tuple(seen.values())


def _scores(texts: Sequence[str], question: str) -> dict[int, float]:
    """How well each of ``texts`` goes with ``question``, by its number; those that do not are left
    out."""
    passages = [
        Passage("", number, 0, len(text), text, _NO_PAGE, ()) for number, text in enumerate(texts)
    ]
    found = PassageIndex(passages).search(question, len(passages))
    return {ranked.passage.index: ranked.score for ranked in found}
