"""Contexts in the body of chat and completions: which one is asked, and one of sections as a chat.

A context that the model reads whole is a beginning of the prompt and otherwise a chat like any
other. One of sections is swept or focused, and its answer written as a chat's: passages of the
document first, the model's words after them and marked as what they are.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from kvasir.catalog.values import ContextRow
from kvasir.contexts.answering import Answered, Told, answer
from kvasir.contexts.asking import check_usable
from kvasir.contexts.choosing import Question
from kvasir.contexts.outline import unpacked
from kvasir.service.contexts.answers import AnswerReply, AnswerWriter
from kvasir.service.contexts.telling import told_to
from kvasir.service.desk import Desk
from kvasir.service.errors import bad_request
from kvasir.service.replies import (
    CachedByTier,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatDelta,
    ChatMessage,
    ChatReply,
    Finish,
    Head,
    PromptDetails,
    Reply,
    UsageReply,
)
from kvasir.service.schemas import ChatRequest, GenerationFields
from kvasir.service.sse import EventStream, events, while_connected


class SectionedChatReply(ChatReply):
    """A chat's answer on a context of sections, with all that it is made of."""

    context_answer: AnswerReply


async def asked_context(desk: Desk, request: Request, body: GenerationFields) -> ContextRow | None:
    """The context that ``body`` asks, ready to be asked; None where it names none."""
    name = body.context_name(desk.names)
    if name is None:
        return None
    tenant, library = desk.caller(request).tenant, desk.library
    row = await desk.workers.in_catalog(lambda: library.find(tenant, name))
    check_usable(library, row, desk.reader.eta_s(row.id))
    if not row.sectioned:
        await desk.workers.in_catalog(
            lambda: library.catalog.contexts.touch(tenant, row.id, library.now())
        )
    return row


def ids_of(desk: Desk, row: ContextRow) -> list[int]:
    """The token ids of a context that is one part."""
    return unpacked(desk.library.tokens(row)[0])


async def answer_in_sections(
    desk: Desk, request: Request, body: ChatRequest, row: ContextRow
) -> Response:
    """The response to a chat on a context of sections."""
    asked = [message for message in body.messages if message.role == "user"]
    if len(body.messages) != 1 or not asked:
        raise bad_request(
            "This context is longer than the window and is asked section by section, one question "
            "at a time: send the question as the only message. What was said before belongs into "
            "it.",
            "messages",
        )
    if body.choices != 1:
        raise bad_request("A context of sections gives one answer; leave n out.", "n")
    for name, given in (
        ("logprobs", body.logprobs),
        ("stop", body.stop),
        ("stop_token_ids", body.stop_token_ids),
        ("logit_bias", body.logit_bias),
    ):
        if given:
            raise bad_request(
                "A context of sections is asked many short questions, whose quotes are looked for "
                f"in the text; {name!r} cannot be applied to what comes of them. Leave it out.",
                name,
                "unsupported_parameter",
            )
    question = Question(text=asked[0].content)
    writer = AnswerWriter(row)
    head = desk.head("chatcmpl", body.model)
    gone = threading.Event()

    def told() -> Iterator[Told]:
        return answer(desk.library, desk.ranker, row, question, unwanted=gone.is_set)

    if body.streaming:
        chunks = _chunks(desk, body, head, told, writer, gone)
        return EventStream(events(chunks), limits=desk.limits, close=gone.set)
    try:
        reply = await while_connected(
            request.receive, desk.workers.asking(lambda: writer.whole(told()))
        )
    finally:
        gone.set()
    message = ChatMessage(role="assistant", content=written(reply), refusal=None)
    choice = ChatChoice(index=0, message=message, logprobs=None, finish_reason="stop")
    whole = SectionedChatReply(
        **head.model_dump(),
        object="chat.completion",
        choices=[choice],
        usage=_usage(reply),
        context_answer=reply,
    )
    return Response(whole.wire(), media_type="application/json")


def written(reply: AnswerReply) -> str:
    """An answer as text: passages, each with its place, then the model's words."""
    lines = []
    for passage in reply.passages:
        where = [passage.filename]
        if passage.page_label is not None:
            where.append(f"page {passage.page_label}")
        where += passage.title_path
        mark = "" if passage.verified else " [not found in the document]"
        lines.append(f"> {' '.join(passage.text.split())}\n({', '.join(where)}){mark}\n")
    if not lines:
        lines.append("No passage was found.\n")
    lines.append(f"The model's answer: {reply.answer or '(none)'}")
    return "\n".join(lines)


async def _chunks(
    desk: Desk,
    body: ChatRequest,
    head: Head,
    told: Callable[[], Iterator[Told]],
    writer: AnswerWriter,
    gone: threading.Event,
) -> AsyncIterator[Reply]:
    """The chunks of a stream: what happens, where that was asked for, and the answer at its end."""

    def chunk(**fields: Any) -> ChatChunk:
        usage = {"usage": None} if body.wants_usage else {}
        return ChatChunk(**head.model_dump(), object="chat.completion.chunk", **{**usage, **fields})

    reply: AnswerReply | None = None
    async for each in told_to(desk, told, gone):
        kind, data = writer.event(each)
        if isinstance(each, Answered):
            reply = AnswerReply.model_validate(data)
        elif body.return_progress:
            yield chunk(choices=[], context_event={"type": kind, **data})
    if reply is None:
        return
    delta = ChatDelta(role="assistant", content=written(reply))
    parts: tuple[tuple[ChatDelta, Finish | None], ...] = ((delta, None), (ChatDelta(), "stop"))
    for part, reason in parts:
        choice = ChatChunkChoice(index=0, delta=part, logprobs=None, finish_reason=reason)
        yield chunk(choices=[choice])
    if body.wants_usage:
        yield chunk(choices=[], usage=_usage(reply))


def _usage(reply: AnswerReply) -> UsageReply:
    """All prompts of the sections together."""
    usage = reply.usage
    prompt_tokens = usage.computed_tokens + usage.reused_tokens
    return UsageReply(
        prompt_tokens=prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=prompt_tokens + usage.completion_tokens,
        computed_tokens=usage.computed_tokens,
        context_tokens=usage.reused_tokens,
        dropped_tokens=0,
        prompt_tokens_details=PromptDetails(
            cached_tokens=usage.reused_tokens,
            cached_tokens_by_tier=CachedByTier(
                memory=usage.reused_from_memory, disk=usage.reused_from_disk
            ),
        ),
    )
