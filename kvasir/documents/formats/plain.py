"""Plain text: kept as it is. Form feeds end pages; lines such as "CHAPTER I" become headings.

Invariant: a heading is a line of its own after an empty one. Levels follow from which kinds occur:
the outermost kind is 1, the next 2, so a book without parts has its chapters on level 1.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from kvasir.documents.building import Builder

# Kinds from the outermost to the innermost. Those of a rank stand beside each other.
_RANKS: tuple[tuple[str, ...], ...] = (
    ("VOLUME", "BAND", "TOME"),
    ("PART", "TEIL", "PARTIE"),
    ("BOOK", "BUCH", "LIVRE"),
    ("ACT",),
    ("CHAPTER", "KAPITEL", "CHAPITRE", "STAVE", "CANTO", "LETTER"),
    ("SCENE", "SECTION"),
)
_RANK_OF = {word: rank for rank, words in enumerate(_RANKS) for word in words}
_OUTERMOST = -1  # a prologue stands beside the outermost kind that there is
_CHAPTER = _RANK_OF["CHAPTER"]
_MAX_LINE = 100

_NUMBER = (
    r"(?:\d{1,4}|[IVXLCDMivxlcdm]{1,9}|(?:THE\s+)?(?:[A-Z]+(?:-[A-Z]+)?|[A-Z][a-z]+(?:-[a-z]+)?))"
)
_NUMBERED = re.compile(
    rf"(?:#{{1,6}}[ ])?(?P<word>{'|'.join(_RANK_OF)})\s+(?:THE\s+)?{_NUMBER}"
    r"(?:\s*[.:\u2014\u2013-]+(?:\s*(?P<title>\S.*))?)?",
)
_CAPITALISED = re.compile(
    rf"(?:#{{1,6}}[ ])?(?P<word>{'|'.join(word.capitalize() for word in _RANK_OF)})\s+"
    r"(?:\d{1,4}|[IVXLCDM]{1,9}|(?:The\s+)?[A-Z][a-z]+(?:-[A-Za-z][a-z]+)?)"
    r"(?:\s*[.:\u2014\u2013-]+(?:\s*(?P<title>\S.*))?)?",
)
_NAMED = re.compile(
    r"(?:#{1,6}[ ])?(?:(?:FIRST|SECOND|THIRD)\s+)?"
    r"(?:EPILOGUE|PROLOGUE|PREFACE|FOREWORD|INTRODUCTION|AFTERWORD|CONCLUSION|APPENDIX)"
    r"(?:\s+(?:[IVX]{1,5}|[A-Z]|\d{1,3}))?(?:\s*[.:\u2014-]+(?:\s*\S.*)?)?"
)
_NAMED_ALONE = re.compile(
    r"(?:Epilogue|Prologue|Preface|Foreword|Introduction|Afterword|Conclusion)\.?"
)
_ROMAN_TITLE = re.compile(r"[IVXLC]{1,7}\.\s+[A-Z][A-Z ,.'\u2019;:!?-]{3,}")


@dataclass(frozen=True, slots=True)
class _Found:
    rank: int
    title: str
    start: int
    end: int


def _rank(line: str) -> int | None:
    """Which kind of heading ``line`` is, if it is one."""
    if numbered := _NUMBERED.fullmatch(line) or _CAPITALISED.fullmatch(line):
        return _RANK_OF[numbered["word"].upper()]
    if _NAMED.fullmatch(line) or _NAMED_ALONE.fullmatch(line):
        return _OUTERMOST
    return _CHAPTER if _ROMAN_TITLE.fullmatch(line) else None


def _candidates(text: str) -> list[_Found]:
    found: list[_Found] = []
    after_empty = True
    at = 0
    for line in re.split(r"[\n\f]", text):
        stripped = line.strip()
        if after_empty and 3 < len(stripped) <= _MAX_LINE:
            rank = _rank(stripped)
            if rank is not None:
                title = stripped.lstrip("# ")
                found.append(_Found(rank, title, at + line.index(stripped), at + len(line)))
        after_empty = not stripped or stripped == "#"
        at += len(line) + 1
    return found


def _without_contents(text: str, found: list[_Found]) -> list[_Found]:
    """``found`` without the lines of a table of contents: those that nothing but the next line of
    the same kind follows, and whose title comes again."""
    later = Counter(heading.title for heading in found)
    kept = []
    for number, heading in enumerate(found):
        later[heading.title] -= 1
        after = found[number + 1] if number + 1 < len(found) else None
        listed = (
            after is not None
            and after.rank == heading.rank
            and not text[heading.end : after.start].strip("# \n\f")
            and later[heading.title] > 0
        )
        if not listed:
            kept.append(heading)
    return kept


def read(text: str, build: Builder) -> None:
    """Fill ``build`` with ``text``, which has ``\\n`` line ends."""
    pages = text.split("\f")
    if len(pages) > 1 and not pages[-1].strip():
        pages[-2:] = ["\f".join(pages[-2:])]  # a form feed at the very end begins no page
    most = build.allowance.limits.pages
    if len(pages) > most:
        pages[most - 1 :] = ["\f".join(pages[most - 1 :])]
        build.unread("page", f"pages after the {most:,}th are not told apart")
    for number, page in enumerate(pages, 1):
        if len(pages) > 1:
            build.start_page(str(number))
        build.add(page + "\f" * (number < len(pages)))
    found = _without_contents(text, _candidates(text))
    levels = {rank: level for level, rank in enumerate(sorted({f.rank for f in found} - {-1}), 1)}
    for heading in found:
        build.heading(levels.get(heading.rank, 1), heading.title, heading.start)
