"""What all routes share: the served model, the limits, the threads for text, the metrics."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fastapi import Request
from pydantic import BaseModel

from kvasir.contexts.focus import Ranker
from kvasir.contexts.library import Library
from kvasir.contexts.portable import public_hex
from kvasir.contexts.reading import Reader
from kvasir.core.config import Config
from kvasir.core.errors import ContextTooLong
from kvasir.service import body, unsupported
from kvasir.service.access import CALLER
from kvasir.service.errors import ApiError, bad_request
from kvasir.service.identity import Caller
from kvasir.service.metrics import Metrics
from kvasir.service.replies import Head
from kvasir.service.served import Limits, Served
from kvasir.service.workers import Workers

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """Where requests come in. One per application; holds no state of any request."""

    served: Served
    library: Library
    reader: Reader
    ranker: Ranker
    signing_key: Ed25519PrivateKey = field(repr=False)
    config: Config
    limits: Limits
    workers: Workers
    metrics: Metrics
    opened: int  # seconds since the epoch

    async def parse(
        self, request: Request, model: type[M], not_yet: Mapping[str, unsupported.Harmless]
    ) -> M:
        """The request's body as a ``model`` that names the served one. Raises ``ApiError``."""
        parsed = await body.parse(request, model, not_yet, workers=self.workers, limits=self.limits)
        name: str | None = getattr(parsed, "model", None)
        if name is not None:
            self.check_name(name)
        return parsed

    @property
    def names(self) -> tuple[str, ...]:
        """The served model's name and its aliases."""
        return (self.served.card.name, *self.served.card.aliases)

    def check_name(self, name: str) -> None:
        """Raise a 404 unless ``name`` is the served model's name or an alias of it, with or without
        "@" and a context behind it."""
        card = self.served.card
        if name not in self.names and name.rpartition("@")[0] not in self.names:
            raise ApiError(
                404,
                f"The model {name[:100]!r} does not exist here. This server serves "
                f"{', '.join(repr(n) for n in (card.name, *card.aliases))}; --alias adds a name.",
                param="model",
                code="model_not_found",
            )

    def caller(self, request: Request) -> Caller:
        """Who sent ``request``, as the door has found."""
        caller = request.scope.get(CALLER)
        if not isinstance(caller, Caller):
            raise ApiError(401, "This needs an API key.", code="invalid_api_key")
        return caller

    def trusts(self, signer: str) -> bool:
        """Whether exported KV with that public key in hex is taken in: this home's own, and those
        that the settings name."""
        return signer == public_hex(self.signing_key) or signer in self.config.trusted_signers

    def head(self, prefix: str, name: str | None) -> Head:
        """A fresh id, the time, and the model's name as the client wrote it."""
        card = self.served.card
        return Head(
            id=f"{prefix}-{secrets.token_hex(16)}",
            created=int(time.time()),
            model=name or card.name,
            system_fingerprint=f"fp_{hashlib.sha256(card.realm.id).hexdigest()[:12]}",
        )

    def room(self, prompt_tokens: int, wanted: int | None, default: int, param: str) -> int:
        """How many tokens may be generated after a prompt: ``wanted``, else ``default``, which is
        lowered to what is left. Raises ``ContextTooLong`` with the counts; nothing is cut."""
        window = self.served.card.window
        if not prompt_tokens:
            raise bad_request(
                "The prompt has no tokens, so there is nothing to continue. Send some text.", param
            )
        least = min(1, default) if wanted is None else wanted
        if prompt_tokens + least > window:
            error = ContextTooLong(window=window, prompt_tokens=prompt_tokens, max_tokens=least)
            error.param = param
            raise error
        return min(default, window - prompt_tokens) if wanted is None else wanted

    def check_ids(self, tokens: list[int], param: str) -> None:
        """Raise a 400 unless every one of ``tokens`` is in the vocabulary."""
        vocab_size = min(self.served.card.vocab_size, self.served.codec.tokenizer.vocab_size)
        if tokens and max(tokens) >= vocab_size:
            raise bad_request(
                f"Token id {max(tokens)} is not in the vocabulary, which has {vocab_size} tokens.",
                param,
            )
