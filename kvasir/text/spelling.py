"""How the strings of a vocabulary spell bytes: byte-level or SentencePiece.

Invariant: a sequence of tokens stands for the concatenation of its tokens' bytes, read as UTF-8
with U+FFFD for what is not UTF-8. Decoders for which this does not hold are refused by name, so
whoever streams text needs no other rule.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

import tokenizers
from tokenizers import decoders

from kvasir.core.errors import UnsupportedModel

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_WORD_MARK = "\u2581"  # SentencePiece writes a space as this character


def _byte_level_alphabet() -> dict[str, int]:
    """The printable character by which GPT-2's byte-level BPE writes each of the 256 bytes.

    Bytes that print in Latin-1 stand for themselves; the others, in order, for U+0100 onwards.
    (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.2.)
    """
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printing)]
    alphabet = {chr(byte): byte for byte in printing}
    alphabet.update({chr(0x100 + i): byte for i, byte in enumerate(others)})
    return alphabet


BYTE_LEVEL_ALPHABET = _byte_level_alphabet()


@dataclass(frozen=True, slots=True)
class Spelling:
    """How a vocabulary's strings stand for bytes.

    ``strips_space`` says that one space at the very beginning of a text is the tokenizer's own mark
    for the start of a word and is no text (SentencePiece with a dummy prefix).
    """

    byte_level: bool
    byte_tokens: bool = False  # <0xNN> stands for one byte
    strips_space: bool = False

    def to_bytes(self, piece: str) -> bytes:
        """The bytes that the vocabulary's string ``piece`` stands for."""
        if self.byte_level:
            try:
                return bytes([BYTE_LEVEL_ALPHABET[c] for c in piece])
            except KeyError:  # a piece that is no byte-level writing stands for itself
                return piece.encode("utf-8")
        if self.byte_tokens:
            match = _BYTE_TOKEN.fullmatch(piece)
            if match:
                return bytes([int(match[1], 16)])
        return piece.replace(_WORD_MARK, " ").encode("utf-8")


def spelling_of(backend: tokenizers.Tokenizer) -> Spelling:
    """Read the spelling off ``backend``'s decoder.

    Raises ``UnsupportedModel`` naming a decoder that is neither byte-level nor SentencePiece.
    """
    if backend.decoder is None:
        raise UnsupportedModel(
            "the tokenizer names no decoder, so its tokens cannot be turned into text; "
            "Kvasir reads byte-level and SentencePiece tokenizers"
        )
    steps = _decoder_steps(backend.decoder)
    kinds = [str(step.get("type")) for step in steps]
    if kinds == ["ByteLevel"]:
        return Spelling(byte_level=True)
    for step, kind in zip(steps, kinds, strict=True):
        if not _is_sentencepiece_step(step, kind):
            raise UnsupportedModel(
                f"the tokenizer's decoder has a step {kind!r} that Kvasir does not know; "
                "it reads byte-level and SentencePiece tokenizers"
            )
    if not {"Metaspace", "Replace"} & set(kinds):
        raise UnsupportedModel(
            f"the tokenizer's decoder ({', '.join(kinds)}) is neither byte-level nor SentencePiece"
        )
    return Spelling(
        byte_level=False,
        byte_tokens="ByteFallback" in kinds,
        strips_space=any(_strips(step, kind) for step, kind in zip(steps, kinds, strict=True)),
    )


def _decoder_steps(decoder: decoders.Decoder) -> list[dict[str, object]]:
    described = json.loads(bytes(decoder.__getstate__()))
    if described.get("type") == "Sequence":
        return list(described["decoders"])
    return [described]


def _is_sentencepiece_step(step: dict[str, object], kind: str) -> bool:
    if kind == "Replace":
        return step.get("pattern") == {"String": _WORD_MARK} and step.get("content") == " "
    if kind == "Strip":
        return step.get("content") == " " and step.get("stop") == 0
    if kind == "Metaspace":
        return step.get("replacement") == _WORD_MARK
    return kind in ("ByteFallback", "Fuse")


def _strips(step: dict[str, object], kind: str) -> bool:
    if kind == "Strip":
        return step.get("start") != 0
    return kind == "Metaspace" and step.get("prepend_scheme") != "never"
