"""CSV and TSV: kept as they are. Where the first row names the columns it is the one heading.

Invariant: the text is the file's; nothing is quoted anew or put in order.
"""

from __future__ import annotations

import csv

from kvasir.documents.building import Builder
from kvasir.documents.media import TSV

_SEPARATORS = ",;\t|"
_LOOKED_AT_CHARS = 64 * 1024  # of the first row


def read(text: str, build: Builder) -> None:
    """Fill ``build`` with ``text``, which has ``\\n`` line ends."""
    build.add(text)
    first = text[: text.find("\n") if "\n" in text else len(text)][:_LOOKED_AT_CHARS]
    separator = "\t" if build.media_type == TSV else max(_SEPARATORS, key=first.count)
    columns = _columns(first, separator)
    if columns:
        build.heading(1, ", ".join(columns), 0)


def _columns(row: str, separator: str) -> list[str]:
    """The names in ``row``, or none where it looks like data: an empty cell, a number, a repeat."""
    try:
        cells = [cell.strip() for cell in next(csv.reader([row], delimiter=separator), [])]
    except csv.Error:
        return []
    named = all(cell and not _is_number(cell) for cell in cells)
    return cells if named and len(set(cells)) == len(cells) else []


def _is_number(cell: str) -> bool:
    try:
        float(cell.replace(",", "."))
    except ValueError:
        return False
    return True
