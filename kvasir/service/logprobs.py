"""Log-probabilities in OpenAI's two shapes: a list of objects (chat), four lists (completions)."""

from __future__ import annotations

from collections.abc import Iterable

from kvasir.core.events import TokenScore
from kvasir.service.replies import (
    ChatLogprobs,
    CompletionLogprobs,
    TokenAlternative,
    TokenLogprob,
)
from kvasir.text.stream import TextStream
from kvasir.text.tokenizer import Tokenizer

_FLOOR = -9999.0  # JSON has no minus infinity; OpenAI writes this for it


def token_bytes(tokenizer: Tokenizer, token: int) -> bytes:
    """The bytes of ``token``; none for ids with which a model's embedding is padded."""
    return tokenizer.token_bytes(token) if token < tokenizer.vocab_size else b""


def label(tokenizer: Tokenizer, token: int) -> str:
    """A token as the text by which clients tell tokens apart: parts of a character are written as
    bytes, since all of them would read U+FFFD."""
    data = token_bytes(tokenizer, token)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def chat_logprobs(tokenizer: Tokenizer, scores: Iterable[TokenScore]) -> ChatLogprobs:
    """``scores`` in the shape of Chat Completions."""

    def one(token: int, logprob: float) -> TokenAlternative:
        data = token_bytes(tokenizer, token)
        return TokenAlternative(
            token=data.decode("utf-8", errors="replace"),
            logprob=max(logprob, _FLOOR),
            bytes=list(data),
        )

    return ChatLogprobs(
        content=[
            TokenLogprob(
                **one(score.token, score.logprob).model_dump(),
                top_logprobs=[one(token, logprob) for token, logprob in score.top],
            )
            for score in scores
        ],
        refusal=None,
    )


class LegacyLogprobs:
    """Builds the four lists of Completions for one choice, piece by piece, with text offsets that
    run on."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._text = TextStream(tokenizer, ())
        self._offset = 0

    def prompt(self, tokens: Iterable[int], scores: dict[int, TokenScore]) -> CompletionLogprobs:
        """The lists of an echoed prompt; a token without a score (the first) has null."""
        return self._lists((token, scores.get(at)) for at, token in enumerate(tokens))

    def answer(self, scores: Iterable[TokenScore]) -> CompletionLogprobs:
        """The lists of further generated tokens."""
        return self._lists((score.token, score) for score in scores)

    def _lists(self, scored: Iterable[tuple[int, TokenScore | None]]) -> CompletionLogprobs:
        tokens: list[str] = []
        logprobs: list[float | None] = []
        tops: list[dict[str, float] | None] = []
        offsets: list[int] = []
        for token, score in scored:
            tokens.append(label(self._tokenizer, token))
            offsets.append(self._offset)
            self._offset += len(self._text.push(token).text)
            logprobs.append(None if score is None else max(score.logprob, _FLOOR))
            tops.append(None if score is None else self._top(score))
        return CompletionLogprobs(
            tokens=tokens, token_logprobs=logprobs, top_logprobs=tops, text_offset=offsets
        )

    def _top(self, score: TokenScore) -> dict[str, float]:
        """The likeliest tokens, the likeliest first, and always the token itself."""
        top: dict[str, float] = {}
        for token, logprob in (*score.top, (score.token, score.logprob)):
            top.setdefault(label(self._tokenizer, token), max(logprob, _FLOOR))
        return top


def joined(first: CompletionLogprobs, second: CompletionLogprobs) -> CompletionLogprobs:
    """The lists of ``first`` followed by those of ``second``."""
    return CompletionLogprobs(
        tokens=first.tokens + second.tokens,
        token_logprobs=first.token_logprobs + second.token_logprobs,
        top_logprobs=first.top_logprobs + second.top_logprobs,
        text_offset=first.text_offset + second.text_offset,
    )
