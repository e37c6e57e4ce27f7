"""Bodies of requests about contexts, with a bound on every number and every list."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from kvasir.contexts.creating import DEFAULT_EXPIRY_S, Expiry
from kvasir.service.fields import Whole, wrong
from kvasir.service.schemas import Body, Messages, ModelName

MAX_INPUTS = 1000
MAX_SECONDS = 10 * 365 * 24 * 3600
_DURATION = re.compile(r"(\d{1,9})(s|m|h|d)")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def _name(value: Any) -> Any:
    """A name for people: printable, and never one that looks like an id."""
    if isinstance(value, str):
        if not value.strip() or not value.isprintable() or value != value.strip():
            raise wrong("a name is printable text without spaces around it")
        if value.startswith(("ctx_", "file-")):
            raise wrong("a name must not begin as ids do")
    return value


Name = Annotated[str, BeforeValidator(_name), Field(max_length=128)]
FileId = Annotated[str, Field(min_length=1, max_length=128)]
MetaKey = Annotated[str, Field(min_length=1, max_length=64)]
MetaValue = Annotated[str, Field(max_length=512)]
Metadata = Annotated[dict[MetaKey, MetaValue], Field(max_length=16)]
Seconds = Annotated[Whole, Field(ge=60, le=MAX_SECONDS)]


class ExpiresAfter(Body):
    """When something ends: so many seconds after it was made, or after it was last used."""

    anchor: Literal["created_at", "last_active_at"] = "last_active_at"
    seconds: Seconds | None = None
    days: Annotated[Whole, Field(ge=1, le=3650)] | None = None

    @model_validator(mode="after")
    def _one_of(self) -> ExpiresAfter:
        if (self.seconds is None) == (self.days is None):
            raise wrong("Give either seconds or days")
        return self

    @property
    def expiry(self) -> Expiry:
        """As contexts know it."""
        return Expiry(anchor=self.anchor, after_s=self.seconds or (self.days or 0) * 86_400)


class InputItem(Body):
    """A document: an uploaded file, or text."""

    type: Literal["input_file", "input_text"]
    file_id: FileId | None = None
    text: str | None = None
    title: Annotated[str, Field(max_length=256)] | None = Field(
        default=None, description="The name of a text; `text` and its number, where there is none."
    )

    @model_validator(mode="after")
    def _fits(self) -> InputItem:
        if self.type == "input_file" and not self.file_id:
            raise wrong("an input_file needs its file_id")
        if self.type == "input_text" and not self.text:
            raise wrong("an input_text needs a text that is not empty")
        return self


Inputs = Annotated[list[InputItem], Field(max_length=MAX_INPUTS)]


class KeepingFields(Body):
    """How long a context is kept, and how it is called."""

    name: Name | None = None
    metadata: Metadata | None = None
    pinned: bool | None = Field(default=None, description="Kept until it is unpinned or deleted.")
    expires_after: ExpiresAfter | None = Field(
        default=None,
        description=f"Default: {DEFAULT_EXPIRY_S // 86_400} days after the last use.",
    )
    ttl: str | None = Field(
        default=None, max_length=12, description='As `expires_after`: "90m", "1h", "7d", "3600s".'
    )

    @field_validator("ttl")
    @classmethod
    def _duration(cls, value: str | None) -> str | None:
        if value is not None and not 60 <= _seconds(value) <= MAX_SECONDS:
            raise wrong('expected a duration of at least a minute, such as "90m", "1h" or "7d"')
        return value

    @property
    def expiry(self) -> Expiry | None:
        """The expiry that is asked for; None where none is."""
        if self.expires_after is not None:
            return self.expires_after.expiry
        return Expiry(after_s=_seconds(self.ttl)) if self.ttl is not None else None


class ContextRequest(KeepingFields):
    """The body of `POST /v1/contexts`."""

    model: ModelName | None = None
    input: Inputs = Field(default_factory=list)
    file_ids: Annotated[list[FileId], Field(max_length=MAX_INPUTS)] = Field(
        default_factory=list, description="Short for `input_file` items, behind `input`."
    )
    instructions: Annotated[str, Field(max_length=1_000_000)] | None = Field(
        default=None, description="The system message that its text begins with."
    )
    messages: Messages = Field(
        default_factory=list, description="Turns behind the documents, of user and assistant."
    )
    keep: Literal["kv", "text"] = Field(
        default="kv",
        description="`text` keeps no KV: focused questions compute what they need.",
    )
    tier: Literal["auto", "disk"] = Field(
        default="auto", description="`disk` refuses a server that could keep it in memory alone."
    )
    section_tokens: Annotated[Whole, Field(ge=256, le=1_000_000)] | None = Field(
        default=None, description="Size of sections, where the documents do not fit the window."
    )
    summaries: bool = Field(
        default=True, description="Have the model summarise sections, for focused questions."
    )
    dry_run: bool | None = Field(default=None, description="Only say what it would take.")
    stream: bool | None = Field(default=None, description="Answer with the events of the reading.")


class ForkRequest(KeepingFields):
    """The body of `POST /v1/contexts/{id}/fork`: what the child has behind its parent's text."""

    input: Inputs = Field(default_factory=list)
    file_ids: Annotated[list[FileId], Field(max_length=MAX_INPUTS)] = Field(default_factory=list)
    instructions: Annotated[str, Field(max_length=1_000_000)] | None = Field(
        default=None, description="Others than the parent's: then nothing of its KV is shared."
    )
    messages: Messages = Field(default_factory=list)
    stream: bool | None = None


class ContextPatch(KeepingFields):
    """The body of `PATCH /v1/contexts/{id}`; what is absent stays. Counts as a use."""


class SearchRequest(Body):
    """The body of `POST /v1/contexts/{id}/search`."""

    query: Annotated[str, Field(min_length=1, max_length=10_000)]
    max_num_results: Annotated[Whole, Field(ge=1, le=50)] = 10


class AskRequest(Body):
    """The body of `POST /v1/contexts/{id}/ask`."""

    question: Annotated[str, Field(min_length=1, max_length=100_000)]
    mode: Literal["auto", "sweep", "focus"] = Field(
        default="auto",
        description="How a context of sections is asked: all of them, or the likeliest. `auto` "
        "sweeps where that is predicted to take less than a minute.",
    )
    sections: Annotated[Whole, Field(ge=1, le=64)] = Field(
        default=4, description="How many sections a focused question is put to."
    )
    only_sections: Annotated[list[Annotated[Whole, Field(ge=0)]], Field(max_length=10_000)] = Field(
        default_factory=list, description="Ask these sections and no others."
    )
    max_passages: Annotated[Whole, Field(ge=1, le=1000)] = Field(
        default=20, description="How many passages the reply has; all found sections are listed."
    )
    stream: bool | None = None


def _seconds(duration: str) -> int:
    match = _DURATION.fullmatch(duration.strip())
    return int(match[1]) * _UNITS[match[2]] if match else 0
