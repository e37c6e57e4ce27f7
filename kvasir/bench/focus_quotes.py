"""Quotes that must be verified and quotes that must not: passages of a text, set anew or altered.

Invariant: seeded, so that the same text gives the same quotes. Setting anew changes nothing that a
reader would call another text; every alteration does, and one that happens to give words that stand
in the text after all (seen by a plain search, not by what is tested) is left out.
"""

from __future__ import annotations

import random
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle

from kvasir.documents.quotes import QuoteIndex

_WORD = re.compile(r"\S+")
_SETTING = re.compile(r"[\s-]")
_PROSE = re.compile(r"[^\W\d_]{2,}")
_LONG = re.compile(r"(?<![^\W_])[A-Za-z]{7,}(?![^\W_])")
_BEGINS = re.compile(r"[A-Za-z0-9]")
_ENDS = re.compile(r"[A-Za-z0-9.,;:!?]\Z")
_LIGATURES = (("ffi", "\ufb03"), ("ffl", "\ufb04"), ("ff", "\ufb00"), ("fi", "\ufb01"))
_MORE_LIGATURES = (("fl", "\ufb02"), ("st", "\ufb06"))
_MODAL = re.compile(r"\b(must|may|is|was|will|should|are|can|were|had|did)\b (?!not\b)")
_NEGATION = re.compile(r" (?:not|never|no)(?= \w)|n't(?= \w)")


@dataclass(frozen=True, slots=True)
class Sample:
    """A passage of a text: the characters ``start`` … ``end - 1``."""

    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class QuoteCheck:
    """What became of both kinds. The lists hold what went wrong."""

    n_altered: int
    n_reset: int
    verified: tuple[str, ...]  # altered quotes that were verified all the same
    missed: tuple[str, ...]  # unaltered quotes that were not found, or elsewhere
    kinds: dict[str, int]  # of alteration: how many


def check_quotes(text: str, n: int, seed: int) -> QuoteCheck:
    """Alter ``n`` passages of ``text`` and set ``n`` anew, and look them all up."""
    rng = random.Random(seed)
    index = QuoteIndex(text)
    verified = []
    kinds: Counter[str] = Counter()
    for kind, quote in altered_quotes(text, n, rng):
        kinds[kind] += 1
        if index.find(quote) is not None:
            verified.append(f"{kind}: {quote}")
    missed = []
    for sample, quote in reset_quotes(text, n, rng):
        span = index.find(quote)
        if span is None or not _same_place(text, sample, span.start, span.end):
            missed.append(quote)
    return QuoteCheck(sum(kinds.values()), n, tuple(verified), tuple(missed), dict(kinds))


