"""The way of every generated answer: submit, wait for the verdict, then one body or a stream.

However it ends, the feed is closed, and with it whatever the engine still computes for it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from fastapi import Request
from fastapi.responses import Response

from kvasir.service.desk import Desk
from kvasir.service.errors import refused
from kvasir.service.generation import Answers, Item, generate
from kvasir.service.replies import Reply
from kvasir.service.sse import EventStream, events, while_connected
from kvasir.service.stream import Feed


class Form(Protocol):
    """How an API writes answers: as chat or as plain completions."""

    answers: Answers

    async def whole(self, items: AsyncIterator[Item]) -> Reply:
        """One body, when all items have come."""
        ...

    def chunks(self, items: AsyncIterator[Item]) -> AsyncIterator[Reply]:
        """The chunks of a stream, as items come."""
        ...


async def respond(
    desk: Desk, request: Request, form: Form, *, streaming: bool, prompt_param: str
) -> Response:
    """The response to ``request``. Raises ``ApiError`` for what is known before the first byte.

    A stream's headers wait a moment for the engine's verdict, so that a refusal is a status with
    Retry-After and not an event; what is refused later is an event.
    """
    feed = Feed(desk.served.engine, max_unread=desk.limits.unread_events)
    items = generate(feed, form.answers, desk.metrics)

    async def submit() -> None:
        for engine_request in form.answers.requests:
            await feed.submit(engine_request, desk.workers)

    try:
        await while_connected(request.receive, submit())
        if not streaming:
            reply = await while_connected(request.receive, form.whole(items))
            feed.close()
            return Response(reply.wire(), media_type="application/json")
        verdict = await while_connected(request.receive, feed.verdict(desk.limits.verdict_s))
        if verdict is not None:
            raise refused(verdict, prompt_param)
    except BaseException:
        feed.close()
        raise
    return EventStream(events(form.chunks(items)), limits=desk.limits, close=feed.close)
