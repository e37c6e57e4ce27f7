"""XML parts within DOCX and EPUB files, parsed without ever resolving what they name.

Invariant: no entity is expanded, no DTD or file fetched, and depth stays within libxml2's limit.
"""

from __future__ import annotations

from lxml import etree

from kvasir.core.errors import UnreadableFile


def parse_xml(data: bytes, what: str) -> etree._Element:
    """The root of the XML in ``data``. Raises ``UnreadableFile`` that names ``what`` it is."""
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, dtd_validation=False,
        huge_tree=False, remove_comments=True, remove_pis=True,
    )  # fmt: skip
    try:
        return etree.fromstring(data, parser)
    except (etree.LxmlError, ValueError) as error:
        raise UnreadableFile(
            f"{what} is not sound XML ({str(error)[:200]}); save the file again",
            code="damaged_file",
        ) from error
