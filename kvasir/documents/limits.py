"""What the extraction of one file may take: bytes, seconds, counts. Values, and nothing else.

Invariant: every limit ends in an error or in something named as unread, never in a silent cut.
"""

from __future__ import annotations

from dataclasses import dataclass

MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractLimits:
    """Limits of one ``extract``. Those of bytes count UTF-8 of text and unpacked bytes of archives;
    those of seconds are of one process, and ``wall_s`` is of the whole extraction."""

    file_bytes: int = 512 * MIB
    text_bytes: int = 128 * MIB
    expansion: int = 100  # text or unpacked bytes for each byte of the file, …
    expansion_floor_bytes: int = 16 * MIB  # … but this much always
    memory_bytes: int = 1536 * MIB  # address space of the process
    cpu_s: float = 120.0
    unit_cpu_s: float = 30.0  # of one page of a PDF, of one file otherwise
    wall_s: float = 300.0
    members: int = 10_000  # of a collection
    depth: int = 32  # folders within folders
    pages: int = 20_000  # of one document
    headings: int = 20_000  # of one document
    unread: int = 10_000  # rows that say what was not read, of one document or collection
    restarts: int = 4  # after a part that ended the process; it is left out then

    def allowed_bytes(self, file_bytes: int) -> int:
        """Bytes of text, and as many of unpacked archive, that a file of this size may give."""
        expanded = max(self.expansion_floor_bytes, self.expansion * file_bytes)
        return min(self.text_bytes, expanded)
