"""/v1/admin/keys and /v1/admin/tenants: who may use the server, for admins (``service.access``)."""

from __future__ import annotations

import time
from collections.abc import Callable

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response

from kvasir.contexts import filing, keeping
from kvasir.core.realm import namespace_tag
from kvasir.service import accounts, unsupported
from kvasir.service.accounts import (
    AccountReply,
    AccountsReply,
    KeyReply,
    KeysReply,
    NewKeyReply,
    NewKeyRequest,
    NewTenantRequest,
    RemovedReply,
    TenantChangeRequest,
)
from kvasir.service.desk import Desk
from kvasir.service.errors import bad_request
from kvasir.service.identity import Identity
from kvasir.service.openapi import body_docs, docs
from kvasir.service.replies import Reply

_PAGE = 100
_ENDS_WITHIN_S = 60.0  # the reading of a context, once it is cancelled
_TENANT = {
    "name": "tenant",
    "in": "query",
    "schema": {"type": "string"},
    "description": "Only the keys of this tenant.",
}
_ERRORS = (400, 401, 403, 404, 408, 409, 413, 415, 500)


def routes(desk: Desk, identity: Identity) -> APIRouter:
    """The routes over ``desk``; ``identity`` is told of every change."""
    router = APIRouter(tags=["administration"])
    catalog = desk.served.catalog

    async def answer(work: Callable[[], Reply]) -> Response:
        reply = await run_in_threadpool(work)
        identity.forget()  # what was changed holds at once
        return Response(reply.wire(), media_type="application/json")

    @router.get(
        "/v1/admin/keys",
        **docs(KeysReply, 404, 500),
        summary="All keys, without the keys themselves",
        openapi_extra={"parameters": [_TENANT]},
    )
    async def list_keys(request: Request) -> Response:
        given = request.query_params.multi_items()
        if unknown := [name for name, _ in given if name != "tenant"]:
            raise bad_request(
                f"There is no parameter {unknown[0][:100]!r}; there is tenant.", unknown[0][:100]
            )
        tenant = request.query_params.get("tenant")
        reply = await run_in_threadpool(accounts.keys, catalog, tenant)
        return Response(reply.wire(), media_type="application/json")

    @router.post(
        "/v1/admin/keys",
        **body_docs(NewKeyRequest, NewKeyReply, _ERRORS),
        summary="Make a key; it is shown this once",
    )
    async def create_key(request: Request) -> Response:
        body = await desk.parse(request, NewKeyRequest, unsupported.NOTHING)
        return await answer(lambda: accounts.create_key(catalog, body, int(time.time())))

    @router.delete(
        "/v1/admin/keys/{key_id}", **docs(KeyReply, 404, 415, 500), summary="Revoke a key"
    )
    async def revoke_key(key_id: str) -> Response:
        return await answer(lambda: accounts.revoke_key(catalog, key_id, int(time.time())))

    @router.get("/v1/admin/tenants", **docs(AccountsReply, 404, 500), summary="All tenants")
    async def list_tenants() -> Response:
        reply = await run_in_threadpool(accounts.tenants, catalog)
        return Response(reply.wire(), media_type="application/json")

    @router.post(
        "/v1/admin/tenants",
        **body_docs(NewTenantRequest, AccountReply, _ERRORS),
        summary="Make a tenant",
    )
    async def create_tenant(request: Request) -> Response:
        body = await desk.parse(request, NewTenantRequest, unsupported.NOTHING)
        return await answer(lambda: accounts.create_tenant(catalog, body.name, int(time.time())))

    @router.patch(
        "/v1/admin/tenants/{name}",
        **body_docs(TenantChangeRequest, AccountReply, _ERRORS),
        summary="Let a tenant's keys admit nobody, or admit again",
    )
    async def change_tenant(request: Request, name: str) -> Response:
        body = await desk.parse(request, TenantChangeRequest, unsupported.NOTHING)
        now = int(time.time())
        return await answer(
            lambda: accounts.set_disabled(catalog, name, now, disabled=body.disabled)
        )

    @router.delete(
        "/v1/admin/tenants/{name}",
        **docs(RemovedReply, 404, 409, 415, 500, 503),
        summary="Remove a tenant with its keys, files, contexts and KV",
    )
    async def remove_tenant(name: str) -> Response:
        now = int(time.time())
        # nobody comes in by its keys any more while its things are removed
        await answer(lambda: accounts.set_disabled(catalog, name, now, disabled=True))
        return await answer(lambda: _remove(desk, identity, name))

    return router


def _remove(desk: Desk, identity: Identity, name: str) -> RemovedReply:
    """Remove all that is ``name``'s. Takes as long as its contexts take to stop being read."""
    library, catalog = desk.library, desk.served.catalog
    while contexts := catalog.contexts.list(name, limit=_PAGE):
        for context in contexts:
            with desk.reader.stopped(context, _ENDS_WITHIN_S):
                keeping.delete(library, context)
    while files := catalog.files.list(name, limit=_PAGE):
        for file in files:
            filing.remove(library, file)
    catalog.tenants.remove(name)
    tag = namespace_tag(identity.namespace_of(name))
    desk.served.codec.transcripts.clear(tag)
    desk.served.engine.clear(None, tag)
    return RemovedReply(name=name, object="tenant", deleted=True)
