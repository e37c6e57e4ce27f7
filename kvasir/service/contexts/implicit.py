"""Texts of a tenant that are kept because they were asked about, listed apart from contexts."""

from __future__ import annotations

from kvasir.contexts.library import Library
from kvasir.service.contexts.replies import ImplicitReply

_PREVIEW_CHARS = 200


def implicit_replies(library: Library, tenant: str) -> list[ImplicitReply]:
    """What is stored for ``tenant`` beside its contexts, the last used first."""
    texts = library.engine.texts(library.namespace_of(tenant))
    return [
        ImplicitReply(
            object="implicit_context",
            origin="implicit",
            tokens=text.n_tokens,
            bytes=text.n_bytes,
            tier=text.tier.value,
            held=text.held,
            last_active_at=int(text.used_s),
            preview=library.codec.tokenizer.decode(text.first_ids)[:_PREVIEW_CHARS],
        )
        for text in sorted(texts, key=lambda text: -text.used_s)
        if not text.held
    ]
