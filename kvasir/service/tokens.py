"""POST /tokenize, POST /detokenize, GET /tokenizer_info: what a text is in tokens."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from kvasir.service import unsupported
from kvasir.service.chat import plain, render
from kvasir.service.desk import Desk
from kvasir.service.openapi import body_docs, docs
from kvasir.service.replies import DetokenizeReply, TokenizeReply, TokenizerReply
from kvasir.service.schemas import DetokenizeRequest, TokenizeRequest


def routes(desk: Desk) -> APIRouter:
    """The routes over ``desk``."""
    router = APIRouter(tags=["tokens"])
    codec, card = desk.served.codec, desk.served.card

    def encode(body: TokenizeRequest) -> list[int]:
        special = body.add_special_tokens is not False
        if body.prompt is not None:
            return codec.tokenizer.encode(body.prompt, special=special)
        text = render(
            codec,
            plain(body.messages),
            generation_prompt=body.add_generation_prompt is not False,
        )
        return codec.tokenizer.encode(text, bos=False)  # the template has written it

    @router.post(
        "/tokenize", **body_docs(TokenizeRequest, TokenizeReply), summary="Text to token ids"
    )
    async def tokenize(request: Request) -> Response:
        desk.caller(request)
        body = await desk.parse(request, TokenizeRequest, unsupported.TOKENIZE)
        size = len(body.prompt or "") + sum(len(m.content) for m in body.messages)

        def work() -> bytes:
            tokens = encode(body)
            reply = TokenizeReply(count=len(tokens), max_model_len=card.window, tokens=tokens)
            if body.return_token_strs:
                strings = [codec.tokenizer.token_text(token) for token in tokens]
                reply = reply.model_copy(update={"token_strs": strings})
            return reply.wire()

        return Response(await desk.workers.run(size, work), media_type="application/json")

    @router.post(
        "/detokenize",
        **body_docs(DetokenizeRequest, DetokenizeReply),
        summary="Token ids to text",
    )
    async def detokenize(request: Request) -> Response:
        desk.caller(request)
        body = await desk.parse(request, DetokenizeRequest, unsupported.NOTHING)
        desk.check_ids(body.tokens, "tokens")

        def work() -> bytes:
            return DetokenizeReply(prompt=codec.tokenizer.decode(body.tokens)).wire()

        data = await desk.workers.run(len(body.tokens) * 4, work)
        return Response(data, media_type="application/json")

    @router.get("/tokenizer_info", **docs(TokenizerReply), summary="Facts of the tokenizer")
    async def tokenizer_info(request: Request) -> Response:
        desk.caller(request)
        reply = TokenizerReply(
            vocab_size=codec.tokenizer.vocab_size,
            eos_token=codec.tokenizer.eos_text or None,
            bos_token=codec.tokenizer.bos_text or None,
            pad_token=None,
            max_model_len=card.window,
        )
        return Response(reply.wire(), media_type="application/json")

    return router
