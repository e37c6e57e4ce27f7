"""GET /v1/contexts/{id}/events: how the reading goes, as server-sent events that can be resumed.

Every event has a number; whoever comes back with it in ``Last-Event-ID`` gets what came after it.
The stream ends with the event that says how the reading ended.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from functools import partial

from fastapi import APIRouter, Request
from fastapi.responses import Response

from kvasir.catalog.values import EventRow
from kvasir.service.contexts.replies import context_reply
from kvasir.service.desk import Desk
from kvasir.service.errors import bad_request
from kvasir.service.openapi import error_docs
from kvasir.service.sse import EventStream

_LOOK_S = 0.2
_BATCH = 100
_ENDED = ("completed", "failed", "cancelled", "expired")


def routes(desk: Desk) -> APIRouter:
    """The route over ``desk``."""
    router = APIRouter(tags=["contexts"])

    @router.get(
        "/v1/contexts/{context_id}/events",
        responses={
            200: {"content": {"text/event-stream": {"schema": {}}}},
            **error_docs(400, 401, 403, 404, 500),
        },
        summary="How its reading goes; Last-Event-ID resumes",
    )
    async def events(request: Request, context_id: str) -> Response:
        tenant = desk.caller(request).tenant
        row = await desk.workers.in_catalog(lambda: desk.library.find(tenant, context_id))
        return stream_of(desk, row.id, tenant, after=_last_event(request))

    return router


def stream_of(desk: Desk, context_id: str, tenant: str, *, after: int) -> Response:
    """The events of a context behind number ``after``, as a response."""
    return EventStream(
        _events(desk, context_id, tenant, after), limits=desk.limits, close=lambda: None
    )


async def _events(desk: Desk, context_id: str, tenant: str, after: int) -> AsyncIterator[bytes]:
    library = desk.library
    while True:
        # the row is looked at first: an event that came between the two is then not missed
        row = await desk.workers.in_catalog(
            lambda: library.catalog.contexts.get(tenant, context_id)
        )
        found = await desk.workers.in_catalog(
            partial(library.catalog.events.after, context_id, after, _BATCH)
        )
        for event in found:
            after = event.seq
            yield _wire(event)
        if row is None:
            yield b'event: context.deleted\ndata: {"status": "deleted"}\n\n'
            return
        if len(found) < _BATCH and row.status in _ENDED:
            reply = context_reply(library, row, None)
            yield b"event: context\ndata: " + reply.wire() + b"\n\n"
            return
        if not found:
            await asyncio.sleep(_LOOK_S)


def _wire(event: EventRow) -> bytes:
    data = json.dumps({"type": event.kind, **event.data})
    return f"id: {event.seq}\nevent: {event.kind}\ndata: {data}\n\n".encode()


def _last_event(request: Request) -> int:
    """The number behind which the client wants events: a header, or ``?after=``."""
    value = request.headers.get("last-event-id") or request.query_params.get("after") or "0"
    if not (value.isascii() and value.isdigit()) or len(value) > 15:
        raise bad_request("Last-Event-ID must be the number of an event.", "last-event-id")
    return int(value)
