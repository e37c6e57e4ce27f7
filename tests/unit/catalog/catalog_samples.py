"""Rows with all that is required, for tests that care about a few fields."""

from __future__ import annotations

from typing import Any

from kvasir.catalog.values import ContextRow, FileRow, SectionRow


def file_row(id_: str = "file-1", tenant: str = "ann", **fields: Any) -> FileRow:
    given: dict[str, Any] = {
        "filename": "a.txt",
        "purpose": "user_data",
        "n_bytes": 10,
        "sha256": "0" * 64,
        "media_type": "text/plain",
        "status": "uploaded",
        "created_at": 1,
        **fields,
    }
    return FileRow(id=id_, tenant=tenant, **given)


def context_row(id_: str = "ctx_1", tenant: str = "ann", **fields: Any) -> ContextRow:
    given: dict[str, Any] = {
        "model": "m",
        "fingerprint": "f",
        "status": "queued",
        "origin": "explicit",
        "definition": {"text": "x"},
        "created_at": 1,
        "last_active_at": 1,
        **fields,
    }
    return ContextRow(id=id_, tenant=tenant, **given)


def section(index: int, **fields: Any) -> tuple[SectionRow, bytes]:
    given: dict[str, Any] = {
        "document": 0,
        "title_path": ("Part", f"Chapter {index}"),
        "start": index * 10,
        "end": index * 10 + 10,
        "n_tokens": 5,
        **fields,
    }
    return SectionRow(index=index, **given), bytes([index, 0, 255]) * 5