class Samples:
    """Passages of one text, as many as are wanted."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._words = [match.span() for match in _WORD.finditer(text)]

    def take(self, rng: random.Random) -> Sample:
        """A passage of 6 to 30 words, from the beginning of a word to the end of one."""
        while True:
            first = rng.randrange(1, len(self._words) - 32)
            last = first + rng.randrange(5, 30)
            start, end = self._words[first][0], self._words[last][1]
            passage = self.text[start:end]
            broken = self.text[self._words[first - 1][1] - 1] in "-\u00ad\u2010"
            proper = _BEGINS.match(passage) and _ENDS.search(passage) and not broken
            if proper and len(_PROSE.findall(passage)) >= 5:  # not a line of dots
                return Sample(start, end, passage)


def reset_quotes(text: str, n: int, rng: random.Random) -> Iterator[tuple[Sample, str]]:
    """``n`` passages, each with itself as another printer would set it."""
    samples = Samples(text)
    for _ in range(n):
        sample = samples.take(rng)
        quote = sample.text
        for at in sorted(rng.sample(range(len(_RESETS)), rng.randrange(1, 4))):
            quote = _RESETS[at](quote, rng)
        yield sample, quote


def altered_quotes(text: str, n: int, rng: random.Random) -> Iterator[tuple[str, str]]:
    """``n`` alterations, each with its kind."""
    plain = _plain(text)
    vocabulary = sorted(set(re.findall(r"[A-Za-z]{4,}", text)))
    samples = Samples(text)
    for kind in cycle(_ALTERATIONS):
        if n == 0:
            return
        ours, other = _plain(samples.take(rng).text), _plain(samples.take(rng).text)
        quote = _ALTERATIONS[kind](ours, other, vocabulary, rng)
        if quote is not None and not _stands_in(_plain(quote), plain):
            n -= 1
            yield kind, quote


def _plain(text: str) -> str:
    return " ".join(text.split())


def _stands_in(quote: str, plain: str) -> bool:
    if quote not in plain:
        return False
    return re.search(rf"(?<![^\W_]){re.escape(quote)}(?![^\W_])", plain) is not None


def _same_place(text: str, sample: Sample, start: int, end: int) -> bool:
    """Whether the passage was found at its place, or its like at an earlier one."""
    if (start, end) == (sample.start, sample.end):
        return True
    found, wanted = (_SETTING.sub("", part) for part in (text[start:end], sample.text))
    return found == wanted and start < sample.start


# Set anew: (quote, rng) -> quote


def _rewrapped(quote: str, rng: random.Random) -> str:
    return (
        "".join(
            rng.choice((" ", " ", "\n", "  ", "\r\n", "\u00a0")) + word for word in quote.split()
        )[1:]
        if rng.random() < 0.5
        else " ".join(quote.split())
    )


def _hyphenated(quote: str, rng: random.Random) -> str:
    def broken(match: re.Match[str]) -> str:
        at = rng.randrange(2, len(match.group()) - 2)
        mark = rng.choice(("-\n", "-\n", "\u00ad\n", "\u00ad", "\u2010\n", "\ufffe"))
        return match.group()[:at] + mark + match.group()[at:]

    return _LONG.sub(broken, quote, count=rng.randrange(1, 4))


def _ligatured(quote: str, rng: random.Random) -> str:
    for letters, ligature in _LIGATURES + _MORE_LIGATURES[: rng.randrange(3)]:
        quote = quote.replace(letters, ligature)
    return quote


def _marked(quote: str, rng: random.Random) -> str:
    table = rng.choice(
        (
            str.maketrans({"\u201c": '"', "\u201d": '"', "\u2018": "'", "\u2019": "'"}),
            str.maketrans({'"': "\u201d", "'": "\u2019", "\u201c": "\u201e"}),
            str.maketrans({"\u201c": "\u00ab", "\u201d": "\u00bb", '"': "\u201c"}),
        )
    )
    return quote.translate(table)


def _dashed(quote: str, rng: random.Random) -> str:
    quote = quote.replace("\u2014", rng.choice((" \u2014 ", " \u2013 ", "\u2014", "\u2015")))
    return re.sub(r"(?<=\d)-(?=\d)", "\u2013", quote)


def _composed(quote: str, rng: random.Random) -> str:
    return unicodedata.normalize(rng.choice(("NFD", "NFC")), quote)


_RESETS: tuple[Callable[[str, random.Random], str], ...] = (
    _rewrapped,  # in this order: it would take the line ends from the others
    _hyphenated,
    _ligatured,
    _marked,
    _dashed,
    _composed,
)

# Altered: (quote, another, vocabulary, rng) -> quote, or None where this kind cannot be

_Alteration = Callable[[str, str, list[str], random.Random], "str | None"]


def _inner(words: list[str], rng: random.Random) -> int:
    return rng.randrange(1, len(words) - 1)


def _word_replaced(quote: str, _: str, vocabulary: list[str], rng: random.Random) -> str:
    words = quote.split()
    words[_inner(words, rng)] = rng.choice(vocabulary)
    return " ".join(words)


def _word_removed(quote: str, _: str, __: list[str], rng: random.Random) -> str:
    words = quote.split()
    del words[_inner(words, rng)]
    return " ".join(words)


def _word_added(quote: str, _: str, vocabulary: list[str], rng: random.Random) -> str:
    words = quote.split()
    words.insert(_inner(words, rng), rng.choice(vocabulary))
    return " ".join(words)


def _words_swapped(quote: str, _: str, __: list[str], rng: random.Random) -> str | None:
    words = quote.split()
    at = _inner(words, rng)
    if words[at] == words[at - 1]:
        return None
    words[at - 1], words[at] = words[at], words[at - 1]
    return " ".join(words)


def _one_of(
    pattern: str | re.Pattern[str], quote: str, change: Callable[[str], str], rng: random.Random
) -> str | None:
    """``quote`` with one match of ``pattern``, not at its ends, changed."""
    found = [m for m in re.finditer(pattern, quote) if m.start() > 0 and m.end() < len(quote)]
    if not found:
        return None
    match = rng.choice(found)
    changed = quote[: match.start()] + change(match.group()) + quote[match.end() :]
    return None if changed == quote else changed


def _digit_changed(quote: str, _: str, __: list[str], rng: random.Random) -> str | None:
    return _one_of(r"\d", quote, lambda digit: str((int(digit) + rng.randrange(1, 10)) % 10), rng)


def _negation_added(quote: str, _: str, __: list[str], rng: random.Random) -> str | None:
    return _one_of(_MODAL, quote, lambda verb: f"{verb}not ", rng)


def _negation_removed(quote: str, _: str, __: list[str], rng: random.Random) -> str | None:
    return _one_of(_NEGATION, quote, lambda _: "", rng)


def _spliced(quote: str, other: str, _: list[str], __: random.Random) -> str:
    ours, theirs = quote.split(), other.split()
    return " ".join(ours[: max(2, len(ours) // 2)] + theirs[len(theirs) // 2 :])


def _case_changed(quote: str, _: str, __: list[str], rng: random.Random) -> str | None:
    return _one_of(r"(?<=\W)[A-Za-z](?=[a-z]{2})", quote, str.swapcase, rng)


def _punctuation_changed(quote: str, _: str, __: list[str], rng: random.Random) -> str | None:
    return _one_of(
        r"[.,;:!?()](?=\s)", quote, lambda was: rng.choice(".,;:!?".replace(was, "")), rng
    )


def _punctuation_removed(quote: str, _: str, __: list[str], rng: random.Random) -> str | None:
    return _one_of(r"[.,;:!?()](?=\s)", quote, lambda _: "", rng)


def _letter_changed(quote: str, _: str, __: list[str], rng: random.Random) -> str | None:
    letters = "abcdefghijklmnoprstuvw"
    return _one_of(r"[a-z]", quote, lambda was: rng.choice(letters.replace(was, "")), rng)


def _cut_at_end(quote: str, _: str, __: list[str], rng: random.Random) -> str | None:
    last = re.search(r"[A-Za-z]{4,}\W*\Z", quote)
    return quote[: last.start() + rng.randrange(1, 4)] if last else None


def _cut_at_start(quote: str, _: str, __: list[str], rng: random.Random) -> str | None:
    first = re.match(r"[A-Za-z]{4,}", quote)
    return quote[rng.randrange(1, 4) :] if first else None


def _words_joined(quote: str, _: str, __: list[str], rng: random.Random) -> str | None:
    return _one_of(r"(?<=[a-z]) (?=[a-z])", quote, lambda _: "", rng)


def _word_parted(quote: str, _: str, __: list[str], rng: random.Random) -> str | None:
    return _one_of(r"(?<=[a-z]{2})[a-z](?=[a-z]{2})", quote, lambda letter: f"{letter} ", rng)


_ALTERATIONS: dict[str, _Alteration] = {
    "word replaced": _word_replaced,
    "word removed": _word_removed,
    "word added": _word_added,
    "words swapped": _words_swapped,
    "digit changed": _digit_changed,
    "negation added": _negation_added,
    "negation removed": _negation_removed,
    "spliced": _spliced,
    "case changed": _case_changed,
    "punctuation changed": _punctuation_changed,
    "punctuation removed": _punctuation_removed,
    "letter changed": _letter_changed,
    "cut inside the last word": _cut_at_end,
    "cut inside the first word": _cut_at_start,
    "words joined": _words_joined,
    "word parted": _word_parted,
}
