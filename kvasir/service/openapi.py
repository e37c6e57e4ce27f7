"""The OpenAPI document: complete, and true to what the routes do.

Bodies are read by ``body.parse`` and not by FastAPI (bounded, strict, off the event loop), so their
schemas are put into the document here, together with every error that a route can answer.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from kvasir import __version__
from kvasir.service.accounts import NewKeyRequest, NewTenantRequest, TenantChangeRequest
from kvasir.service.contexts.bodies import (
    AskRequest,
    ContextPatch,
    ContextRequest,
    ForkRequest,
    SearchRequest,
)
from kvasir.service.fields import TOKEN_IDS_SCHEMA
from kvasir.service.replies import ChatChunk, ErrorReply
from kvasir.service.schemas import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)

_ERRORS = {
    400: "The request is wrong; `param` names the field",
    401: "No API key, or an unknown one",
    403: "The Host or Origin is not allowed",
    404: "No such thing of the caller's",
    408: "The body, or the reading of the answer, took too long",
    409: "Not now, or not with this name; `code` says why",
    410: "The context has expired; its text is kept and can be read again",
    413: "The body is too large",
    415: "The body, or the file, is of a kind that is not taken",
    422: "The file is damaged or hostile, or an idempotency key was another request's",
    429: "The queue is full; Retry-After says when to come back",
    500: "The computation failed; other requests are not touched",
    503: "The server is shutting down",
    507: "There is no room to keep it as promised",
}
_BODY_ERRORS = (400, 401, 403, 404, 408, 413, 415, 500)
_GENERATION_ERRORS = (*_BODY_ERRORS, 409, 410, 429, 503)
_BODIES: tuple[type[BaseModel], ...] = (
    ChatRequest,
    CompletionRequest,
    TokenizeRequest,
    DetokenizeRequest,
    ContextRequest,
    ContextPatch,
    ForkRequest,
    SearchRequest,
    AskRequest,
    NewKeyRequest,
    NewTenantRequest,
    TenantChangeRequest,
)
_REF = "#/components/schemas/{model}"


def error_docs(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """FastAPI's ``responses`` for these error statuses."""
    return {
        status: {"model": ErrorReply, "description": _ERRORS[status]} for status in sorted(statuses)
    }


def docs(reply: type[BaseModel], *errors: int) -> dict[str, Any]:
    """What a route without a body says of itself."""
    return {"responses": {200: {"model": reply}, **error_docs(400, 401, 403, *errors)}}


def body_docs(
    body: type[BaseModel], reply: type[BaseModel], errors: tuple[int, ...] = _BODY_ERRORS
) -> dict[str, Any]:
    """What a route with a JSON body says of itself."""
    schema = {"$ref": _REF.format(model=body.__name__)}
    return {
        "responses": {200: {"model": reply}, **error_docs(*errors)},
        "openapi_extra": {
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": schema}},
            }
        },
    }


def generation_docs(
    body: type[BaseModel], reply: type[BaseModel], chunk: type[BaseModel]
) -> dict[str, Any]:
    """What a route that may answer as a stream says of itself."""
    documented = body_docs(body, reply, _GENERATION_ERRORS)
    documented["responses"][200]["content"] = {
        "text/event-stream": {
            "schema": {  # no type: tools differ in whether it is the stream's or an event's
                "description": f"With `stream: true`: lines `data: {chunk.__name__}`, a failure as "
                "`data: ErrorReply`, and `data: [DONE]` last.",
            }
        }
    }
    return documented


def document(app: FastAPI) -> dict[str, Any]:
    """The document of ``app``, made once."""
    if app.openapi_schema is None:
        made = get_openapi(
            title="Kvasir",
            version=__version__,
            summary="A long-context inference server with OpenAI's API.",
            description="Unknown fields are ignored. Fields that OpenAI or other servers know, "
            "that are not there yet and would change the answer, are refused by name with 400.",
            routes=app.routes,
        )
        _, definitions = models_json_schema(
            [(model, "validation") for model in _BODIES], ref_template=_REF
        )
        _, chunks = models_json_schema([(ChatChunk, "serialization")], ref_template=_REF)
        schemas = made["components"]["schemas"]
        schemas |= definitions["$defs"] | chunks["$defs"] | {"TokenIds": TOKEN_IDS_SCHEMA}
        for path in made["paths"].values():
            for operation in path.values():
                # FastAPI's own validation error; ours are 400 and in OpenAI's shape
                if "HTTPValidationError" in str(operation["responses"].get("422")):
                    del operation["responses"]["422"]
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        app.openapi_schema = made
    return app.openapi_schema
