"""Markdown: kept as it is, with its ATX (``# Title``) and setext (underlined) headings found.

Invariant: what is within a fence of code, or in the block of properties at the top, is no heading.
"""

from __future__ import annotations

import re

from kvasir.documents.building import Builder

_ATX = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)")
_SETEXT = re.compile(r" {0,3}(=+|-+)[ \t]*")
_OTHER_BLOCK = re.compile(r" {0,3}(?:>|[-*+][ \t]|\d{1,9}[.)][ \t]|\||<)| {4}|\t")
_MAX_LINE = 2000  # longer lines are no titles
_MAX_TITLE_LINES = 8  # nor are longer paragraphs


def read(text: str, build: Builder) -> None:
    """Fill ``build`` with ``text``, which has ``\\n`` line ends."""
    build.add(text)
    fence = ""
    title: tuple[list[str], int] | None = None  # lines of a paragraph: an underline may follow
    at = 0
    lines = text.split("\n")
    skipped = _properties(lines)
    for number, line in enumerate(lines):
        start, at = at, at + len(line) + 1
        if number < skipped:
            continue
        opened = _FENCE.fullmatch(line) if len(line) <= _MAX_LINE else None
        if fence:
            if opened and opened[1].startswith(fence) and not opened[2].strip():
                fence = ""
        elif len(line) > _MAX_LINE:
            title = None
        elif opened and "`" not in opened[2]:
            fence, title = opened[1], None
        elif atx := _ATX.fullmatch(line):
            build.heading(len(atx[1]), atx[2] or "", start)
            title = None
        elif title is not None and (underline := _SETEXT.fullmatch(line)):
            if len(title[0]) <= _MAX_TITLE_LINES:
                build.heading(1 if underline[1][0] == "=" else 2, " ".join(title[0]), title[1])
            title = None
        elif not line.strip() or _OTHER_BLOCK.match(line):
            title = None
        elif title is None:
            title = ([line.strip()], start)
        else:
            title[0].append(line.strip())


def _properties(lines: list[str]) -> int:
    """How many lines a block of properties (``---`` … ``---``) at the top takes."""
    if lines[0].rstrip() != "---":
        return 0
    for number, line in enumerate(lines[1:200], 2):
        if line.rstrip() in {"---", "..."}:
            return number
    return 0
