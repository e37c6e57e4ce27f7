"""The exception tree. Every error that Kvasir raises on purpose is a ``KvasirError``.

KvasirError
├── ConfigError            a setting is missing, malformed or contradictory
├── HomeBusy               another process owns the home folder
├── ModelError             the model cannot be used
│   ├── ModelNotFound      nothing is at the named place, or it could not be obtained
│   ├── UnsupportedModel   an architecture, tokenizer or RoPE kind that is refused by name
│   ├── CorruptWeights     a header or a tensor contradicts the file or the config
│   ├── TemplateError      the chat template fails, loops, or cannot render the messages
│   └── DoesNotFit         the model or the KV pool needs more memory than there is
├── RequestError           the caller's request is wrong; carries the offending parameter
│   ├── ContextTooLong     more tokens than the window holds; carries the counts
│   ├── UnsupportedFile    a file of a format that gives no text (HTTP 415)
│   ├── UnreadableFile     a file of a known format of which nothing can be read (HTTP 422)
│   └── ParcelRefused      exported KV is damaged, of another model, or continues nothing here
├── CatalogError           what tenants, files and contexts there are cannot be read or changed
│   ├── CatalogUnavailable the database cannot be reached, is full, or was busy for too long
│   ├── NameTaken          something of that tenant, or a tenant, has the name already
│   └── UnknownTenant      no tenant has that name
├── NotStored              KV that was to be read or written is not, or cannot be, stored
└── EngineStopped          the engine has ended and takes no more requests

Messages say what happened, why, and what to do next, in that order.
"""

from __future__ import annotations


class KvasirError(Exception):
    """Base of everything that Kvasir raises on purpose."""


class ConfigError(KvasirError):
    """A setting is missing, malformed or contradictory."""


class HomeBusy(KvasirError):
    """Another process holds the lock of the home folder."""


class ModelError(KvasirError):
    """The model cannot be used."""


class ModelNotFound(ModelError):
    """Nothing is at the named place, or it could not be obtained."""


class UnsupportedModel(ModelError):
    """The architecture, tokenizer kind, RoPE kind or weight format is not one that Kvasir runs."""


class CorruptWeights(ModelError):
    """A weight file's header or a tensor contradicts the file's size or the model's config."""


class TemplateError(ModelError):
    """The chat template fails, does not end, or cannot render the given messages."""


class DoesNotFit(ModelError):
    """The model or its KV pool needs more memory than there is."""


class RequestError(KvasirError):
    """The caller's request is wrong. ``param`` names the field, where one field is to blame."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class ContextTooLong(RequestError):
    """More tokens than the model's window holds; nothing is ever cut silently."""

    def __init__(self, *, window: int, prompt_tokens: int, max_tokens: int) -> None:
        wanted = prompt_tokens + max_tokens
        super().__init__(
            f"This model's maximum context length is {window} tokens. However, you requested "
            f"{wanted} tokens ({prompt_tokens} in the messages, {max_tokens} in the completion). "
            "Please reduce the length of the messages or completion.",
            param="messages",
            code="context_length_exceeded",
        )
        self.window = window
        self.prompt_tokens = prompt_tokens
        self.max_tokens = max_tokens


class CatalogError(KvasirError):
    """What tenants, keys, files and contexts there are cannot be read or changed as asked."""


class CatalogUnavailable(CatalogError):
    """The database cannot be reached, is full or damaged, or was busy for too long."""


class NameTaken(CatalogError):
    """A name that must be unique is in use."""


class UnknownTenant(CatalogError):
    """No tenant has that name."""


class UnsupportedFile(RequestError):
    """The file is of a format from which Kvasir takes no text: over HTTP a 415."""


class UnreadableFile(RequestError):
    """The file's format is known, but nothing of it can be read: it is encrypted, damaged, empty or
    hostile. Over HTTP a 422."""


class ParcelRefused(RequestError):
    """Exported KV is damaged, of another model, or continues nothing that is here."""


class NotStored(KvasirError):
    """KV is not stored as a whole, or could not be stored: no room, no tier, a disk that failed."""


class EngineStopped(KvasirError):
    """The engine has ended, or is ending, and takes no more requests."""
