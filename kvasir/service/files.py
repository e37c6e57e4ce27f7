"""/v1/files: OpenAI's Files API. An upload is answered when its text is read and all is durable."""

from __future__ import annotations

import re
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response
from pydantic import Field

from kvasir.catalog.values import FileRow
from kvasir.contexts import filing
from kvasir.contexts.filing import Upload
from kvasir.service.contexts.replies import DeletedReply, UnreadReply, unread_replies
from kvasir.service.desk import Desk
from kvasir.service.errors import bad_request
from kvasir.service.listing import page_of
from kvasir.service.openapi import docs, error_docs
from kvasir.service.replies import Reply
from kvasir.service.upload import MAX_FIELD_BYTES, received_form

PURPOSES = (
    "assistants", "batch", "evals", "file-extract", "fine-tune", "user_data", "vision",
)  # fmt: skip
_MOST_SECONDS = 10 * 365 * 24 * 3600


class FileReply(Reply):
    """An uploaded file."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: str
    status_details: str | None
    media_type: str
    sha256: str
    chars: int = Field(description="Of its text.")
    pages: int = Field(description="0 where it has none of its own.")
    documents: int = Field(description="More than one in a collection.")
    unread: list[UnreadReply] = Field(description="What of it could not be read, and why.")


class FileListReply(Reply):
    """A page of files; `last_id` is the `after` of the next one."""

    object: Literal["list"]
    data: list[FileReply]
    has_more: bool
    first_id: str | None
    last_id: str | None


def routes(desk: Desk) -> APIRouter:
    """The routes over ``desk``."""
    router = APIRouter(tags=["files"])
    library, workers = desk.library, desk.workers

    @router.post("/v1/files", **_upload_docs(), summary="Upload a file and read its text")
    async def upload(request: Request) -> Response:
        tenant = desk.caller(request).tenant
        cap_bytes = desk.config.max_file_mib * 2**20
        path = library.store.part_path()
        async with received_form(request, path, cap_bytes) as form:
            wanted = Upload(
                path=form.path,
                filename=form.filename,
                purpose=_purpose(form.fields.get("purpose", "user_data")),
                n_bytes=form.n_bytes,
                sha256=form.sha256,
                expires_after_s=_expires(form.fields),
            )
            row = await workers.apart(lambda: filing.take_in(library, tenant, wanted))
        return _json(file_reply(row))

    @router.get(
        "/v1/files", **docs(FileListReply, 404, 500), summary="Your files", openapi_extra=_LISTING
    )
    async def list_files(request: Request) -> Response:
        tenant = desk.caller(request).tenant
        page = page_of(request, extra=("purpose",))
        purpose = page.extra.get("purpose")
        if purpose is not None:
            _purpose(purpose)
        rows = await workers.in_catalog(
            lambda: library.catalog.files.list(
                tenant, page.after, page.limit + 1, page.order, purpose
            ),
        )
        shown = [file_reply(row) for row in rows[: page.limit]]
        reply = FileListReply(
            object="list",
            data=shown,
            has_more=len(rows) > page.limit,
            first_id=shown[0].id if shown else None,
            last_id=shown[-1].id if shown else None,
        )
        return _json(reply)

    @router.get("/v1/files/{file_id}", **docs(FileReply, 404, 500), summary="One file")
    async def one(request: Request, file_id: str) -> Response:
        return _json(file_reply(await _find(desk, request, file_id)))

    @router.get(
        "/v1/files/{file_id}/content",
        responses={200: {"content": {"text/plain": {}}}, **error_docs(400, 401, 403, 404, 500)},
        summary="The text that was read from it",
    )
    async def content(request: Request, file_id: str) -> Response:
        row = await _find(desk, request, file_id)
        text = await workers.run(row.n_chars, lambda: filing.text_of(library, row).encode())
        return PlainTextResponse(text)

    @router.delete(
        "/v1/files/{file_id}",
        **docs(DeletedReply, 404, 415, 500),
        summary="Delete a file; contexts made of it stay",
    )
    async def delete(request: Request, file_id: str) -> Response:
        row = await _find(desk, request, file_id)
        await workers.in_catalog(lambda: filing.remove(library, row))
        return _json(DeletedReply(id=row.id, object="file", deleted=True))

    return router


def file_reply(row: FileRow) -> FileReply:
    """``row`` as clients see it."""
    return FileReply(
        id=row.id,
        object="file",
        bytes=row.n_bytes,
        created_at=row.created_at,
        expires_at=row.expires_at,
        filename=row.filename,
        purpose=row.purpose,
        status=row.status,
        status_details=row.status_details,
        media_type=row.media_type,
        sha256=row.sha256,
        chars=row.n_chars,
        pages=row.n_pages,
        documents=row.n_documents,
        unread=unread_replies(row.unread),
    )


async def _find(desk: Desk, request: Request, file_id: str) -> FileRow:
    tenant = desk.caller(request).tenant
    return await desk.workers.in_catalog(lambda: filing.find(desk.library, tenant, file_id))


def _json(reply: Reply) -> Response:
    return Response(reply.wire(), media_type="application/json")


def _purpose(value: str) -> str:
    if value not in PURPOSES:
        raise bad_request(f"'purpose' must be one of {', '.join(PURPOSES)}.", "purpose")
    return value


def _expires(fields: dict[str, str]) -> int | None:
    """The form's ``expires_after[anchor]`` and ``expires_after[seconds]``, as OpenAI has them."""
    value = fields.get("expires_after[seconds]")
    if value is None:
        return None
    if fields.get("expires_after[anchor]", "created_at") != "created_at":
        raise bad_request("A file expires after its creation: the anchor is created_at.",
                          "expires_after[anchor]")  # fmt: skip
    if not re.fullmatch(r"\d{1,9}", value) or not 3600 <= int(value) <= _MOST_SECONDS:
        raise bad_request(
            f"It must be a whole number of seconds from 3600 to {_MOST_SECONDS}.",
            "expires_after[seconds]",
        )
    return int(value)


_LISTING = {
    "parameters": [
        {"name": "after", "in": "query", "schema": {"type": "string", "maxLength": 128}},
        {
            "name": "limit",
            "in": "query",
            "schema": {"type": "integer", "minimum": 1, "maximum": 1000},
        },
        {"name": "order", "in": "query", "schema": {"type": "string", "enum": ["asc", "desc"]}},
        {"name": "purpose", "in": "query", "schema": {"type": "string", "enum": list(PURPOSES)}},
    ]
}


def _upload_docs() -> dict[str, Any]:
    schema = {
        "type": "object",
        "required": ["file"],
        "properties": {
            "file": {"type": "string", "format": "binary"},
            "purpose": {"type": "string", "enum": list(PURPOSES)},
            "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
            "expires_after[seconds]": {
                "type": "string",
                "pattern": r"^\d{1,9}$",
                "maxLength": MAX_FIELD_BYTES,
            },
        },
    }
    return {
        "responses": {
            200: {"model": FileReply},
            **error_docs(400, 401, 403, 408, 413, 415, 422, 500, 507),
        },
        "openapi_extra": {
            "requestBody": {
                "required": True,
                "content": {"multipart/form-data": {"schema": schema}},
            }
        },
    }
