"""Facts planted in a book at random places, each with the question that it answers.

Invariant: the same seed and text give the same facts at the same places; no fact stands in the text
before, and none says what another one says.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

_PLACES = (
    "harbour", "library", "observatory", "mill", "chapel", "granary", "theatre", "bakery",
    "foundry", "orchard", "bridge", "tavern", "archive", "stable", "lighthouse", "market", "school",
    "garden", "cellar", "tower", "pharmacy", "printing house", "hospital", "station", "quarry",
    "vineyard", "monastery", "shipyard", "brewery", "museum", "post office", "aqueduct", "barracks",
    "glasshouse", "armoury", "dairy", "tannery", "windmill", "ferry", "courthouse", "treasury",
    "fountain", "cemetery", "gallery", "kennel", "smithy", "boathouse", "attic", "conservatory",
    "watchtower",
)  # fmt: skip
_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"
_SENTENCE_END = re.compile(r"(?<=[a-z][.!?])\s")
MOST = len(_PLACES)


@dataclass(frozen=True, slots=True)
class Fact:
    """A sentence that was put into the text, what asks for it, and what the answer must have."""

    sentence: str
    question: str
    code: str


def plant(text: str, n_facts: int, seed: int) -> tuple[str, tuple[Fact, ...]]:
    """``text`` with ``n_facts`` (at most ``MOST``) sentences at the ends of random sentences, and
    the facts. Raises ``ValueError`` for a text with fewer sentences."""
    draw = random.Random(seed)
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    if not 0 < n_facts <= min(MOST, len(ends)):
        raise ValueError(f"{n_facts} facts cannot be planted in {len(ends)} sentences")
    facts = []
    for place in draw.sample(_PLACES, n_facts):
        code = "".join(draw.sample(_LETTERS, 2)) + f"-{draw.randrange(1000, 10_000)}"
        sentence = f"The secret number of the {place} is {code}."
        facts.append(Fact(sentence, f"What is the secret number of the {place}?", code))
    parts, at = [], 0
    for end, fact in zip(sorted(draw.sample(ends, n_facts)), facts, strict=True):
        parts += [text[at:end], fact.sentence, " "]
        at = end
    return "".join([*parts, text[at:]]), tuple(facts)
