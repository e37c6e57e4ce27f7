"""HTML pages: a tree by lxml's forgiving parser, which fetches nothing, then its text.

Invariant: where the parser gives up (a tree deeper than it takes) that is noted as unread.
"""

from __future__ import annotations

import re

import lxml.html
from lxml import etree

from kvasir.core.errors import UnreadableFile
from kvasir.documents.building import Builder
from kvasir.documents.decoding import decode
from kvasir.documents.formats.markup import Flow

_CHARSET = re.compile(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([\w.:-]{1,40})""", re.IGNORECASE)


def parse(text: str) -> tuple[etree._Element | None, str | None]:
    """The tree of a page and why it is not whole; no tree where there is nothing in it."""
    parser = lxml.html.HTMLParser(
        encoding="utf-8", no_network=True, remove_comments=True, remove_pis=True, huge_tree=True
    )
    try:
        root = etree.fromstring(text.encode("utf-8", "replace"), parser)
    except etree.ParserError:
        return None, None  # an empty document
    except etree.XMLSyntaxError as error:
        return None, str(error)
    limits = [e.message for e in parser.error_log if e.type_name == "ERR_RESOURCE_LIMIT"]
    return root, limits[0] if limits else None


def read(data: bytes, build: Builder) -> None:
    """Fill ``build`` with the page in ``data``."""
    declared = _CHARSET.search(data[:4096])
    decoded = decode(data, declared=declared[1].decode("ascii") if declared else None)
    build.encoding = decoded.encoding
    if decoded.replaced:
        build.unread("characters", f"{decoded.replaced:,} are not {decoded.encoding}: shown as �")
    root, problem = parse(decoded.text.replace("\0", ""))
    if root is None and problem is not None:
        raise UnreadableFile(f"its HTML cannot be read ({problem})", code="damaged_file")
    if problem is not None:
        build.unread("part", f"the page is nested too deeply; what is deeper is missing: {problem}")
    if root is not None:
        Flow(build).write(root)
        if build.length:
            build.add("\n")
