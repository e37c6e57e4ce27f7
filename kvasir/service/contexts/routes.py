"""/v1/contexts: make, list, look at, change, cancel, fork and delete contexts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from kvasir.catalog.values import UNFINISHED, ContextRow
from kvasir.contexts import creating, keeping
from kvasir.contexts.creating import Wanted
from kvasir.contexts.progress import tell_end
from kvasir.contexts.promise import NoRoom
from kvasir.service import unsupported
from kvasir.service.contexts.bodies import ContextPatch, ContextRequest, ForkRequest
from kvasir.service.contexts.events import stream_of
from kvasir.service.contexts.implicit import implicit_replies
from kvasir.service.contexts.replies import (
    ContextListReply,
    ContextReply,
    DeletedReply,
    ForecastReply,
    SectionListReply,
    context_reply,
    forecast_reply,
    section_reply,
)
from kvasir.service.contexts.wishes import fork_of, wanted_of
from kvasir.service.desk import Desk
from kvasir.service.errors import bad_request
from kvasir.service.idempotency import once
from kvasir.service.listing import page_of
from kvasir.service.openapi import body_docs, docs
from kvasir.service.replies import Reply

_CANCEL_S = 10.0
_STATUSES = ("queued", "in_progress", "completed", "failed", "cancelled", "expired")


def routes(desk: Desk) -> APIRouter:
    """The routes over ``desk``."""
    router = APIRouter(tags=["contexts"])
    shelf = Shelf(desk)

    @router.post(
        "/v1/contexts",
        **body_docs(ContextRequest, ContextReply, _ERRORS),
        summary="Make a context: read documents once and keep them",
    )
    async def create(request: Request) -> Response:
        body = await desk.parse(request, ContextRequest, unsupported.NOTHING)
        tenant = desk.caller(request).tenant

        def wanted() -> Wanted:
            return wanted_of(desk.library, tenant, body)

        if body.dry_run:
            return _json(await desk.workers.apart(lambda: shelf.forecast(wanted())))
        return await shelf.make(request, body, bool(body.stream), wanted)

    @router.get(
        "/v1/contexts",
        **docs(ContextListReply, 404, 500),
        openapi_extra=_LISTING,
        summary="Your contexts",
    )
    async def list_contexts(request: Request) -> Response:
        tenant = desk.caller(request).tenant
        page = page_of(request, extra=("status", "origin"))
        return _json(
            await desk.workers.in_catalog(
                lambda: shelf.page(tenant, page.after, page.limit, page.order, page.extra)
            )
        )

    @router.get("/v1/contexts/{context_id}", **docs(ContextReply, 404, 500), summary="One context")
    async def one(request: Request, context_id: str) -> Response:
        return _json(shelf.reply(await shelf.find(request, context_id)))

    async def change(request: Request, context_id: str) -> Response:
        row = await shelf.find(request, context_id)
        body = await desk.parse(request, ContextPatch, unsupported.NOTHING)
        return _json(shelf.reply(await desk.workers.in_catalog(lambda: shelf.change(row, body))))

    described = body_docs(ContextPatch, ContextReply, _ERRORS)
    summary = "Rename, renew, pin or unpin a context; counts as a use"
    router.patch("/v1/contexts/{context_id}", **described, summary=summary)(change)
    router.post(
        "/v1/contexts/{context_id}", **described, summary=summary, operation_id="change_by_post"
    )(change)

    @router.delete(
        "/v1/contexts/{context_id}",
        **docs(DeletedReply, 404, 409, 415, 500),
        summary="Delete a context, its text and its KV",
    )
    async def delete(request: Request, context_id: str) -> Response:
        row = await shelf.find(request, context_id)
        await desk.workers.in_catalog(lambda: shelf.delete(row))
        return _json(DeletedReply(id=row.id, object="context", deleted=True))

    @router.post(
        "/v1/contexts/{context_id}/cancel",
        **docs(ContextReply, 404, 409, 415, 500),
        summary="Stop reading; what was read is kept, and creating it again goes on",
    )
    async def cancel(request: Request, context_id: str) -> Response:
        row = await shelf.find(request, context_id)
        return _json(shelf.reply(await desk.workers.in_catalog(lambda: shelf.cancel(row))))

    @router.post(
        "/v1/contexts/{context_id}/fork",
        **body_docs(ForkRequest, ContextReply, _ERRORS),
        summary="Make a context that begins with all of this one's text",
    )
    async def fork(request: Request, context_id: str) -> Response:
        parent = await shelf.find(request, context_id)
        body = await desk.parse(request, ForkRequest, unsupported.NOTHING)

        def wanted() -> Wanted:
            return fork_of(desk.library, parent, body)

        return await shelf.make(request, body, bool(body.stream), wanted)

    @router.get(
        "/v1/contexts/{context_id}/sections",
        **docs(SectionListReply, 404, 500),
        summary="Its sections, with their summaries",
    )
    async def sections(request: Request, context_id: str) -> Response:
        row = await shelf.find(request, context_id)
        wire = await desk.workers.in_catalog(lambda: shelf.sections(row))
        return Response(wire, media_type="application/json")

    return router


class Shelf:
    """What the routes do with contexts, on worker threads."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._library = desk.library
        self._reader = desk.reader

    def reply(self, row: ContextRow) -> ContextReply:
        """``row`` as clients see it."""
        return context_reply(self._library, row, self._reader.progress(row.id))

    async def find(self, request: Request, context_id: str) -> ContextRow:
        """The caller's context of that id or name."""
        tenant = self._desk.caller(request).tenant
        return await self._desk.workers.in_catalog(lambda: self._library.find(tenant, context_id))

    async def make(
        self,
        request: Request,
        body: ContextRequest | ForkRequest,
        stream: bool,
        wanted: Callable[[], Wanted],
    ) -> Response:
        """Create what is wanted, once for an idempotency key, and answer with it or its events."""
        after = 0

        def create() -> ContextRow:
            nonlocal after
            row, unread = creating.create(self._library, wanted())
            if unread:
                # how readings before this one ended is not told again
                after = self._library.catalog.events.last(row.id)
                self._reader.take(row)
            return row

        async def make() -> ContextRow:
            return await self._desk.workers.apart(create)

        async def find(context_id: str) -> ContextRow:
            return await self.find(request, context_id)

        def said() -> bytes:
            return body.model_dump_json().encode()

        size = sum(len(item.text or "") for item in body.input)
        row = await once(self._desk, request, said, size, make, lambda made: made.id, find)
        if stream:
            return stream_of(self._desk, row.id, row.tenant, after=after)
        return _json(self.reply(row))

    def sections(self, row: ContextRow) -> bytes:
        """The sections of ``row``, of which there may be very many, as they go over the wire."""
        rows = self._library.catalog.contexts.sections(row.id)
        return SectionListReply(object="list", data=[section_reply(each) for each in rows]).wire()

    def forecast(self, wanted: Wanted) -> ForecastReply:
        """What it would take; nothing is done."""
        plan = creating.plan(self._library, wanted)
        refusal = None
        try:
            creating.check_promise(self._library, wanted, plan.forecast.n_bytes, plan.existing)
        except NoRoom as error:
            refusal = str(error)
        unread = creating.unread_of(wanted, plan.outline)
        return forecast_reply(
            plan.fingerprint,
            plan.existing,
            plan.outline.sectioned,
            plan.forecast,
            refusal,
            unread,
        )

    def page(
        self, tenant: str, after: str | None, limit: int, order: Any, extra: Any
    ) -> ContextListReply:
        """A page of the tenant's contexts. Implicit ones are a list of their own: they have no ids,
        and come and go."""
        if extra.get("origin") == "implicit":
            found = implicit_replies(self._library, tenant)[:limit]
            return ContextListReply(
                object="list", data=found, has_more=False, first_id=None, last_id=None
            )
        if extra.get("origin", "explicit") != "explicit":
            raise bad_request("'origin' must be explicit or implicit.", "origin")
        status = extra.get("status")
        if status is not None and status not in _STATUSES:
            raise bad_request(f"'status' must be one of {', '.join(_STATUSES)}.", "status")
        rows = self._library.catalog.contexts.list(tenant, after, limit + 1, order, status)
        shown = [self.reply(row) for row in rows[:limit]]
        return ContextListReply(
            object="list",
            data=shown,
            has_more=len(rows) > limit,
            first_id=shown[0].id if shown else None,
            last_id=shown[-1].id if shown else None,
        )

    def change(self, row: ContextRow, body: ContextPatch) -> ContextRow:
        """``row`` with the wishes of ``body``. Raises ``NameTaken``."""
        changes: dict[str, Any] = {}
        if body.name is not None:
            changes["name"] = body.name
        if body.metadata is not None:
            changes["metadata"] = dict(body.metadata)
        if body.pinned is not None:
            changes["pinned"] = body.pinned
        if body.expiry is not None:
            changes["expires_anchor"] = body.expiry.anchor
            changes["expires_after_s"] = body.expiry.after_s
        with self._library.turn:
            changed = self._library.catalog.contexts.update(row.tenant, row.id, **changes)
            if changed is None:
                return self._library.find(row.tenant, row.id)  # says that it is not there
            return creating.used(self._library, changed)

    def cancel(self, row: ContextRow) -> ContextRow:
        """End the reading of ``row``."""
        with self._reader.stopped(row, _CANCEL_S), self._library.turn:
            row = self._library.find(row.tenant, row.id)
            if row.status in UNFINISHED:  # though nobody reads it
                tell_end(self._library, row, "cancelled", None)
            return self._library.find(row.tenant, row.id)

    def delete(self, row: ContextRow) -> None:
        """Forget ``row``, after its reading has ended."""
        with self._reader.stopped(row, _CANCEL_S):
            keeping.delete(self._library, row)


def _json(reply: Reply) -> Response:
    return Response(reply.wire(), media_type="application/json")


_ERRORS = (400, 401, 403, 404, 408, 409, 410, 413, 415, 422, 500, 503, 507)
_LISTING = {
    "parameters": [
        {"name": "after", "in": "query", "schema": {"type": "string", "maxLength": 128}},
        {
            "name": "limit",
            "in": "query",
            "schema": {"type": "integer", "minimum": 1, "maximum": 1000},
        },
        {"name": "order", "in": "query", "schema": {"type": "string", "enum": ["asc", "desc"]}},
        {"name": "status", "in": "query", "schema": {"type": "string", "enum": list(_STATUSES)}},
        {
            "name": "origin",
            "in": "query",
            "schema": {"type": "string", "enum": ["explicit", "implicit"]},
            "description": "implicit: texts that are kept because they were asked about.",
        },
    ]
}
