"""How often a model misses a fact that is in the document, as measured and recorded for it.

The figures are of 50 facts planted at random places of a book (``kvasir bench documents``); a model
that was not measured has none, and is said to have none.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources

from kvasir.core.realm import Realm

_FILE = "miss_rates.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class MissRate:
    """Of ``n_facts`` planted facts, ``n_missed`` were not among the passages of the answer."""

    n_facts: int
    n_missed: int
    measured_on: str  # a date


def measured(realm: Realm, mode: str) -> MissRate | None:
    """What was measured of the weights of ``realm`` in that mode; None where nothing was."""
    found = _recorded().get(realm.weights, {}).get(mode)
    if found is None:
        return None
    return MissRate(
        n_facts=int(found["n_facts"]),
        n_missed=int(found["n_missed"]),
        measured_on=str(found["measured_on"]),
    )


@cache
def _recorded() -> dict[str, dict[str, dict[str, int | str]]]:
    data = resources.files(__package__).joinpath(_FILE).read_text(encoding="utf-8")
    recorded: dict[str, dict[str, dict[str, int | str]]] = json.loads(data)
    return recorded
