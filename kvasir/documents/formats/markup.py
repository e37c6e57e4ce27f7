"""The text of a tree of HTML or XHTML: blocks on lines of their own, tables as rows, headings.

Invariant: white space is set as a browser would (collapsed, but kept in ``pre``); no element's text
is lost except that of scripts, styles and the head, and what has no text is noted as unread.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator

from lxml import etree

from kvasir.documents.building import Builder

_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_PARAGRAPHS = frozenset((
    "address", "article", "aside", "blockquote", "body", "center", "details", "dl", "fieldset",
    "figure", "footer", "form", "header", "hr", "main", "nav", "ol", "p", "pre", "section", "table",
    "ul", *_HEADINGS,
))  # fmt: skip
_LINES = frozenset((
    "caption", "dd", "div", "dt", "figcaption", "legend", "li", "option", "summary", "tbody",
    "tfoot", "thead", "title", "tr",
))  # fmt: skip
_SKIPPED = frozenset(("head", "script", "style", "template", "noscript", "iframe", "object", "svg"))
_CELLS = frozenset(("td", "th"))
_FIGURES = {"img", "svg", "video", "audio", "canvas", "object", "image"}
_SPACE = re.compile(r"[ \t\n\r\f]+")
CELL = " | "


def local_name(element: etree._Element) -> str:
    """The element's name without its namespace; empty for comments and the like."""
    tag = element.tag
    return tag.rpartition("}")[2].lower() if isinstance(tag, str) else ""


def _walk(root: etree._Element) -> Iterator[tuple[bool, etree._Element]]:
    """Every element at its start (True) and at its end, however deep the tree is."""
    yield True, root
    path = [root]
    children = [iter(root)]
    while path:
        child = next(children[-1], None)
        if child is None:
            children.pop()
            yield False, path.pop()
        else:
            yield True, child
            path.append(child)
            children.append(iter(child))


class Flow:
    """Writes trees into a builder. ``anchors`` holds where each element with an id begins."""

    def __init__(self, build: Builder, *, headings: bool = True) -> None:
        self._build = build
        self._wants_headings = headings
        self.anchors: dict[str, int] = {}
        self._ids: list[str] = []  # of elements whose text has not begun
        self._newlines = 0  # owed before the next text
        self._space = False  # owed before the next text, on the same line
        self._line_start = True
        self._wrote = False
        self._cells = 0  # of the current row
        self._pre = 0
        self._title: list[str] | None = None  # text of the heading that is being read
        self._title_at: int | None = None

    def write(self, root: etree._Element) -> None:
        """The text below ``root``."""
        skipped: etree._Element | None = None
        for starts, element in _walk(root):
            if skipped is None and starts:
                name = local_name(element)
                if name in _SKIPPED or not isinstance(element.tag, str):
                    skipped = element
                    self._note(name, element)
                else:
                    self._start(name, element)
                    self._text(element.text)
            elif skipped is None or skipped is element:
                if skipped is None:
                    self._end(local_name(element))
                skipped = None
                if element is not root:
                    self._text(element.tail)
        self._settle_ids()

    def _start(self, name: str, element: etree._Element) -> None:
        self._break(name)
        identity = element.get("id") or (element.get("name") if name == "a" else None)
        if identity:
            self._ids.append(identity)
        if name in _HEADINGS:
            self._title, self._title_at = [], None
        elif name == "br":
            self._newlines, self._space = min(2, self._newlines + 1), False
        elif name == "li":
            self._text("- ")
        elif name == "tr":
            self._cells = 0
        elif name in _CELLS:
            if self._cells:
                self._space = False
                self._put(CELL)
                self._line_start = True  # no space before what comes now
            self._cells += 1
        elif name == "pre":
            self._pre += 1
        else:
            self._note(name, element)

    def _end(self, name: str) -> None:
        if name in _HEADINGS and self._title is not None:
            if self._wants_headings and self._title_at is not None:
                self._build.heading(_HEADINGS[name], "".join(self._title), self._title_at)
            self._title = None
        elif name == "pre":
            self._pre = max(0, self._pre - 1)
        elif name == "tr":
            self._cells = 0
        self._break(name)

    def _break(self, name: str) -> None:
        wanted = 2 if name in _PARAGRAPHS else 1 if name in _LINES else 0
        if wanted and not self._cells:  # a row stays on its line
            self._newlines, self._space = max(self._newlines, wanted), False
        elif wanted:
            self._space = True

    def _note(self, name: str, element: etree._Element) -> None:
        if name in _FIGURES:
            said = element.get("alt") or element.get("title") or ""
            about = f': "{said}"' if said.strip() else " without a description"
            self._build.unread("figure", f"an image is not read{about}")
        elif element.tag is etree.Entity:
            self._text(html.unescape(element.text or ""))  # a letter's name, or the name as it is

    def _text(self, text: str | None) -> None:
        if not text:
            return
        if self._pre:
            self._put(text)
            return
        words = _SPACE.sub(" ", text)
        if words.startswith(" ") and not self._line_start and not self._newlines:
            self._space = True
        if core := words.strip(" "):
            self._put(core)
            self._space = words.endswith(" ")

    def _put(self, text: str) -> None:
        before = "\n" * self._newlines if self._wrote else ""
        if not before and self._space and not self._line_start:
            before = " "
        if before:
            self._build.add(before)
        self._settle_ids()
        if self._title is not None:
            if self._title_at is None:
                self._title_at = self._build.length
            self._title.append(" " if before else "")
            self._title.append(text)
        self._build.add(text)
        self._newlines, self._space, self._line_start = 0, False, False
        self._wrote = True

    def _settle_ids(self) -> None:
        for identity in self._ids:
            self.anchors.setdefault(identity, self._build.length)
        self._ids.clear()
