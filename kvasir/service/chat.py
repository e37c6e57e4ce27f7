"""POST /v1/chat/completions."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from kvasir.catalog.values import ContextRow
from kvasir.contexts.asking import Prompt, prompt_on_whole
from kvasir.core.errors import TemplateError
from kvasir.core.requests import Request as EngineRequest
from kvasir.service import unsupported
from kvasir.service.answer import respond
from kvasir.service.contexts.chat import answer_in_sections, asked_context
from kvasir.service.desk import Desk
from kvasir.service.generation import Answers, Ended, Item, Piece, Reading
from kvasir.service.identity import Caller
from kvasir.service.logprobs import chat_logprobs
from kvasir.service.openapi import generation_docs
from kvasir.service.replies import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
    ChatReply,
    Head,
    ProgressReply,
)
from kvasir.service.sampling import sampling_of, stop_tokens_of
from kvasir.service.schemas import ChatRequest, Message
from kvasir.service.usage import costs_of, progress_of
from kvasir.text.codec import TextCodec


def routes(desk: Desk) -> APIRouter:
    """The route over ``desk``."""
    router = APIRouter(tags=["generation"])

    @router.post(
        "/v1/chat/completions",
        **generation_docs(ChatRequest, ChatReply, ChatChunk),
        summary="Answer a conversation",
    )
    async def chat_completions(request: Request) -> Response:
        body = await desk.parse(request, ChatRequest, unsupported.CHAT)
        context = await asked_context(desk, request, body)
        if context is not None and context.sectioned:
            return await answer_in_sections(desk, request, body, context)
        form = await _prepare(desk, desk.caller(request), body, context)
        return await respond(desk, request, form, streaming=body.streaming, prompt_param="messages")

    return router


def render(codec: TextCodec, messages: list[dict[str, str]], *, generation_prompt: bool) -> str:
    """The conversation as the model's template writes it. Raises ``TemplateError``."""
    if codec.template is None:
        raise TemplateError(
            "This model has no chat template, so it cannot answer a conversation. Send the text to "
            "/v1/completions instead."
        )
    return codec.template.render(messages, generation_prompt=generation_prompt)


def plain(messages: list[Message]) -> list[dict[str, str]]:
    """Messages as templates know them, where a developer is called system."""
    return [
        {"role": "system" if m.role == "developer" else m.role, "content": m.content}
        for m in messages
    ]


async def _prepare(
    desk: Desk, caller: Caller, body: ChatRequest, context: ContextRow | None
) -> ChatForm:
    """Everything up to the engine: template, tokens, limits. Raises ``KvasirError``."""
    messages = plain(body.messages)
    top_logprobs = (body.top_logprobs or 0) if body.logprobs else None
    sampling = sampling_of(desk, body, top_logprobs)
    size = sum(len(message.content) for message in body.messages)
    prompt = await desk.workers.run(size, lambda: _prompt(desk, caller, messages, context))
    head = desk.head("chatcmpl", body.model)
    wanted = body.max_completion_tokens or body.max_tokens
    engine_request = EngineRequest(
        id=head.id,
        namespace=caller.namespace,
        tokens=prompt.ids,
        max_tokens=desk.room(len(prompt.ids), wanted, desk.served.card.window, "messages"),
        sampling=sampling,
        stop_token_ids=stop_tokens_of(desk, body),
        n=body.choices,
    )
    answers = Answers(
        desk.served.codec.tokenizer,
        [engine_request],
        body.stop,
        prompt_param="messages",
        context_tokens=prompt.n_context,
    )
    return ChatForm(desk, body, head, answers, prompt)


def _prompt(
    desk: Desk, caller: Caller, messages: list[dict[str, str]], context: ContextRow | None
) -> Prompt:
    """The tokens of ``messages``, behind the context's where there is one."""
    if context is not None:
        return prompt_on_whole(desk.library, context, messages)
    codec = desk.served.codec
    rendered = render(codec, messages, generation_prompt=True)
    ids = codec.transcripts.encode(caller.namespace, messages, rendered, codec.tokenizer)
    return Prompt(ids, 0, rendered, tuple(messages))


