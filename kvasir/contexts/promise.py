"""What keeping a context takes, known before anything is read, and what is promised of it.

Invariant: no promise is given that the tiers have no room for: what all live contexts were promised
never exceeds what their tier can hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kvasir.catalog.values import ContextRow
from kvasir.contexts.library import Library
from kvasir.contexts.outline import Outline
from kvasir.core.errors import RequestError
from kvasir.core.tiers import Tier, TierStatus

Kept = Literal["disk", "memory", "text"]

_MARGIN = 0.95  # of a tier's cap: headers, tails, and what is being written
_GIB = 2**30
QUESTION_TOKENS = 64  # of one section's question, and
ANSWER_TOKENS = 48  # of its answer: about what they have
SWEEP_WIDTH = 32  # questions that are with the engine together


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Sizes and predicted times of a context. ``load_s`` is what loading all of its KV takes,
    ``sweep_s`` a question to all its parts, loading included."""

    tokens: int
    n_parts: int
    n_bytes: int
    read_s: float
    load_s: float
    sweep_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """Where a context is kept, until when (Unix time; None: as long as nobody deletes it), and what
    that survives."""

    tier: Kept
    until: int | None
    survives_restart: bool
    survives_memory_pressure: bool
    n_bytes: int


class NoRoom(RequestError):
    """A promise that could not be kept, refused before anything was read."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="storage_full")


def forecast(library: Library, outline: Outline) -> Forecast:
    """What reading and keeping the parts of ``outline`` takes."""
    return forecast_of(library, [part.row.n_tokens for part in outline.parts])


def forecast_of(library: Library, lengths: list[int]) -> Forecast:
    """What reading and keeping texts of these many tokens takes."""
    costs = library.costs()
    n_bytes = sum(library.engine.bytes_of(length) for length in lengths)
    tier = disk(library)
    load_s = n_bytes / tier.read_bytes_per_s if tier and tier.read_bytes_per_s else 0.0
    read_s = sum(costs.prefill_s(length, 0) for length in lengths)
    ask_s = sum(costs.prefill_s(QUESTION_TOKENS, length) for length in lengths)
    # every step has a cost of its own, which the answers that are generated together share
    shared_s = costs.coefficients[0] / SWEEP_WIDTH
    decode_s = sum(shared_s + costs.decode_s(length) for length in lengths) * ANSWER_TOKENS
    return Forecast(
        tokens=sum(lengths),
        n_parts=len(lengths),
        n_bytes=n_bytes,
        read_s=read_s,
        load_s=load_s,
        sweep_s=load_s + ask_s + decode_s,
    )


def disk(library: Library) -> TierStatus | None:
    """The tier that outlives the process; None where there is none, or writing to it has failed."""
    for tier in library.engine.status().tiers:
        if tier.tier is Tier.DISK and tier.cap_bytes and not tier.failure:
            return tier
    return None


def check_room(library: Library, tenant: str, n_bytes: int, *, without: str = "") -> None:
    """Raise ``NoRoom`` unless ``n_bytes`` more can be kept for ``tenant`` beside what contexts were
    promised, the context ``without`` left out, and beside what others use of their shares."""
    tier = disk(library)
    if tier is None:
        return  # nothing is promised then
    promised = library.catalog.contexts.promised_bytes(without)
    left = int(tier.cap_bytes * _MARGIN) - promised
    if not without:  # what is held of that one already is no room to the engine
        left = min(left, library.engine.room_bytes(library.namespace_of(tenant)))
    if n_bytes <= left:
        return
    raise NoRoom(
        f"Keeping its KV takes {n_bytes / _GIB:.2f} GiB, and of the {tier.cap_bytes / _GIB:.2f} "
        f"GiB that KV may take on disk {max(0, left) / _GIB:.2f} GiB are not promised or "
        "used otherwise. Choose: a larger cap (--disk-gib), KV in fewer bits (--kv-dtype int8 "
        'halves it), deleting other contexts, or keep: "text", which keeps the text alone and '
        "computes what a focused question needs."
    )


def receipt(library: Library, row: ContextRow) -> Receipt:
    """What is promised of ``row``."""
    until = None if row.pinned else row.expires_at
    on_disk = disk(library) is not None
    text_alone = row.keep == "text" or row.status == "expired"
    tier: Kept = "text" if text_alone else "disk" if on_disk else "memory"
    return Receipt(
        tier=tier,
        until=until,
        survives_restart=tier == "disk",
        survives_memory_pressure=tier == "disk",
        n_bytes=row.n_bytes,
    )
