"""A text as its letters and the gaps between them: what stays the same however it is set.

Invariant: two texts that differ only in line breaks, runs of spaces, hyphenation at line ends,
ligatures and other compatible forms of a letter, and the shape of quotation marks and dashes have
the same letters, and gaps that agree; texts that differ in anything else do not.

A *letter* here is any visible character. Spaces, and hyphens inside a word, are not letters but
what lies in a gap, because a line break makes them uncertain: of "well-" at the end of a line
nobody can tell whether the hyphen is the word's own, so such a gap agrees with both.

Not the same, though Unicode calls them compatible: superscripts, subscripts, fractions, circled
and squared characters. 10\u00b2 is not 102.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from dataclasses import dataclass

JOINED = 0  # nothing between two letters
SPACE = 1
HYPHEN = 2  # inside a word: well-known
HYPHEN_SPACE = 3  # pre- and postwar
BROKEN_WORD = 4  # a hyphen at a line's end between letters: the word's own or not
BROKEN_NUMBER = 5  # with a digit beside it: the hyphen is there, a space may be
_AGREE = {
    BROKEN_WORD: {JOINED, HYPHEN, HYPHEN_SPACE, BROKEN_WORD, BROKEN_NUMBER},
    BROKEN_NUMBER: {HYPHEN, HYPHEN_SPACE, BROKEN_WORD, BROKEN_NUMBER},
}

_DASH = "\u2014"  # as which every dash between words is kept
_MARKS = {
    **dict.fromkeys("\u2018\u2019\u201a\u201b\u2039\u203a\u02bc", "'"),
    **dict.fromkeys("\u201c\u201d\u201e\u201f\u00ab\u00bb\u275d\u275e\u301d\u301e", '"'),
}
_HYPHENS = "-\u2010\u2011\u2012\u2013\u2212\u00ad"
_LINE_HYPHENS = "\ufffe\u0002"  # as which PDF readers give a hyphen that ends a line
_UNSEEN = "\u200b\u200e\u200f\u2060\ufeff"
_OTHER_FORMS = ("<super>", "<sub>", "<fraction>", "<circle>", "<square>")
_TOKENS = re.compile(
    rf"""(?P<plain>[!-,./-~]+)                         # ASCII without space and hyphen
    |(?P<dash>\s*(?:[\u2014\u2015]+                    # an em dash with or without spaces
        |(?:(?<=\s)|\A)[-\u2013]{{1,3}}(?=\s|\Z)      # any dash that stands alone
        |(?<=\w)--+)\s*)                             # as a typewriter has it
    |(?P<space>[\s{_UNSEEN}]+)
    |(?P<line>[{_LINE_HYPHENS}]\s*|\u00ad[^\S\n\r]*[\n\r]\s*)
    |(?P<hyphen>[{_HYPHENS}])
    |(?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)
_BLANKS = re.compile(rf"[\s{_UNSEEN}]*")
_UNSPACED = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")


@dataclass(frozen=True, slots=True)
class Likeness:
    """``letters[i]`` came from the characters ``starts[i]`` … ``ends[i] - 1`` of the text, and
    ``gaps[i]`` lies before it."""

    letters: str
    gaps: bytes
    starts: array[int]
    ends: array[int]


def likeness_of(text: str) -> Likeness:
    """The likeness of ``text``, in time proportional to its length."""
    reader = _Reader()
    for match in _TOKENS.finditer(text):
        start, end = match.span()
        kind = match.lastgroup
        if kind == "plain":
            reader.add(match.group(), range(start, end))
        elif kind == "space":
            reader.space(match.group())
        elif kind == "dash":
            reader.dash(start, match.group())
        elif kind == "line":
            reader.hyphen(text, start, ends_line=True)
        elif kind == "hyphen":
            reader.hyphen(text, start, ends_line=False)
        else:
            reader.other(match.group(), start)
    return reader.done()


def agree(ours: bytes, theirs: bytes) -> bool:
    """Whether two runs of gaps of the same length may stand for the same."""
    if ours == theirs:
        return True
    return all(
        a == b or b in _AGREE.get(a, ()) or a in _AGREE.get(b, ())
        for a, b in zip(ours, theirs, strict=True)
    )


class _Reader:
    """Takes a text piece by piece, in order."""

    def __init__(self) -> None:
        self._letters: list[str] = []
        self._gaps = bytearray()
        self._starts: array[int] = array("I")
        self._ends: array[int] = array("I")
        self._gap = JOINED  # before the next letter
        self._before = ""  # the last letter

    def add(self, letters: str, places: range) -> None:
        """Letters that stand for themselves, one at each place."""
        self._letters.append(letters)
        self._gaps.append(self._gap)
        self._gaps.extend(bytes(len(letters) - 1))
        self._starts.extend(places)
        self._ends.extend(range(places.start + 1, places.stop + 1))
        self._gap = JOINED
        self._before = letters[-1]

    def space(self, run: str) -> None:
        if self._gap == JOINED and any(map(str.isspace, run)):
            self._gap = SPACE

    def dash(self, start: int, run: str) -> None:
        """A dash between words; spaces around it mean nothing."""
        inner = run.strip()
        at = start + run.index(inner)
        self._gap = JOINED
        self._one(_DASH, at, at + len(inner))

    def hyphen(self, text: str, at: int, *, ends_line: bool) -> None:
        blanks = _BLANKS.match(text, at + 1)
        after = blanks.end() if blanks else at + 1
        if text[at] == "\u00ad":
            return  # seen only at the end of a line, and then not a part of the word
        following = text[after : after + 1]
        inside = self._gap == JOINED and self._before.isalnum() and following.isalnum()
        if not inside:
            self._one("-", at, at + 1)
        elif ends_line or "\n" in text[at:after] or "\r" in text[at:after]:
            letters = self._before.isalpha() and following.isalpha()
            self._gap = BROKEN_WORD if letters else BROKEN_NUMBER
        else:
            self._gap = HYPHEN if after == at + 1 else HYPHEN_SPACE

    def other(self, character: str, at: int) -> None:
        """A character that is not ASCII."""
        if character in _MARKS:
            self._one(_MARKS[character], at, at + 1)
            return
        if self._combines(character, at):
            return
        plain = unicodedata.normalize("NFKC", character)
        other = unicodedata.decomposition(character).startswith(_OTHER_FORMS)
        if other or not plain.isprintable() or " " in plain:  # a space: an accent that stands alone
            plain = character
        if self._gap == SPACE and _UNSPACED.match(self._before) and _UNSPACED.match(plain):
            self._gap = JOINED
        for letter in plain:
            self._one(letter, at, at + 1)

    def done(self) -> Likeness:
        return Likeness("".join(self._letters), bytes(self._gaps), self._starts, self._ends)

    def _one(self, letter: str, start: int, end: int) -> None:
        self._letters.append(letter)
        self._gaps.append(self._gap)
        self._starts.append(start)
        self._ends.append(end)
        self._gap = JOINED
        self._before = letter

    def _combines(self, character: str, at: int) -> bool:
        """Whether ``character`` is an accent of the letter before it, or a vowel or final of a
        Korean one; then both are one letter."""
        if not (unicodedata.combining(character) or "\u1161" <= character <= "\u11ff"):
            return False
        composed = unicodedata.normalize("NFC", self._before + character)
        if not self._before or self._gap != JOINED or len(composed) != 1:
            return False
        self._letters[-1] = self._letters[-1][:-1] + composed
        self._ends[-1] = at + 1
        self._before = composed
        return True
