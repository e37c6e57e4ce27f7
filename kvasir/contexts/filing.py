"""Uploaded files: taken in whole, read by extraction, listed, removed.

Invariant: a file is listed only when its bytes and its text are durable; a file of which nothing
can be read is refused with the reason and leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kvasir.catalog.values import FileRow
from kvasir.contexts.library import Library, new_id
from kvasir.core.errors import CatalogUnavailable, RequestError
from kvasir.documents.extract import extract
from kvasir.documents.media import media_type_of
from kvasir.documents.values import Document, Extraction, Unread

_SNIFFED_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """What came: the bytes lie in ``path``, which belongs to whoever takes the upload in."""

    path: Path
    filename: str
    purpose: str
    n_bytes: int
    sha256: str
    expires_after_s: int | None = None


class NoFile(RequestError):
    """No file of that tenant has that id."""

    def __init__(self, file_id: str) -> None:
        super().__init__(
            f"There is no file {file_id[:100]!r}. GET /v1/files lists yours.",
            param="file_id",
            code="file_not_found",
        )


def take_in(library: Library, tenant: str, upload: Upload) -> FileRow:
    """Read the text of ``upload`` and keep both. Moves the bytes away from where they lie.

    Raises ``UnsupportedFile`` or ``UnreadableFile`` with the reason.
    """
    with upload.path.open("rb") as stream:
        media_type = media_type_of(upload.filename, stream.read(_SNIFFED_BYTES))
    extraction = extract(upload.path, upload.filename)
    now = library.now()
    row = FileRow(
        id=new_id("file-"),
        tenant=tenant,
        filename=upload.filename,
        purpose=upload.purpose,
        n_bytes=upload.n_bytes,
        sha256=upload.sha256,
        media_type=media_type,
        status="processed",
        status_details=None,
        n_chars=extraction.n_chars,
        n_pages=sum(len(d.pages) for d in extraction.documents if d.paged),
        n_documents=len(extraction.documents),
        unread=unread_of(extraction),
        created_at=now,
        expires_at=None if upload.expires_after_s is None else now + upload.expires_after_s,
    )
    try:
        library.store.adopt(upload.path, row.id)
        library.store.put_extracted(row.id, to_json(extraction))
        library.catalog.files.add(row)
    except CatalogUnavailable:
        raise  # it may be listed all the same; if it is not, the next start removes what it has
    except BaseException:
        library.store.remove_file(row.id)
        raise
    return row


def find(library: Library, tenant: str, file_id: str) -> FileRow:
    """The tenant's file. Raises ``NoFile``, in the same words whoever's it is."""
    row = library.catalog.files.get(tenant, file_id)
    if row is None:
        raise NoFile(file_id)
    return row


def extracted(library: Library, row: FileRow) -> Extraction:
    """What ``row`` says. Raises ``StoreBroken``."""
    return from_json(library.store.extracted(row.id))


def text_of(library: Library, row: FileRow) -> str:
    """All text of a file; documents of a collection follow each other under their names."""
    documents = extracted(library, row).documents
    if len(documents) == 1:
        return documents[0].text
    return "\n".join(f"=== {document.name} ===\n{document.text}\n" for document in documents)


def remove(library: Library, row: FileRow) -> None:
    """Forget a file. Contexts made of it keep their text."""
    library.catalog.files.remove(row.tenant, row.id)
    library.store.remove_file(row.id)


def unread_of(extraction: Extraction) -> tuple[dict[str, Any], ...]:
    """Everything of a file that is not in its text."""
    found: list[dict[str, Any]] = [{"document": None, **asdict(u)} for u in extraction.unread]
    for document in extraction.documents:
        found += [{"document": document.name, **asdict(u)} for u in document.unread]
    return tuple(found)


def to_json(extraction: Extraction) -> dict[str, Any]:
    """As numbers, strings, lists and objects."""
    return {
        "documents": [document.to_json() for document in extraction.documents],
        "unread": [asdict(unread) for unread in extraction.unread],
    }


def from_json(data: Mapping[str, Any]) -> Extraction:
    """What ``to_json`` wrote. Raises ``ValueError`` for anything else."""
    return Extraction(
        tuple(Document.from_json(each) for each in data["documents"]),
        tuple(Unread(**each) for each in data["unread"]),
    )
