"""Whether a passage that somebody quotes really stands in a text, and where.

Invariant: a quote is found only where the text has the same words, digits, case and punctuation in
the same order, from the beginning of a word to the end of one. What ``likeness`` says is mere
setting (line breaks, hyphenation, ligatures, the shape of quotation marks and dashes) is ignored;
nothing else is.

Too short a quote is never found, though the text may have it: of one or two words, or fewer than
``MIN_LETTERS`` letters and digits, almost any text has some, so that finding it proves nothing. In
Chinese and Japanese, which do not part words, a character counts as a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from kvasir.documents.likeness import (
    BROKEN_NUMBER,
    BROKEN_WORD,
    HYPHEN,
    JOINED,
    Likeness,
    agree,
    likeness_of,
)

MIN_WORDS = 3
MIN_LETTERS = 10
MIN_LETTERS_UNSPACED = 8

_CONNECTS = frozenset(".,:'/@_&+=\\~*#$")  # between two letters or digits: of one word or number
_SIGNS_BEFORE = frozenset("-+\u00b1<>\u2264\u2265~\u2248")  # whose loss makes another number
_SIGNS_AFTER = frozenset("%\u2030\u00b0")
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]|[^\W_]+")

_LINE = r"(?:[^{0}\n]|\n(?![^\S\n]*\n))+"  # without a blank line: an unpaired mark ends there
_QUOTED = re.compile(
    "|".join(
        [
            r"(?P<block>(?:^[^\S\n]{0,3}>[^\n]*(?:\n|\Z))+)",
            "\u201c" + _LINE.format("\u201c\u201d") + "\u201d",
            "\u201e" + _LINE.format('\u201c\u201d\u201e"') + '[\u201c\u201d"]',
            "\u00ab" + _LINE.format("\u00ab\u00bb") + "\u00bb",
            "\u00bb" + _LINE.format("\u00ab\u00bb") + "\u00ab",
            '"' + _LINE.format('"') + '"',
            r"(?<!\w)" + "\u2018" + _LINE.format("\u2018") + "?\u2019" + r"(?!\w)",
        ]
    ),
    re.MULTILINE,
)
_BLOCK_MARK = re.compile(r"^[^\S\n]{0,3}>[^\S\n]?", re.MULTILINE)
_AROUND = " \t\r\n\"'\u201c\u201d\u201e\u2018\u2019\u00ab\u00bb"
_CUT_OFF = re.compile(r"\A(?:\[?(?:\.\.\.|\u2026)\]?\s*)+|(?:\s*\[?(?:\.\.\.|\u2026)\]?)+\Z")
_SENTENCE_END = re.compile(
    "[.!?\u2026][\"'\u201d\u2019\u00bb)\\]]*\\s+(?=\\S)|\n[^\\S\n]*\n(?=\\s*\\S)"
)


@dataclass(frozen=True, slots=True)
class Span:
    """The characters ``start`` … ``end - 1`` of a text."""

    start: int
    end: int


class QuoteIndex:
    """One text, made ready once to find many quotes in it."""

    def __init__(self, text: str) -> None:
        self._text = likeness_of(text)

    def find(self, quote: str) -> Span | None:
        """Where ``quote`` stands first; None where it does not, or is too short to tell."""
        wanted = likeness_of(quote.strip())
        if not _long_enough(wanted):
            return None
        for at, end in self._places(wanted):
            if not _within_word(self._text, at) and not _within_word(self._text, end):
                return Span(self._text.starts[at], self._text.ends[end - 1])
        return None

    def find_letters(self, phrase: str) -> Span | None:
        """Where ``phrase`` stands first, however short it is and whether or not it begins and ends
        with a word. Says nothing about a quote."""
        wanted = likeness_of(phrase.strip())
        at, end = next(self._places(wanted), (0, 0))
        return Span(self._text.starts[at], self._text.ends[end - 1]) if end else None

    def _places(self, wanted: Likeness) -> Iterator[tuple[int, int]]:
        """The first letter and the one after the last of every place that is like ``wanted``."""
        text, n_letters = self._text, len(wanted.letters)
        at = text.letters.find(wanted.letters) if n_letters else -1
        while at >= 0:
            if agree(text.gaps[at + 1 : at + n_letters], wanted.gaps[1:]):
                yield at, at + n_letters
            at = text.letters.find(wanted.letters, at + 1)


def find_quote(quote: str, text: str) -> Span | None:
    """Where ``quote`` stands in ``text``. For many quotes of one text make a ``QuoteIndex``."""
    return QuoteIndex(text).find(quote)


def extract_quotes(answer: str) -> tuple[str, ...]:
    """The passages that ``answer`` gives as quotes, in its order, each once: between quotation
    marks, or in a block of lines that begin with ">". Dots at their ends that say that something
    was left out there are not part of them.

    An answer of a single sentence without quotation marks is itself taken for a quote.
    """
    found = []
    for match in _QUOTED.finditer(answer):
        quote = match.group()
        if match.lastgroup == "block":
            quote = _BLOCK_MARK.sub("", quote)
        quote = _CUT_OFF.sub("", quote.strip(_AROUND)).strip()
        if quote:
            found.append(quote)
    whole = answer.strip()
    if not found and whole and not _SENTENCE_END.search(whole):
        found.append(whole)
    return tuple(dict.fromkeys(found))


def _long_enough(quote: Likeness) -> bool:
    """Whether finding ``quote`` says anything; see the module."""
    parted = "".join(
        letter if gap == JOINED else f" {letter}"
        for letter, gap in zip(quote.letters, quote.gaps, strict=True)
    )
    words = _WORD.findall(parted)
    unspaced = all(len(word) == 1 and ord(word) >= 0x3040 for word in words)
    letters = sum(map(len, words))
    return len(words) >= MIN_WORDS and letters >= (
        MIN_LETTERS_UNSPACED if unspaced else MIN_LETTERS
    )


def _within_word(text: Likeness, at: int) -> bool:
    """Whether the border before letter ``at`` is inside a word or a number."""
    if not 0 < at < len(text.letters):
        return False
    gap = text.gaps[at]
    if gap in (HYPHEN, BROKEN_WORD, BROKEN_NUMBER):
        return True
    if gap != JOINED:
        return False
    left, right = text.letters[at - 1], text.letters[at]
    if _unspaced(left) or _unspaced(right):
        return False
    if left.isalnum() and right.isalnum():
        return True
    if (right.isdigit() and left in _SIGNS_BEFORE) or (left.isdigit() and right in _SIGNS_AFTER):
        return True
    return _connected(text, at - 1) or _connected(text, at)


def _connected(text: Likeness, at: int) -> bool:
    """Whether letter ``at`` joins the two beside it to one word or number: 3.14, don't, a/b."""
    return (
        0 < at < len(text.letters) - 1
        and text.letters[at] in _CONNECTS
        and text.gaps[at] == text.gaps[at + 1] == JOINED
        and text.letters[at - 1].isalnum()
        and text.letters[at + 1].isalnum()
    )


def _unspaced(letter: str) -> bool:
    return "\u3040" <= letter <= "\u9fff" or "\uf900" <= letter <= "\ufaff"
