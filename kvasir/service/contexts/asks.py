"""POST /v1/contexts/{id}/ask and /search: questions on a context, whole or in sections."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from kvasir.catalog.values import ContextRow
from kvasir.contexts.answering import Told, answer
from kvasir.contexts.asking import check_usable
from kvasir.contexts.choosing import Question
from kvasir.core.errors import KvasirError
from kvasir.service import unsupported
from kvasir.service.contexts.answers import (
    AnswerReply,
    AnswerWriter,
    SearchReply,
    search_reply,
)
from kvasir.service.contexts.bodies import AskRequest, SearchRequest
from kvasir.service.contexts.telling import told_to
from kvasir.service.desk import Desk
from kvasir.service.errors import from_kvasir, internal_error
from kvasir.service.openapi import body_docs
from kvasir.service.sse import DONE, EventStream, while_connected

log = logging.getLogger(__name__)

_ERRORS = (400, 401, 403, 404, 408, 409, 410, 413, 415, 429, 500, 503)


def routes(desk: Desk) -> APIRouter:
    """The routes over ``desk``."""
    router = APIRouter(tags=["contexts"])
    library, ranker = desk.library, desk.ranker

    async def usable(request: Request, context_id: str) -> ContextRow:
        tenant = desk.caller(request).tenant
        row = await desk.workers.in_catalog(lambda: library.find(tenant, context_id))
        check_usable(library, row, desk.reader.eta_s(row.id))
        return row

    documented = body_docs(AskRequest, AnswerReply, _ERRORS)
    documented["responses"][200]["content"] = {
        "text/event-stream": {
            "schema": {
                "description": "With `stream: true`: the events begun, section (one for each that "
                "is asked), joining, answer, each with its data as JSON; a failure is an event "
                "error; `data: [DONE]` last."
            }
        }
    }

    @router.post(
        "/v1/contexts/{context_id}/ask",
        **documented,
        summary="Ask a context; one that is longer than the window by sweep or focus",
    )
    async def ask(request: Request, context_id: str) -> Response:
        row = await usable(request, context_id)
        body = await desk.parse(request, AskRequest, unsupported.NOTHING)
        question = Question(
            text=body.question,
            wish=body.mode,
            n_sections=body.sections,
            n_passages=body.max_passages,
            only=tuple(dict.fromkeys(body.only_sections)),
        )
        writer = AnswerWriter(row)
        gone = threading.Event()

        def told() -> Iterator[Told]:
            return answer(library, ranker, row, question, unwanted=gone.is_set)

        if body.stream:
            events = _events(desk, told, writer, gone)
            return EventStream(events, limits=desk.limits, close=gone.set)
        try:
            reply = await while_connected(
                request.receive, desk.workers.asking(lambda: writer.whole(told()))
            )
        finally:
            gone.set()
        return Response(reply.wire(), media_type="application/json")

    @router.post(
        "/v1/contexts/{context_id}/search",
        **body_docs(SearchRequest, SearchReply, _ERRORS),
        summary="The passages of a context that go best with a query; the model is not asked",
    )
    async def search(request: Request, context_id: str) -> Response:
        tenant = desk.caller(request).tenant
        row = await desk.workers.in_catalog(lambda: library.find(tenant, context_id))
        body = await desk.parse(request, SearchRequest, unsupported.NOTHING)
        found = await desk.workers.run(
            row.n_chars, lambda: ranker.search(row, body.query, body.max_num_results)
        )
        return Response(search_reply(row, body.query, found).wire(), media_type="application/json")

    return router


async def _events(
    desk: Desk,
    told: Callable[[], Iterator[Told]],
    writer: AnswerWriter,
    gone: threading.Event,
) -> AsyncIterator[bytes]:
    """What ``told`` says, on the wire as it comes."""
    try:
        async for each in told_to(desk, told, gone):
            yield _wire(*writer.event(each))
    except KvasirError as error:
        yield _wire("error", from_kvasir(error).body())
    except Exception:
        log.exception("asking a context failed")
        yield _wire("error", internal_error().body())
    yield DONE


def _wire(kind: str, data: Mapping[str, Any]) -> bytes:
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n".encode()
