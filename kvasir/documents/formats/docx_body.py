"""The blocks of a DOCX document: what paragraphs and tables say, in the order they stand in.

Invariant: every ``w:t`` is in the text once, unless it was deleted or is a fallback (a second
version of the same thing).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lxml import etree

from kvasir.documents.building import Builder
from kvasir.documents.formats.markup import CELL

W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_MC = "{http://schemas.openxmlformats.org/markup-compatibility/2006}"
_MATH = "{http://schemas.openxmlformats.org/officeDocument/2006/math}"
_SKIPPED = {W + "del", W + "moveFrom", _MC + "Fallback", W + "pPr"}
_LITERAL = {
    W + "tab": "\t",
    W + "br": "\n",
    W + "cr": "\n",
    W + "noBreakHyphen": "-",
    W + "softHyphen": "\u00ad",
    W + "ptab": "\t",
}
_NOTES = {W + "footnoteReference": "", W + "endnoteReference": "e"}
_FIGURES = {W + "drawing", W + "pict", W + "object"}
_DESCRIPTION = "{http://schemas.openxmlformats.org/drawingml/2006/wordprocessingDrawing}docPr"
_NO_NOTES = {"separator", "continuationSeparator", "continuationNotice"}


class Body:
    """Writes blocks into a builder. ``levels`` are those of the styles of headings."""

    def __init__(self, build: Builder, levels: Mapping[str, int]) -> None:
        self._build = build
        self._levels = levels
        self._numbered = False
        self._has_notes = False

    def blocks(self, container: etree._Element) -> None:
        """The paragraphs and tables within ``container``."""
        for block in container:
            if block.tag == W + "p":
                self._paragraph(block)
            elif block.tag == W + "tbl":
                for row in self._rows(block):
                    self._build.add(row + "\n")
                self._build.add("\n")
            elif isinstance(block.tag, str) and block.tag not in _SKIPPED:
                self.blocks(block)  # content controls, insertions, custom XML

    def _paragraph(self, paragraph: etree._Element) -> None:
        text = self._text(paragraph)
        level = self._level(paragraph)
        if level and text.strip():
            self._build.heading(level, text, self._build.length)
        self._build.add(text + "\n")

    def _level(self, paragraph: etree._Element) -> int:
        properties = paragraph.find(W + "pPr")
        if properties is None:
            return 0
        self._numbered = self._numbered or properties.find(W + "numPr") is not None
        outline = properties.find(W + "outlineLvl")
        if outline is not None and (value := outline.get(W + "val") or "").isdecimal():
            return int(value) + 1 if int(value) < 9 else 0
        style = properties.find(W + "pStyle")
        return 0 if style is None else self._levels.get(style.get(W + "val") or "", 0)

    def _rows(self, table: etree._Element) -> Iterator[str]:
        """A line for each row. Tables within cells become part of the cell."""
        for row in table.iter(W + "tr"):
            if next(row.iterancestors(W + "tbl"), None) is table:
                cells = (" ".join(self._text(cell).split()) for cell in _children(row, W + "tc"))
                yield CELL.join(cells)

    def _text(self, root: etree._Element) -> str:
        """What is said in ``root``. Iterative, as text boxes hold paragraphs within paragraphs."""
        parts: list[str] = []
        skipped: etree._Element | None = None
        for event, element in etree.iterwalk(root, events=("start", "end")):
            if event == "end":
                if element is skipped:
                    skipped = None
                elif skipped is None and element.tag == W + "p" and element is not root:
                    parts.append("\n")
            elif skipped is not None:
                continue
            elif element.tag in _SKIPPED and element is not root:
                skipped = element
            else:
                parts.append(self._said(element))
        return "".join(parts)

    def _said(self, element: etree._Element) -> str:
        tag = element.tag
        if tag in {W + "t", _MATH + "t"}:
            return element.text or ""
        if tag in _LITERAL:
            return _LITERAL[tag]
        if tag in _NOTES:
            return f"[^{_NOTES[tag]}{element.get(W + 'id')}]"
        if tag == W + "sym":
            return _symbol(element.get(W + "char") or "")
        if tag in _FIGURES:
            self._figure(element)
        return ""

    def _figure(self, element: etree._Element) -> None:
        if next(element.iter(W + "txbxContent"), None) is not None:
            return  # a box of text, which is read
        described = next(element.iter(_DESCRIPTION), None)
        said = "" if described is None else described.get("descr") or ""
        about = f': "{said}"' if said else " without a description"
        self._build.unread("figure", f"a figure is not read{about}")

    def notes(self, root: etree._Element) -> None:
        """Footnotes or endnotes, each on its lines behind the mark that stands in the text."""
        prefix = "e" if root.tag == W + "endnotes" else ""
        for note in root:
            if not isinstance(note.tag, str) or note.get(W + "type") in _NO_NOTES:
                continue
            text = self._text(note).strip()
            if text:
                if not self._has_notes:
                    self._build.add("\n")
                self._has_notes = True
                self._build.add(f"[^{prefix}{note.get(W + 'id')}]: {text}\n")

    def note_what_is_missing(self) -> None:
        """Say that numbers of lists are not in the text, where there are such."""
        if self._numbered:
            self._build.unread(
                "numbers", "automatic numbers and bullets of lists are not in the text"
            )


def _children(row: etree._Element, tag: str) -> Iterator[etree._Element]:
    """The cells of a row, also those in content controls."""
    for cell in row.iter(tag):
        if next(cell.iterancestors(W + "tr"), None) is row:
            yield cell


def _symbol(code: str) -> str:
    try:
        return chr(int(code, 16))
    except (ValueError, OverflowError):
        return ""
