"""What a caller asks of the engine: the request and how to choose its tokens. Frozen values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

NO_BIAS: Mapping[int, float] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen from the logits.

    ``temperature`` 0 is greedy. ``top_k`` 0, ``top_p`` 1 and ``min_p`` 0 switch those filters off.
    ``repetition_penalty`` counts prompt and answer (1 = off); ``presence_penalty`` and
    ``frequency_penalty`` count the answer alone (0 = off). Random numbers are a function of
    ``seed``, the choice's index and the token's position, so the same seed gives the same text
    whatever else is in the batch. ``top_logprobs`` is None when no log-probabilities are wanted,
    else the number of alternatives beside the chosen token.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=lambda: NO_BIAS)
    seed: int = 0
    top_logprobs: int | None = None

    @property
    def penalised(self) -> bool:
        """Whether the choice depends on the tokens before it (so the runner must know them)."""
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )


GREEDY = Sampling(temperature=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt and up to ``n`` answers to it.

    ``namespace`` is the tenant's secret salt: it comes from the authenticated identity, never from
    a request body, and is part of every KV key. ``max_tokens`` 0 only reads the prompt.
    ``stop_token_ids`` end an answer (the model's own end-of-text ids are put there by the service
    unless ``ignore_eos`` was asked). ``prompt_logprobs`` not None asks for the log-probabilities of
    the prompt's own tokens with that many alternatives; such a request reuses no KV, because the
    logits of reused positions are not kept.

    ``transient`` says that what it computes is of no use later: it is not copied to the stored
    tiers, and its blocks are the first to give way in the pool. It reuses what is there as any.
    """

    id: str
    namespace: bytes
    tokens: Sequence[int]
    max_tokens: int
    sampling: Sampling = GREEDY
    stop_token_ids: frozenset[int] = frozenset()
    n: int = 1
    prompt_logprobs: int | None = None
    transient: bool = False
