"""POST /v1/completions: text continued as it stands, with the log-probabilities that evaluation
harnesses read.

Every prompt is a request to the engine; the choice ``index`` is prompt × n + choice. Asking for the
log-probabilities of the prompt itself (``echo`` with ``logprobs``) reuses nothing from the cache,
because the logits of reused positions are not kept; ``prompt_cache_diagnostics`` says so.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from kvasir.catalog.values import ContextRow
from kvasir.core.requests import Request as EngineRequest
from kvasir.service import unsupported
from kvasir.service.answer import respond
from kvasir.service.contexts.chat import asked_context, ids_of
from kvasir.service.desk import Desk
from kvasir.service.errors import bad_request
from kvasir.service.fields import Prompt
from kvasir.service.generation import Answers, Choice, Ended, Item, Piece, Reading
from kvasir.service.identity import Caller
from kvasir.service.logprobs import LegacyLogprobs, joined
from kvasir.service.openapi import generation_docs
from kvasir.service.replies import (
    CompletionChoice,
    CompletionLogprobs,
    CompletionReply,
    Finish,
    Head,
)
from kvasir.service.sampling import sampling_of, stop_tokens_of
from kvasir.service.schemas import CompletionRequest
from kvasir.service.usage import costs_of, progress_of

DEFAULT_MAX_TOKENS = 16  # OpenAI's


def routes(desk: Desk) -> APIRouter:
    """The route over ``desk``."""
    router = APIRouter(tags=["generation"])

    @router.post(
        "/v1/completions",
        **generation_docs(CompletionRequest, CompletionReply, CompletionReply),
        summary="Continue text",
    )
    async def completions(request: Request) -> Response:
        body = await desk.parse(request, CompletionRequest, unsupported.COMPLETION)
        context = await asked_context(desk, request, body)
        if context is not None:
            _check_whole(context, body)
        form = await _prepare(desk, desk.caller(request), body, context)
        return await respond(desk, request, form, streaming=body.streaming, prompt_param="prompt")

    return router


@dataclass(frozen=True, slots=True)
class _Read:
    """A prompt as tokens, and as the text that ``echo`` gives back."""

    tokens: list[int]
    text: str


def _check_whole(context: ContextRow, body: CompletionRequest) -> None:
    """Raise a 400 for what a context cannot be asked for by way of plain text."""
    if context.sectioned:
        raise bad_request(
            "This context is longer than the window, so there is no one text to continue. Ask it "
            "by /v1/chat/completions or /v1/contexts/{id}/ask.",
            "context",
        )
    if body.echo:
        raise bad_request("A context's text is not echoed; leave echo out.", "echo")


async def _prepare(
    desk: Desk, caller: Caller, body: CompletionRequest, context: ContextRow | None
) -> CompletionForm:
    """Everything up to the engine: tokens, limits. Raises ``KvasirError``."""
    sampling = sampling_of(desk, body, body.logprobs)
    size = sum(len(prompt) for prompt in body.prompt)
    prompts = await desk.workers.run(
        size, lambda: [_read(desk, prompt, echo=bool(body.echo)) for prompt in body.prompt]
    )
    known = [] if context is None else await desk.workers.in_catalog(lambda: ids_of(desk, context))
    head = desk.head("cmpl", body.model)
    requests = [
        EngineRequest(
            id=f"{head.id}-{at}",
            namespace=caller.namespace,
            tokens=[*known, *prompt.tokens],
            max_tokens=desk.room(
                len(known) + len(prompt.tokens), body.max_tokens, DEFAULT_MAX_TOKENS, "prompt"
            ),
            sampling=sampling,
            stop_token_ids=stop_tokens_of(desk, body),
            n=body.choices,
            prompt_logprobs=body.logprobs if body.echo else None,
        )
        for at, prompt in enumerate(prompts)
    ]
    answers = Answers(
        desk.served.codec.tokenizer,
        requests,
        body.stop,
        prompt_param="prompt",
        context_tokens=len(known) * len(requests),
    )
    return CompletionForm(desk, body, head, answers, prompts)


def _read(desk: Desk, prompt: Prompt, *, echo: bool) -> _Read:
    tokenizer = desk.served.codec.tokenizer
    if isinstance(prompt, str):
        return _Read(tokenizer.encode(prompt), prompt)
    desk.check_ids(prompt, "prompt")
    return _Read(prompt, tokenizer.decode(prompt) if echo else "")


class CompletionForm:
    """Writes answers as Completions."""

    def __init__(
        self,
        desk: Desk,
        body: CompletionRequest,
        head: Head,
        answers: Answers,
        prompts: list[_Read],
    ) -> None:
        self.answers = answers
        self._body = body
        self._head = head.model_dump()
        self._prompts = prompts
        self._began_s = time.monotonic()
        tokenizer = desk.served.codec.tokenizer
        self._logprobs = [LegacyLogprobs(tokenizer) for _ in answers.choices]

    async def whole(self, items: AsyncIterator[Item]) -> CompletionReply:
        """One body, when all items have come."""
        async for _ in items:
            pass
        return CompletionReply(
            **self._head,
            object="text_completion",
            choices=[self._complete(choice) for choice in self.answers.choices],
            **costs_of(self.answers),
        )

    async def chunks(self, items: AsyncIterator[Item]) -> AsyncIterator[CompletionReply]:
        """The chunks of a stream, as items come."""
        begun: set[int] = set()
        async for item in items:
            match item:
                case Piece() | Ended():
                    if self._body.echo and item.index not in begun:
                        begun.add(item.index)
                        text, logprobs = self._opening(item.index)
                        yield self._chunk(item.index, text, logprobs, None)
                    if isinstance(item, Piece):
                        yield self._chunk(item.index, item.text, self._scores(item), None)
                    else:
                        yield self._chunk(item.index, "", None, item.reason)
                case Reading() if self._body.return_progress:
                    yield CompletionReply(
                        **self._head,
                        object="text_completion",
                        choices=[],
                        prompt_progress=progress_of(item, self._began_s),
                        **self._no_usage(),
                    )
        if self._body.wants_usage:
            yield CompletionReply(
                **self._head, object="text_completion", choices=[], **costs_of(self.answers)
            )

    def _complete(self, choice: Choice) -> CompletionChoice:
        text, logprobs = choice.text, None
        if self._body.logprobs is not None:
            opening = self._opening(choice.index)[1] if self._body.echo else None
            logprobs = self._logprobs[choice.index].answer(choice.scores)
            logprobs = joined(opening, logprobs) if opening else logprobs
        if self._body.echo:
            text = self._prompts[choice.index // self.answers.n].text + text
        return CompletionChoice(
            index=choice.index, text=text, logprobs=logprobs, finish_reason=choice.reason
        )

    def _opening(self, index: int) -> tuple[str, CompletionLogprobs | None]:
        """The echoed prompt, with its log-probabilities where they were asked for."""
        at = index // self.answers.n
        prompt = self._prompts[at]
        if self._body.logprobs is None:
            return prompt.text, None
        scores = self.answers.prompt_scores[at]
        return prompt.text, self._logprobs[index].prompt(prompt.tokens, scores)

    def _scores(self, piece: Piece) -> CompletionLogprobs | None:
        if self._body.logprobs is None:
            return None
        return self._logprobs[piece.index].answer(piece.scores)

    def _chunk(
        self, index: int, text: str, logprobs: CompletionLogprobs | None, finish: Finish | None
    ) -> CompletionReply:
        choice = CompletionChoice(index=index, text=text, logprobs=logprobs, finish_reason=finish)
        return CompletionReply(
            **self._head, object="text_completion", choices=[choice], **self._no_usage()
        )

    def _no_usage(self) -> dict[str, Any]:
        """Where usage was asked for, OpenAI's chunks before the last say ``"usage": null``."""
        return {"usage": None} if self._body.wants_usage else {}
