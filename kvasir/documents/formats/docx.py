"""DOCX: paragraphs, tables as rows, and notes, in the order of the document; styles give headings.

Invariant: what a reader sees and the text does not hold is noted: figures, the numbers that Word
makes up while it shows lists, headers and footers, comments.
"""

from __future__ import annotations

import posixpath
import re
import zipfile
from typing import BinaryIO

from lxml import etree

from kvasir.core.errors import UnreadableFile
from kvasir.documents.archive import MemberRefused, open_archive, read_member
from kvasir.documents.building import Builder
from kvasir.documents.formats.docx_body import Body, W
from kvasir.documents.formats.xml import parse_xml

_MAIN = "/officeDocument"  # how the type of the relation to the main part ends
_PARTS = {"styles": "/styles", "footnotes": "/footnotes", "endnotes": "/endnotes"}
_LEFT_OUT = {
    "/header": "headers of pages are not in the text",
    "/footer": "footers of pages are not in the text",
    "/comments": "comments are not in the text",
    "/aFChunk": "a file within the file is not in the text",
}
_HEADING_NAME = re.compile(r"(?:heading|überschrift|titre) (\d)", re.IGNORECASE)
_BODY_TEXT_LEVEL = 9  # Word's outline level of what is no heading
_MAX_STYLE_CHAIN = 20


def read(source: BinaryIO, build: Builder) -> None:
    """Fill ``build`` with the document in ``source``. Raises ``UnreadableFile``."""
    with open_archive(source) as archive:
        _Reading(archive, build).run()


class _Reading:
    def __init__(self, archive: zipfile.ZipFile, build: Builder) -> None:
        self._archive = archive
        self._build = build

    def run(self) -> None:
        main = next((path for kind, path in self._relations("") if kind.endswith(_MAIN)), None)
        if main is None:
            raise UnreadableFile("it does not say where its text is", code="damaged_file")
        related = self._relations(main)
        parts = {
            name: next((path for kind, path in related if kind.endswith(ending)), None)
            for name, ending in _PARTS.items()
        }
        styles = self._part(parts["styles"])
        body = Body(self._build, {} if styles is None else heading_levels(styles))
        root = self._part(main)
        container = None if root is None else root.find(W + "body")
        if container is None:
            raise UnreadableFile("its main part has no text body", code="damaged_file")
        body.blocks(container)
        for name in ("footnotes", "endnotes"):
            notes = self._part(parts[name])
            if notes is not None:
                body.notes(notes)
        body.note_what_is_missing()
        for ending, reason in _LEFT_OUT.items():
            if any(kind.endswith(ending) for kind, _ in related):
                self._build.unread("part", reason)

    def _part(self, path: str | None) -> etree._Element | None:
        if path is None:
            return None
        try:
            info = self._archive.getinfo(path)
        except KeyError as error:
            raise UnreadableFile(
                f"its part {path[:100]} is missing", code="damaged_file"
            ) from error
        try:
            data = read_member(self._archive, info, self._build.allowance)
        except MemberRefused as error:
            raise UnreadableFile(f"its part {path[:100]}: {error}", code="damaged_file") from error
        root = parse_xml(data, f"its part {path[:100]}")
        if root.getroottree().docinfo.internalDTD is not None:  # Word writes none
            raise UnreadableFile(
                f"its part {path[:100]} declares entities, which no document needs",
                code="hostile_file",
            )
        return root

    def _relations(self, part: str) -> list[tuple[str, str]]:
        """Type and target of what ``part`` refers to within the file."""
        folder, name = posixpath.split(part)
        path = posixpath.join(folder, "_rels", f"{name}.rels")
        if path not in self._archive.namelist():
            return []
        root = self._part(path)
        found = []
        for relation in () if root is None else root.iter("{*}Relationship"):
            if relation.get("TargetMode") != "External":
                target = posixpath.join("/", folder, relation.get("Target") or "")
                kind = relation.get("Type") or ""
                found.append((kind, posixpath.normpath(target).lstrip("/")))
        return found


def heading_levels(styles: etree._Element) -> dict[str, int]:
    """The level of each style of headings, by its id: from its outline level or its name, its own
    or inherited."""
    own: dict[str, int | None] = {}
    based_on: dict[str, str] = {}
    for style in styles.iter(W + "style"):
        identity = style.get(W + "styleId") or ""
        name, base = style.find(W + "name"), style.find(W + "basedOn")
        level = style.find(f"{W}pPr/{W}outlineLvl")
        own[identity] = _level("" if name is None else name.get(W + "val") or "", level)
        if base is not None:
            based_on[identity] = base.get(W + "val") or ""
    levels = {}
    for identity in list(own):
        at = identity
        for _ in range(_MAX_STYLE_CHAIN):
            if own.get(at) is not None or at not in based_on:
                break
            at = based_on[at]
        if inherited := own.get(at):
            levels[identity] = inherited
    return levels


def _level(name: str, outline: etree._Element | None) -> int | None:
    """1 and up for a heading, 0 for what says that it is none, nothing for what does not say."""
    if outline is not None and (value := outline.get(W + "val") or "").isdecimal():
        return int(value) + 1 if int(value) < _BODY_TEXT_LEVEL else 0
    if named := _HEADING_NAME.fullmatch(name.strip()):
        return int(named[1])
    return 1 if name.strip().lower() == "title" else None
