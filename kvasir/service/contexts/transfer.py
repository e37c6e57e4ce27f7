"""GET /v1/contexts/{id}/export and POST /v1/contexts/import: a context as one signed file."""

from __future__ import annotations

import re
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse

from kvasir.catalog.values import ContextRow
from kvasir.contexts import creating, portable
from kvasir.contexts.creating import Wanted
from kvasir.contexts.portable import PortableFile
from kvasir.core.errors import NameTaken
from kvasir.service.contexts.replies import ContextReply, context_reply
from kvasir.service.desk import Desk
from kvasir.service.openapi import error_docs
from kvasir.service.upload import received_body

_MOST_NAME_CHARS = 128


def routes(desk: Desk) -> APIRouter:
    """The routes over ``desk``."""
    router = APIRouter(tags=["contexts"])
    library = desk.library

    @router.get(
        "/v1/contexts/{context_id}/export",
        responses={
            200: {"content": {"application/octet-stream": {}}},
            **error_docs(400, 401, 403, 404, 409, 500),
        },
        summary="The context as one file, with its text and its KV, signed by this server",
    )
    async def export(request: Request, context_id: str) -> Response:
        tenant = desk.caller(request).tenant
        row = await desk.workers.in_catalog(lambda: library.find(tenant, context_id))
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", row.name or row.id).strip("-.") or row.id
        pieces = await desk.workers.apart(lambda: portable.export(library, row, desk.signing_key))
        return StreamingResponse(
            pieces,
            media_type="application/octet-stream",
            headers={"content-disposition": f'attachment; filename="{stem}.kvasir"'},
        )

    @router.post("/v1/contexts/import", **_import_docs(), summary="Take in an exported context")
    async def take_in(request: Request) -> Response:
        tenant = desk.caller(request).tenant
        cap_bytes = desk.config.max_import_gib * 2**30
        path = library.store.part_path()
        async with received_body(request, path, int(cap_bytes)):
            row = await desk.workers.apart(lambda: _take_in(desk, tenant, path))
        reply = context_reply(library, row, desk.reader.progress(row.id))
        return Response(reply.wire(), media_type="application/json")

    return router


def _take_in(desk: Desk, tenant: str, path: Any) -> ContextRow:
    """The context in the file at ``path``: made as any other, and what KV of it is trusted is
    found by its reading."""
    library = desk.library
    with PortableFile(path) as file:
        definition = file.definition()
        file.check()
        fingerprint = definition.fingerprint(library.card.realm)
        known = library.catalog.contexts.by_fingerprint(tenant, fingerprint)
        wanted = Wanted(
            tenant=tenant,
            definition=definition,
            # one that is there already keeps the name that its owner gave it
            name=None if known is not None else _free_name(desk, tenant, file.about.get("name")),
            summaries=bool(file.about.get("summaries")),
            keep="text" if file.about.get("keep") == "text" else "kv",
            metadata=_metadata(file.about.get("metadata")),
            origin="imported",
        )
        row, unread = creating.create(library, wanted)
        if unread:
            try:
                portable.take_kv(library, tenant, file, desk.trusts)
            finally:
                desk.reader.take(row)  # what did not come is computed
    return row


def _free_name(desk: Desk, tenant: str, name: object) -> str | None:
    """The exported name, where the importer has none such; a number behind it otherwise."""
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        return None
    name = name.strip()[:_MOST_NAME_CHARS]
    if name.startswith(("ctx_", "file-")):
        return None
    contexts = desk.library.catalog.contexts
    for number in range(1, 100):
        tried = name if number == 1 else f"{name[: _MOST_NAME_CHARS - 4]} {number}"
        if contexts.by_name(tenant, tried) is None:
            return tried
    raise NameTaken(f"You have many contexts named {name!r}; rename or delete some.")


def _metadata(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        return {}
    pairs = list(value.items())[:16]
    return {_writable(key, 64): _writable(each, 512) for key, each in pairs}


def _writable(value: object, most_chars: int) -> str:
    """``value`` as text without halves of surrogate pairs, which JSON may spell and no answer could
    say again."""
    return str(value)[:most_chars].encode("utf-8", "replace").decode("utf-8")


def _import_docs() -> dict[str, Any]:
    return {
        "responses": {
            200: {"model": ContextReply},
            **error_docs(400, 401, 403, 408, 409, 413, 415, 422, 500, 507),
        },
        "openapi_extra": {
            "requestBody": {
                "required": True,
                "content": {
                    "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}
                },
            }
        },
    }
