"""Needles: numbers hidden in the last quarter of a window, and whether a model finds them again.

Invariant: up to its needle a prompt is the text that was read already, and uses its KV in place;
every setting of a model is asked the very same prompts.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from kvasir.bench.quality_reader import Reader
from kvasir.core.errors import ConfigError

DIGITS = 5
ANSWER_TOKENS = 8  # a space and five digits, however they are cut
_WORDS = tuple(
    word
    for line in (
        "amber anchor apple arrow basket beacon bell bottle bridge button candle canvas castle",
        "cedar chain clock cloud copper coral cotton desert diamond eagle ember falcon feather",
        "fountain garden glove hammer harbour helmet island ivory jacket kettle ladder lantern",
        "lemon maple marble meadow mirror needle ocean orchard parrot pebble pepper pillow ribbon",
        "river saddle sailor silver spider thunder timber tunnel velvet violin walnut willow",
    )
    for word in line.split()
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Needle:
    """One prompt: the read text up to ``place``, then ``rest``."""

    word: str
    digits: str
    place: int  # a multiple of the block size
    rest: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a model answered to all needles."""

    asked: int
    exact_share: float  # of needles whose digits are all right
    digit_share: float  # of all digits that are right in their places
    answers: tuple[tuple[str, str], ...]  # what was hidden, what was answered


def make_needles(
    tokens: Sequence[int],
    encode: Callable[[str], list[int]],
    n: int,
    *,
    block_tokens: int,
    seed: int,
) -> list[Needle]:
    """``n`` prompts over ``tokens``, a whole window, whose needles are spread evenly over its last
    quarter. Raises ``ConfigError`` where a window is too short for a needle and its question."""
    source = random.Random(seed)
    words = source.sample(_WORDS, len(_WORDS))
    end = len(tokens) - ANSWER_TOKENS
    needles = []
    for index in range(n):
        word = words[index % len(words)]
        digits = "".join(source.choice("0123456789") for _ in range(DIGITS))
        needle = encode(f"\n\nThe secret number of {word} is {digits}.\n\n")
        asked = f"The secret number of {word}"
        question = encode(f"\n\nWhat is the secret number of {word}? {asked} is")
        first = -(-len(tokens) * 3 // 4 // block_tokens) * block_tokens
        room = end - len(needle) - len(question) - first
        if room < 0:
            raise ConfigError(
                f"a window of {len(tokens)} tokens has no room for a needle in its last quarter; "
                "use a longer --window, or --needles 0"
            )
        place = first + room * index // max(1, n - 1) // block_tokens * block_tokens
        filler = end - place - len(needle) - len(question)
        rest = (*needle, *tokens[place : place + filler], *question)
        needles.append(Needle(word=word, digits=digits, place=place, rest=rest))
    return needles


def ask(
    reader: Reader,
    needles: Sequence[Needle],
    decode: Callable[[list[int]], str],
    say: Callable[[str], None],
) -> Found | None:
    """Let the model of ``reader``, which has read the text, answer; None where nothing is asked."""
    if not needles:
        return None
    answers: list[tuple[str, str]] = []
    for needle in needles:
        answers.append((needle.digits, _answer(reader, needle, decode)))
        if len(answers) % 10 == 0:
            exact = sum(digits == answer for digits, answer in answers)
            say(f"  {exact} of {len(answers)} needles were found, {len(needles)} are asked")
    return rate(answers)


def rate(answers: Sequence[tuple[str, str]]) -> Found:
    """Score pairs of the digits that were hidden and the text that was answered."""
    right = [
        sum(a == b for a, b in zip(digits, answer[:DIGITS], strict=False))
        for digits, answer in answers
    ]
    return Found(
        asked=len(answers),
        exact_share=sum(n == DIGITS for n in right) / len(answers),
        digit_share=sum(right) / (DIGITS * len(answers)),
        answers=tuple(answers),
    )


def _answer(reader: Reader, needle: Needle, decode: Callable[[list[int]], str]) -> str:
    branch = reader.branch(needle.place)
    hidden = reader.last(branch, needle.rest, needle.place)
    at = needle.place + len(needle.rest)
    said: list[int] = []
    for _ in range(ANSWER_TOKENS):
        said.append(int(torch.argmax(reader.forward.logits(hidden)[0])))
        text = decode(said).lstrip()
        if len(text) >= DIGITS:
            return text[:DIGITS]
        hidden = reader.last(branch, said[-1:], at)
        at += 1
    return decode(said).strip()
