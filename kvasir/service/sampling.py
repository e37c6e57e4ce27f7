"""From the request's fields to how tokens are chosen and when an answer ends."""

from __future__ import annotations

import secrets

from kvasir.core.requests import Sampling
from kvasir.service.desk import Desk
from kvasir.service.errors import bad_request
from kvasir.service.schemas import GenerationFields


def sampling_of(desk: Desk, body: GenerationFields, top_logprobs: int | None) -> Sampling:
    """How the tokens of ``body``'s answers are chosen. Unset fields mean what OpenAI says: above
    all, temperature 1. Raises a 400 for a bias on a token that does not exist."""
    vocab_size = desk.served.card.vocab_size
    if body.logit_bias and max(body.logit_bias) >= vocab_size:
        raise bad_request(
            f"Token id {max(body.logit_bias)} is not in the vocabulary, which has {vocab_size} "
            "tokens.",
            "logit_bias",
        )
    seed = body.seed if body.seed is not None else desk.config.seed or secrets.randbits(63)
    return Sampling(
        temperature=_or(body.temperature, 1.0),
        top_k=body.top_k or 0,
        top_p=_or(body.top_p, 1.0),
        min_p=_or(body.min_p, 0.0),
        repetition_penalty=_or(body.repetition_penalty, 1.0),
        presence_penalty=_or(body.presence_penalty, 0.0),
        frequency_penalty=_or(body.frequency_penalty, 0.0),
        logit_bias=body.logit_bias,
        seed=seed % 2**63,
        top_logprobs=top_logprobs,
    )


def stop_tokens_of(desk: Desk, body: GenerationFields) -> frozenset[int]:
    """The tokens at which an answer ends."""
    own = frozenset(body.stop_token_ids)
    return own if body.ignore_eos else own | desk.served.codec.tokenizer.eos_ids


def _or(value: float | None, default: float) -> float:
    return default if value is None else float(value)
