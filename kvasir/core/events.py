"""What the engine says about a request, in the order in which it happens. Frozen values.

A request's life on the wire: ``Started`` once per choice, ``Progress`` while its prompt is read,
``Scored`` where prompt log-probabilities were asked, ``Token`` per generated token, and exactly one
``Finished`` per choice; or exactly one ``Refused`` for the whole request and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

from kvasir.core.tiers import Tier

NOTHING_REUSED: Mapping[Tier, int] = MappingProxyType({})


class FinishReason(StrEnum):
    """Why an answer ended."""

    STOP = "stop"  # a stop token was generated
    LENGTH = "length"  # max_tokens or the window is used up
    CANCELLED = "cancelled"  # the caller closed the connection or aborted
    FAILED = "failed"  # a fault inside a step, confined to this request


class Miss(StrEnum):
    """Why nothing, or not more, of a prompt was reused."""

    FIRST_SEEN = "first_seen"  # nothing at all is kept in this namespace yet
    DIFFERENT_TEXT = "different_text"  # the prompt differs from all that is kept
    EVICTED = "evicted"  # it was kept once and had to give way
    DAMAGED = "damaged"  # it was kept, and what was kept did not verify
    WEIGHTS_CHANGED = "weights_changed"  # it is kept, and was computed with other weights
    NUMERICS_CHANGED = "numerics_changed"  # … with another dtype, RoPE or attention policy
    ADAPTER_CHANGED = "adapter_changed"  # … with another adapter
    TOKENIZER_CHANGED = "tokenizer_changed"  # … with another tokenizer
    LAYOUT_CHANGED = "layout_changed"  # … in another layout, as with other block_tokens
    TOO_SHORT = "too_short"  # a prompt of one token has nothing to reuse: its logits are needed
    PROMPT_LOGPROBS = "prompt_logprobs"  # logits of reused positions are not kept


class RefusalKind(StrEnum):
    """Why a request was not admitted."""

    QUEUE_FULL = "queue_full"  # come back after retry_after_s
    NEVER_FITS = "never_fits"  # longer than the window or the KV pool
    STOPPING = "stopping"  # the server is shutting down


@dataclass(frozen=True, slots=True)
class TokenScore:
    """Natural log-probabilities at one position: of the token itself and of the likeliest ones."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What one choice cost. ``reused + computed`` of the prompt is always ``prompt_tokens``,
    for choices after the first as well: they reuse what the first has read. ``reused_by_tier`` adds
    up to ``reused_tokens``: whoever is the first to use what was loaded from a tier is told so."""

    prompt_tokens: int
    reused_tokens: int
    completion_tokens: int = 0
    reused_by_tier: Mapping[Tier, int] = field(default_factory=lambda: NOTHING_REUSED)
    miss: Miss | None = None  # why not more was reused, where something is known of it
    differs_at: int | None = None  # index of the first prompt token that was not found
    kept_token: int | None = None  # what the closest of the kept texts has at that place
    queued_s: float = 0.0
    read_s: float = 0.0  # from admission to the first token, or to the end of the prompt
    generate_s: float = 0.0
    preemptions: int = 0

    @property
    def computed_tokens(self) -> int:
        """Prompt tokens that had to be computed for this choice."""
        return self.prompt_tokens - self.reused_tokens


@dataclass(frozen=True, slots=True)
class Started:
    """A choice was admitted; ``reused_tokens`` of its prompt are in the cache already."""

    request_id: str
    choice: int
    reused_tokens: int


@dataclass(frozen=True, slots=True)
class Progress:
    """The prompt is read up to ``processed_tokens`` of ``total_tokens``."""

    request_id: str
    choice: int
    processed_tokens: int
    total_tokens: int
    reused_tokens: int
    eta_s: float


@dataclass(frozen=True, slots=True)
class Scored:
    """Scores of the prompt tokens at positions ``start``, ``start + 1``, …; position 0 has none."""

    request_id: str
    start: int
    scores: tuple[TokenScore, ...]


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token."""

    request_id: str
    choice: int
    token: int
    score: TokenScore | None


@dataclass(frozen=True, slots=True)
class Finished:
    """A choice has ended; nothing follows for it. ``stop_token`` was generated but is no text."""

    request_id: str
    choice: int
    reason: FinishReason
    usage: Usage
    stop_token: int | None = None
    message: str = ""  # for FAILED: what went wrong, safe to show


@dataclass(frozen=True, slots=True)
class Refused:
    """The whole request was not admitted; nothing follows."""

    request_id: str
    kind: RefusalKind
    message: str
    retry_after_s: float | None = None


Event = Started | Progress | Scored | Token | Finished | Refused
