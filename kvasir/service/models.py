"""GET /v1/models: the names under which requests may ask for the model."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from kvasir.service.desk import Desk
from kvasir.service.openapi import docs
from kvasir.service.replies import ModelReply, ModelsReply


def routes(desk: Desk) -> APIRouter:
    """The routes over ``desk``."""
    router = APIRouter(tags=["models"])

    def model(name: str) -> ModelReply:
        card = desk.served.card
        return ModelReply(
            id=name,
            object="model",
            created=desk.opened,
            owned_by="kvasir",
            root=card.name,
            max_model_len=card.window,
        )

    @router.get("/v1/models", **docs(ModelsReply), summary="All names of the served model")
    async def list_models(request: Request) -> Response:
        desk.caller(request)
        card = desk.served.card
        names = [model(name) for name in (card.name, *card.aliases)]
        reply = ModelsReply(object="list", data=names)
        return Response(reply.wire(), media_type="application/json")

    @router.get("/v1/models/{name:path}", **docs(ModelReply, 404), summary="One name")
    async def one_model(request: Request, name: str) -> Response:
        desk.caller(request)
        desk.check_name(name)
        return Response(model(name).wire(), media_type="application/json")

    return router
