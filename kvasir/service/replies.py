"""Response bodies, as OpenAI shapes them. What is built from these is what the document says.

They are written with ``exclude_unset``: a field that is given as None is ``null`` on the wire, one
that is not given is absent.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from kvasir.core.events import Miss

Finish = Literal["stop", "length"]


class Reply(BaseModel):
    """The base of all response bodies."""

    model_config = ConfigDict(frozen=True)

    def wire(self) -> bytes:
        """The JSON that is sent."""
        return self.model_dump_json(exclude_unset=True).encode()


class ErrorDetail(Reply):
    """What went wrong, why, and what to do."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(Reply):
    """Every answer that is not 200 has this shape."""

    error: ErrorDetail


class CachedByTier(Reply):
    """Where what was reused came from: memory, or the disk. Adds up to ``cached_tokens``."""

    memory: int
    disk: int


class PromptDetails(Reply):
    """How much of the prompt was reused instead of computed."""

    cached_tokens: int
    cached_tokens_by_tier: CachedByTier


class UsageReply(Reply):
    """Tokens of one request. The prompt counts once however many choices there are; a token that
    ends an answer (a stop token, the tokens of a stop string) counts as completed."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    computed_tokens: int = Field(description="Of the prompt; the others were reused.")
    context_tokens: int = Field(description="Of the prompt, those of the context that was asked.")
    dropped_tokens: Literal[0] = Field(description="Nothing is ever cut.")
    prompt_tokens_details: PromptDetails


class CacheDiagnostics(Reply):
    """Why not more of a prompt was reused; absent where all that could be was."""

    prompt: int = Field(description="Index of the prompt among those of the request.")
    reason: Miss | None = Field(description="Why nothing was reused, where nothing was.")
    first_different_token: int | None = Field(
        description="Index of the first prompt token that was not found in the cache."
    )
    token_id: int | None = Field(description="That token.")
    text: str | None = Field(description="Its text.")
    kept_text: str | None = Field(
        description="What the closest of the caller's kept texts has in its place, if anything."
    )


class ProgressReply(Reply):
    """How far a prompt is read."""

    prompt: int = Field(description="Index of the prompt among those of the request.")
    total: int
    cache: int
    processed: int
    time_ms: float
    eta_s: float


class TokenAlternative(Reply):
    """A token that might have come, and how likely it was."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TokenAlternative):
    """A token of an answer with its likeliest alternatives."""

    top_logprobs: list[TokenAlternative]


class ChatLogprobs(Reply):
    """Log-probabilities of an answer's tokens."""

    content: list[TokenLogprob]
    refusal: None = None


class ChatMessage(Reply):
    """An answer."""

    role: Literal["assistant"]
    content: str
    refusal: None = None


class ChatChoice(Reply):
    """One of the ``n`` answers."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finish


class Head(Reply):
    """What every answer and every chunk of one begins with."""

    id: str
    created: int
    model: str
    system_fingerprint: str


class ChatReply(Head):
    """The answer of Chat Completions."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: UsageReply
    prompt_cache_diagnostics: CacheDiagnostics | None = None


class ChatDelta(Reply):
    """The new part of an answer."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(Reply):
    """The new part of one choice."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: Finish | None


class ChatChunk(Head):
    """One event of a stream. ``choices`` is empty in progress and usage chunks only."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]
    usage: UsageReply | None = None
    prompt_cache_diagnostics: CacheDiagnostics | None = None
    prompt_progress: ProgressReply | None = None
    context_event: dict[str, Any] | None = Field(
        default=None, description="While a context of sections is asked, with return_progress."
    )


class CompletionLogprobs(Reply):
    """Four lists of one length: the tokens, their log-probabilities (null for the first token of an
    echoed prompt), the likeliest tokens at each place (always with the token itself), and where in
    the text each token begins."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Reply):
    """One completion of one prompt; ``index`` is prompt × n + choice."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Finish | None


class CompletionReply(Head):
    """The answer of Completions, and each chunk of its stream."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: UsageReply | None = None
    prompt_cache_diagnostics: CacheDiagnostics | None = None
    prompt_progress: ProgressReply | None = None


class ModelReply(Reply):
    """A name under which the model is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str = Field(description="The model's own name, where `id` is an alias.")
    max_model_len: int = Field(description="Tokens of prompt and answer together.")


class ModelsReply(Reply):
    """All names that requests may use."""

    object: Literal["list"]
    data: list[ModelReply]


class TokenizeReply(Reply):
    """Token ids of a text."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeReply(Reply):
    """The text of token ids."""

    prompt: str


class TokenizerReply(Reply):
    """What lm-evaluation-harness asks of a tokenizer."""

    vocab_size: int
    eos_token: str | None
    bos_token: str | None
    pad_token: str | None
    max_model_len: int


class HealthReply(Reply):
    """How the engine is doing."""

    status: Literal["ok", "stopping", "stalled", "dead"]
    last_step_age_s: float = Field(description="Seconds since the last step; 0 while idle.")
    running: int
    waiting: int
    degraded: list[str] = Field(
        description="Tiers that keep nothing new, because writing failed; they still serve."
    )


class KeptReply(Reply):
    """One record of stored KV: neighbouring blocks of one text."""

    name: str
    tier: str
    tenant: str = Field(description="Its name, or the tag of one that is not configured any more.")
    tokens: int
    start: int | None = Field(description="Position of the first token, where the record says.")
    bytes: int
    used_s: float = Field(description="Unix time of the last use.")
    compute_s: float | None = Field(description="Predicted seconds to compute it again, if known.")
    format_version: int
    differs_in: list[str] | None = Field(
        description="What is another than now, so that the record is of no use; null where no "
        "model is loaded to compare with."
    )


class TierReply(Reply):
    """One tier of stored KV; its cap and failure are known only where a server runs."""

    tier: str
    records: int
    tokens: int
    bytes: int
    cap_bytes: int | None
    failure: str | None = Field(description="Why nothing is written any more.")


class TenantReply(Reply):
    """What one tenant has in one tier."""

    tier: str
    tenant: str
    records: int
    tokens: int
    bytes: int


class CacheReply(Reply):
    """All that is stored, for the owner of the home."""

    records: list[KeptReply]
    tiers: list[TierReply]
    tenants: list[TenantReply]


class VerifiedReply(Reply):
    """What did not verify; it is gone."""

    damaged: list[KeptReply]


class ClearedReply(Reply):
    """How many records went."""

    cleared: int
