"""Request bodies, with a bound on every number and every list.

Strict: a number is not text, a truth value is not a number. Unknown fields are ignored; known ones
that are not there yet are refused before this by ``unsupported``. ``null`` means unset, as in
OpenAI's clients.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from kvasir.service.fields import (
    Biases,
    Content,
    Prompts,
    Stops,
    StopTokens,
    TokenIds,
    Whole,
    wrong,
)

MAX_TOKENS = 16_777_216  # no window is longer; the model's own window is checked later


class Body(BaseModel):
    """The base of all request bodies."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, frozen=True)


ModelName = Annotated[str, Field(max_length=256)]
TokenCount = Annotated[Whole, Field(ge=1, le=MAX_TOKENS)]


class StreamOptions(Body):
    """What else a stream should tell."""

    include_usage: bool | None = Field(
        default=None, description="Send one last chunk with `usage` and no choices."
    )


class GenerationFields(Body):
    """Fields that Chat Completions and Completions share."""

    model: ModelName | None = Field(
        default=None, description="A name from `GET /v1/models`; without it, the served model."
    )
    context: Annotated[str, Field(min_length=1, max_length=160)] | None = Field(
        default=None,
        description="A context's id or name: its documents stand before the question. "
        "`model@ctx_…` as the model says the same.",
    )
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(
        default=None, description="0 is greedy; default 1."
    )
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[Whole, Field(ge=0, le=1_000_000)] | None = Field(
        default=None, description="0 switches the filter off."
    )
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: Biases = Field(
        default_factory=dict, description="Token id -> number added to its logit."
    )
    seed: Annotated[Whole, Field(ge=-(2**63), le=2**63 - 1)] | None = Field(
        default=None, description="The same seed gives the same text; without one it is random."
    )
    n: Annotated[Whole, Field(ge=1, le=16)] | None = Field(
        default=None, description="How many answers."
    )
    stop: Stops = Field(default=(), description="Text at which an answer ends; not part of it.")
    stop_token_ids: StopTokens = Field(default=(), description="Further tokens that end an answer.")
    ignore_eos: bool | None = Field(
        default=None, description="Do not end at the model's end-of-text tokens."
    )
    stream: bool | None = Field(default=None, description="Answer as server-sent events.")
    stream_options: StreamOptions | None = None
    return_progress: bool | None = Field(
        default=None,
        description="While streaming, send chunks with `prompt_progress` as the prompt is read.",
    )

    def context_name(self, models: Collection[str]) -> str | None:
        """The context that is asked: named by its field, or behind the name of one of ``models``
        (which may have an @ in them)."""
        name, _, behind = (self.model or "").rpartition("@")
        return self.context or (behind if name in models else None) or None

    @property
    def streaming(self) -> bool:
        """Whether the answer is to come as events."""
        return bool(self.stream)

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends in a usage chunk."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def choices(self) -> int:
        """How many answers each prompt gets."""
        return self.n or 1


class Message(Body):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content


# stops at the first wrong one: a body may hold millions
Messages = Annotated[list[Message], FailFast(), Field(min_length=1)]


class ChatRequest(GenerationFields):
    """The body of `POST /v1/chat/completions`."""

    messages: Messages
    max_completion_tokens: TokenCount | None = Field(
        default=None, description="Default: what is left of the window."
    )
    max_tokens: TokenCount | None = Field(
        default=None, description="The older name of `max_completion_tokens`."
    )
    logprobs: bool | None = None
    top_logprobs: Annotated[Whole, Field(ge=0, le=20)] | None = Field(
        default=None, description="Alternatives beside the chosen token; needs `logprobs: true`."
    )

    @field_validator("top_logprobs")
    @classmethod
    def _needs_logprobs(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and not info.data.get("logprobs"):
            raise wrong("it needs logprobs to be true")
        return value


class CompletionRequest(GenerationFields):
    """The body of `POST /v1/completions`."""

    prompt: Prompts = Field(
        description="Text, token ids, or a list of either; each prompt gets its own choices."
    )
    max_tokens: Annotated[Whole, Field(ge=0, le=MAX_TOKENS)] | None = Field(
        default=None, description="Default 16. 0 only reads, and with `echo` scores, the prompt."
    )
    logprobs: Annotated[Whole, Field(ge=0, le=20)] | None = Field(
        default=None, description="Alternatives per token; with `echo`, of the prompt's tokens too."
    )
    echo: bool | None = Field(default=None, description="Put the prompt before the answer.")


class TokenizeRequest(Body):
    """The body of `POST /tokenize`: a prompt, or messages to be put through the template."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": ["prompt"]}, {"required": ["messages"]}]}
    )
    model: ModelName | None = None
    prompt: str | None = None
    messages: Messages = Field(default_factory=list)
    add_special_tokens: bool | None = Field(
        default=None, description="Whether special tokens in the text and the bos rule apply."
    )
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _check(self) -> TokenizeRequest:
        if (self.prompt is None) == (not self.messages):
            raise wrong("Give either prompt or messages")
        return self


class DetokenizeRequest(Body):
    """The body of `POST /detokenize`."""

    model: ModelName | None = None
    tokens: TokenIds
