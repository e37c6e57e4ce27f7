"""What a request cost, as the ``usage`` object, and why not more of it was reused."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from kvasir.core.events import Usage
from kvasir.core.tiers import Tier
from kvasir.service.generation import Answers, Reading
from kvasir.service.replies import (
    CachedByTier,
    CacheDiagnostics,
    ProgressReply,
    PromptDetails,
    UsageReply,
)
from kvasir.text.tokenizer import Tokenizer


def usage_of(answers: Answers) -> UsageReply:
    """Each prompt counts once, as its first choice read it; the completions of all choices add up.
    To be called when every choice has ended."""
    prompt_tokens = sum(len(request.tokens) for request in answers.requests)
    completion_tokens = sum(choice.completion_tokens for choice in answers.choices)
    firsts = [usage for _, usage in _firsts(answers)]
    cached = sum(usage.reused_tokens for usage in firsts)
    on_disk = sum(usage.reused_by_tier.get(Tier.DISK, 0) for usage in firsts)
    return UsageReply(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
        computed_tokens=sum(usage.computed_tokens for usage in firsts),
        context_tokens=answers.context_tokens,
        dropped_tokens=0,
        prompt_tokens_details=PromptDetails(
            cached_tokens=cached,
            # every tier but the disk is memory to users
            cached_tokens_by_tier=CachedByTier(memory=cached - on_disk, disk=on_disk),
        ),
    )


def costs_of(answers: Answers) -> dict[str, Any]:
    """The fields ``usage`` and, where not all that could be reused was, the
    ``prompt_cache_diagnostics`` of the first prompt of which that is so."""
    costs: dict[str, Any] = {"usage": usage_of(answers)}
    for prompt, usage in _firsts(answers):
        if usage.miss is not None or usage.differs_at is not None:
            tokens = answers.requests[prompt].tokens
            costs["prompt_cache_diagnostics"] = _diagnostics(
                usage, prompt, tokens, answers.tokenizer
            )
            break
    return costs


def _firsts(answers: Answers) -> list[tuple[int, Usage]]:
    """What the first choice of each prompt cost, with the prompt's index."""
    usages = [answers.of_prompt(prompt)[0].usage for prompt in range(len(answers.requests))]
    return [(prompt, usage) for prompt, usage in enumerate(usages) if usage is not None]


def _diagnostics(
    usage: Usage, prompt: int, tokens: Sequence[int], tokenizer: Tokenizer
) -> CacheDiagnostics:
    at = usage.differs_at
    token = tokens[at] if at is not None and at < len(tokens) else None
    return CacheDiagnostics(
        prompt=prompt,
        reason=usage.miss,
        first_different_token=at,
        token_id=token,
        text=_text(tokenizer, token),
        kept_text=_text(tokenizer, usage.kept_token),
    )


def _text(tokenizer: Tokenizer, token: int | None) -> str | None:
    """A token's text; None for ids beyond the tokenizer's, to which a vocabulary may be padded."""
    if token is None or token >= tokenizer.vocab_size:
        return None
    return tokenizer.token_text(token)


def progress_of(reading: Reading, began_s: float) -> ProgressReply:
    """How far a prompt is read, in llama.cpp's words and with the time that is left."""
    progress = reading.progress
    return ProgressReply(
        prompt=reading.prompt,
        total=progress.total_tokens,
        cache=progress.reused_tokens,
        processed=progress.processed_tokens,
        time_ms=round((time.monotonic() - began_s) * 1000, 1),
        eta_s=round(max(0.0, progress.eta_s), 3),
    )
