"""GET /health, from the age of the engine's last step and not from the fact that HTTP answers;
GET /metrics."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response

from kvasir.core.ports import EngineStatus
from kvasir.service.desk import Desk
from kvasir.service.metrics import CONTENT_TYPE
from kvasir.service.openapi import error_docs
from kvasir.service.replies import HealthReply


def routes(desk: Desk) -> APIRouter:
    """The routes over ``desk``."""
    router = APIRouter(tags=["operation"])

    @router.get(
        "/health",
        responses={
            200: {"model": HealthReply},
            503: {"model": HealthReply, "description": "Dead, stalled or shutting down"},
            **error_docs(400, 403),
        },
        summary="Whether the engine computes",
    )
    async def health() -> Response:
        status = desk.served.engine.status()
        verdict = judge(status, desk.limits.stalled_step_s)
        reply = HealthReply(
            status=verdict,
            last_step_age_s=round(status.last_step_age_s, 3),
            running=status.running,
            waiting=status.waiting,
            degraded=[tier.tier.value for tier in status.tiers if tier.failure],
        )
        return Response(
            reply.wire(),
            status_code=200 if verdict == "ok" else 503,
            media_type="application/json",
        )

    @router.get(
        "/metrics",
        responses={
            200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
            **error_docs(400, 401, 403),
        },
        response_class=Response,
        summary="Prometheus metrics",
    )
    async def metrics(request: Request) -> Response:
        desk.caller(request)
        return Response(desk.metrics.page(), headers={"content-type": CONTENT_TYPE})

    return router


def judge(
    status: EngineStatus, stalled_step_s: float
) -> Literal["ok", "stopping", "stalled", "dead"]:
    """The engine's state in a word; only "ok" takes requests."""
    if not status.alive:
        return "dead"
    if status.stopping:
        return "stopping"
    return "stalled" if status.last_step_age_s > stalled_step_s else "ok"
