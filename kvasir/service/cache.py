"""GET and DELETE /kvasir/cache, POST /kvasir/cache/verify: what is stored of everybody's KV.

Only for the owner of the home, through the socket in it (``service.access``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response

from kvasir.core.tiers import STORED_TIERS, Tier
from kvasir.service.desk import Desk
from kvasir.service.errors import bad_request
from kvasir.service.identity import Identity
from kvasir.service.inventory import inventory, kept_reply, tag_of
from kvasir.service.openapi import error_docs
from kvasir.service.replies import CacheReply, ClearedReply, Reply, VerifiedReply


def routes(desk: Desk, identity: Identity) -> APIRouter:
    """The routes over ``desk``, with the tenants that ``identity`` knows."""
    router = APIRouter(tags=["operation"])
    engine = desk.served.engine

    async def reply(work: Callable[[], Reply]) -> Response:
        """What ``work`` gives; it may wait for the engine and the disk, so it has a thread that
        no text waits for."""
        wire = await run_in_threadpool(lambda: work().wire())
        return Response(wire, media_type="application/json")

    @router.get("/kvasir/cache", **_docs(CacheReply, 401, 403, 500, 503), summary="What is stored")
    async def show() -> Response:
        return await reply(
            lambda: inventory(engine.kept(), engine.status().tiers, identity.tenants())
        )

    @router.post(
        "/kvasir/cache/verify",
        **_docs(VerifiedReply, 401, 403, 415, 500, 503),
        summary="Read all of it again and drop what is damaged",
    )
    async def verify() -> Response:
        def work() -> VerifiedReply:
            tenants = identity.tenants()
            return VerifiedReply(
                damaged=[kept_reply(record, tenants) for record in engine.verify()]
            )

        return await reply(work)

    @router.delete(
        "/kvasir/cache",
        **_docs(ClearedReply, 401, 403, 415, 500, 503),
        openapi_extra={"parameters": _PARAMETERS},
        summary="Forget what is stored, or a part of it",
    )
    async def clear(request: Request) -> Response:
        wanted = _once_each(request)
        tier = _tier(wanted.get("tier"))
        tag = None
        if (tenant := wanted.get("tenant")) is not None:
            tenants = await run_in_threadpool(identity.tenants)
            tag = tag_of(tenant, tenants)
            if tag is None:
                raise bad_request(
                    f"There is no tenant {tenant[:100]!r}. Known are "
                    f"{', '.join(sorted(set(tenants.values())))}; one that is not configured any "
                    "more is named by its tag, as GET /kvasir/cache shows it.",
                    "tenant",
                )

        def forget() -> ClearedReply:
            if tier is None:  # which tokens were said is told by transcripts as well
                desk.served.codec.transcripts.clear(tag)
            return ClearedReply(cleared=engine.clear(tier, tag))

        return await reply(forget)

    return router


_PARAMETERS = [
    {
        "name": "tier",
        "in": "query",
        "schema": {"type": "string", "enum": [tier.value for tier in STORED_TIERS]},
        "description": "Only this tier; without it also what is idle in the pool.",
    },
    {
        "name": "tenant",
        "in": "query",
        "schema": {"type": "string"},
        "description": "Only this tenant: a name, or a tag of 32 hexadecimal digits.",
    },
]


def _docs(reply: type[Reply], *errors: int) -> dict[str, Any]:
    documented: dict[str, Any] = {"responses": {200: {"model": reply}, **error_docs(400, *errors)}}
    documented["responses"] |= error_docs(404)
    documented["responses"][404]["description"] = "Asked otherwise than through the home's socket"
    return documented


def _once_each(request: Request) -> dict[str, str]:
    """The query's parameters. What is misspelt must not be taken for a wish to forget everything:
    raises a 400 for a name that is not known, or that comes twice."""
    known = [parameter["name"] for parameter in _PARAMETERS]
    wanted: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in known:
            raise bad_request(
                f"There is no parameter {name[:100]!r}; there are {', '.join(map(str, known))}.",
                name[:100],
            )
        if name in wanted:
            raise bad_request(f"The parameter {name!r} comes twice.", name)
        wanted[name] = value
    return wanted


def _tier(name: str | None) -> Tier | None:
    if name is None:
        return None
    for tier in STORED_TIERS:
        if tier.value == name:
            return tier
    raise bad_request(
        f"There is no stored tier {name[:100]!r}; there are "
        f"{', '.join(tier.value for tier in STORED_TIERS)}.",
        "tier",
    )
