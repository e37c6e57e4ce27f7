"""Text out of tokens as they are generated, held back where a stop string may have begun.

Invariant: the pieces of one answer, joined, are the whole decoding of its tokens without special
tokens, cut before the first stop string; how the text is spread over tokens changes nothing. A push
costs in proportion to the token's text alone, however long the answer is.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass

from kvasir.core.errors import RequestError
from kvasir.text.tokenizer import Tokenizer

MAX_STOPS = 8
MAX_STOP_CHARS = 4096


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that is final, and the stop string that ended the answer, if one did."""

    text: str
    stop: str | None = None


class TextStream:
    """One answer's tokens, in order, as text. For one thread at a time.

    The first stop string is the one that is complete first; of several that are complete at the
    same character, the longest. Raises ``RequestError`` for an empty stop string, one of more than
    ``MAX_STOP_CHARS`` characters, or more than ``MAX_STOPS`` of them.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        if len(stop) > MAX_STOPS:
            raise RequestError(
                f"{len(stop)} stop strings were given; at most {MAX_STOPS} are taken", param="stop"
            )
        if not all(1 <= len(s) <= MAX_STOP_CHARS for s in stop):
            raise RequestError(
                f"a stop string must have 1 to {MAX_STOP_CHARS} characters", param="stop"
            )
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._at_start = tokenizer.strips_space
        # longest first: of stop strings that end at the same character the longest is named
        self._matchers = [_Matcher(s) for s in sorted(set(stop), key=len, reverse=True)]
        self._held = ""
        self._stop: str | None = None

    def push(self, token: int) -> Piece:
        """The text that became final with ``token``.

        Special tokens are no text, nor are ids beyond the vocabulary (a model's embedding may be
        padded to more). After a stop string nothing is emitted any more.
        """
        if self._stop is not None:
            return Piece("", self._stop)
        if self._tokenizer.is_special(token) or not 0 <= token < self._tokenizer.vocab_size:
            return Piece("")
        data = self._tokenizer.token_bytes(token)
        if self._at_start and data:
            self._at_start = False
            data = data.removeprefix(b" ")
        return Piece(self._pass(self._utf8.decode(data)), self._stop)

    def finish(self) -> str:
        """The rest, at the end of the answer: what was held back, and U+FFFD for a character that
        was never completed. Empty after a stop string, and when called again."""
        if self._stop is not None:
            return ""
        text = self._pass(self._utf8.decode(b"", final=True))
        if self._stop is None:
            text += self._held
        self._held = ""
        return text

    def _pass(self, text: str) -> str:
        """What of the held text and ``text`` is final; the rest is held."""
        if not self._matchers:
            return text
        for i, character in enumerate(text):
            for matcher in self._matchers:
                if matcher.advance(character):
                    self._stop = matcher.stop
                    seen = self._held + text[: i + 1]
                    self._held = ""
                    return seen[: -len(matcher.stop)]
        seen = self._held + text
        final = len(seen) - max(matcher.matched for matcher in self._matchers)
        self._held = seen[final:]
        return seen[:final]


class _Matcher:
    """How much of one stop string the text ends with, character by character.

    Knuth, Morris and Pratt 1977, "Fast pattern matching in strings": ``_borders[n]`` is the length
    of the longest proper suffix of the first n characters that is also their prefix.
    """

    __slots__ = ("_borders", "matched", "stop")

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.matched = 0  # characters of ``stop`` that the text ends with
        self._borders = [0, 0]
        for n in range(1, len(stop)):
            border = self._borders[n]
            while border and stop[border] != stop[n]:
                border = self._borders[border]
            self._borders.append(border + (stop[border] == stop[n]))

    def advance(self, character: str) -> bool:
        """Whether ``character`` completes the stop string; not to be called after it did."""
        matched = self.matched
        while matched and self.stop[matched] != character:
            matched = self._borders[matched]
        self.matched = matched + (self.stop[matched] == character)
        return self.matched == len(self.stop)
