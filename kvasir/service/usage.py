"""What a request cost, as the ``usage`` object, and why nothing was reused where that is so."""

from __future__ import annotations

import time
from typing import Any

from kvasir.service.generation import Answers, Reading
from kvasir.service.replies import CacheDiagnostics, ProgressReply, PromptDetails, UsageReply


def usage_of(answers: Answers) -> UsageReply:
    """Each prompt counts once, as its first choice read it; the completions of all choices add up.
    To be called when every choice has ended."""
    prompt_tokens = sum(len(request.tokens) for request in answers.requests)
    completion_tokens = sum(choice.completion_tokens for choice in answers.choices)
    firsts = [answers.of_prompt(at)[0].usage for at in range(len(answers.requests))]
    cached = sum(usage.reused_tokens for usage in firsts if usage is not None)
    return UsageReply(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
        prompt_tokens_details=PromptDetails(cached_tokens=cached),
    )


def costs_of(answers: Answers) -> dict[str, Any]:
    """The fields ``usage`` and, where nothing was reused, ``prompt_cache_diagnostics`` with the
    reason, which is the first prompt's."""
    usage = usage_of(answers)
    costs: dict[str, Any] = {"usage": usage}
    first = answers.choices[0].usage
    if not usage.prompt_tokens_details.cached_tokens and first is not None:
        costs["prompt_cache_diagnostics"] = CacheDiagnostics(
            reason=first.miss, first_different_token=first.differs_at
        )
    return costs


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