class ChatForm:
    """Writes answers as Chat Completions; remembers the first one's tokens for the follow-up."""

    def __init__(
        self,
        desk: Desk,
        body: ChatRequest,
        head: Head,
        answers: Answers,
        prompt: Prompt,
    ) -> None:
        self.answers = answers
        self._desk = desk
        self._body = body
        self._head = head.model_dump()
        self._prompt = prompt
        self._began_s = time.monotonic()

    async def whole(self, items: AsyncIterator[Item]) -> ChatReply:
        """One body, when all items have come."""
        async for item in items:
            if isinstance(item, Ended):
                await self._remember(item)
        codec = self._desk.served.codec
        choices = [
            ChatChoice(
                index=choice.index,
                message=ChatMessage(role="assistant", content=choice.text, refusal=None),
                logprobs=chat_logprobs(codec.tokenizer, choice.scores)
                if self._body.logprobs
                else None,
                finish_reason=choice.reason or "stop",
            )
            for choice in self.answers.choices
        ]
        return ChatReply(
            **self._head, object="chat.completion", choices=choices, **costs_of(self.answers)
        )

    async def chunks(self, items: AsyncIterator[Item]) -> AsyncIterator[ChatChunk]:
        """The chunks of a stream, as items come."""
        begun: set[int] = set()
        async for item in items:
            match item:
                case Piece():
                    yield self._chunk(item.index, self._delta(item, begun), self._scores(item))
                case Ended():
                    await self._remember(item)
                    if item.index not in begun:  # an empty answer
                        empty = Piece(item.index, "", ())
                        yield self._chunk(item.index, self._delta(empty, begun), None)
                    yield self._chunk(item.index, ChatDelta(), None, item)
                case Reading() if self._body.return_progress:
                    yield self._note(progress_of(item, self._began_s))
        if self._body.wants_usage:
            yield ChatChunk(
                **self._head,
                object="chat.completion.chunk",
                choices=[],
                **costs_of(self.answers),
            )

    async def _remember(self, ended: Ended) -> None:
        """Keep the first answer's own token ids, which a follow-up extends; before its last chunk,
        so that no follow-up can come sooner."""
        if ended.index != 0:
            return
        codec = self._desk.served.codec
        request, prompt = self.answers.requests[0], self._prompt
        choice = self.answers.choices[0]
        tail_ids = prompt.ids[prompt.n_context :]
        await self._desk.workers.run(
            len(prompt.tail),
            partial(
                codec.transcripts.remember,
                request.namespace,
                prompt.messages,
                choice.text,
                [*tail_ids, *choice.tokens],
                prompt.tail,
                n_prompt=len(tail_ids),
                tokenizer=codec.tokenizer,
            ),
        )

    def _delta(self, piece: Piece, begun: set[int]) -> ChatDelta:
        if piece.index in begun:
            return ChatDelta(content=piece.text)
        begun.add(piece.index)
        return ChatDelta(role="assistant", content=piece.text)

    def _scores(self, piece: Piece) -> ChatLogprobs | None:
        if not self._body.logprobs:
            return None
        return chat_logprobs(self._desk.served.codec.tokenizer, piece.scores)

    def _chunk(
        self,
        index: int,
        delta: ChatDelta,
        logprobs: ChatLogprobs | None,
        ended: Ended | None = None,
    ) -> ChatChunk:
        choice = ChatChunkChoice(
            index=index,
            delta=delta,
            logprobs=logprobs,
            finish_reason=ended.reason if ended else None,
        )
        return ChatChunk(
            **self._head, object="chat.completion.chunk", choices=[choice], **self._no_usage()
        )

    def _no_usage(self) -> dict[str, Any]:
        """Where usage was asked for, OpenAI's chunks before the last say ``"usage": null``."""
        return {"usage": None} if self._body.wants_usage else {}

    def _note(self, progress: ProgressReply) -> ChatChunk:
        return ChatChunk(
            **self._head,
            object="chat.completion.chunk",
            choices=[],
            prompt_progress=progress,
            **self._no_usage(),
        )
