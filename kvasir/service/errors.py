"""Errors in the shape that OpenAI's clients parse: {"error": {message, type, param, code}}.

Every way in which a request can fail becomes an ``ApiError`` here, and every ``ApiError`` becomes a
status with a body, or one ``data:`` event where a stream has begun.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from kvasir.contexts.asking import NotReady
from kvasir.contexts.reading import StillReading
from kvasir.contexts.store import StoreBroken
from kvasir.core.errors import (
    CatalogUnavailable,
    EngineStopped,
    KvasirError,
    NameTaken,
    RequestError,
    TemplateError,
    UnreadableFile,
    UnsupportedFile,
)
from kvasir.core.events import RefusalKind, Refused

log = logging.getLogger(__name__)

_STATUSES = {  # of codes that are not a 400
    "context_not_found": 404,
    "file_not_found": 404,
    "context_not_ready": 409,
    "context_cancelled": 409,
    "context_failed": 409,
    "context_expired": 410,
    "invalid_context_file": 422,
    "storage_full": 507,
}
_MOST_RETRY_S = 120.0
_BUSY_S = 10.0  # until the reading of a context, which is to end, has ended
CLIENT_CLOSED = 499  # the status that proxies record for a client that has gone; nobody reads it

ErrorBody = dict[str, dict[str, str | None]]


class ApiError(KvasirError):
    """A failure with its HTTP status and the fields of OpenAI's error object."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> ErrorBody:
        """The JSON object that clients parse."""
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> JSONResponse:
        """The error as a whole response."""
        return JSONResponse(self.body(), status_code=self.status, headers=self.headers)


class Disconnected(KvasirError):
    """The client closed the connection; there is nobody to answer."""


def bad_request(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """A 400 that names the field to blame."""
    return ApiError(400, message, param=param, code=code)


def stopping() -> ApiError:
    """The server is shutting down."""
    return ApiError(
        503,
        "The server is shutting down and takes no more requests. Try again in a moment.",
        kind="server_error",
        code="server_stopping",
        headers=retry_after(5.0),
    )


def retry_after(seconds: float) -> dict[str, str]:
    """Both headers that clients obey; the whole seconds are rounded up so that nobody is early."""
    return {
        "retry-after": str(max(1, math.ceil(seconds))),
        "retry-after-ms": str(max(1, math.ceil(seconds * 1000))),
    }


def refused(event: Refused, param: str) -> ApiError:
    """The engine's refusal as an error; ``param`` names the field that holds the prompt."""
    match event.kind:
        case RefusalKind.QUEUE_FULL:
            return ApiError(
                429,
                event.message,
                kind="rate_limit_error",
                code="rate_limit_exceeded",
                headers=retry_after(event.retry_after_s or 1.0),
            )
        case RefusalKind.NEVER_FITS:
            return bad_request(event.message, param, "context_length_exceeded")
        case RefusalKind.STOPPING:
            return stopping()


def engine_failure(message: str) -> ApiError:
    """A fault inside a step, confined to this request."""
    return ApiError(
        500,
        message or "The engine failed while computing this request. Other requests go on.",
        kind="server_error",
        code="engine_failure",
    )


def internal_error() -> ApiError:
    """A fault of the service itself; what it was is in the log, not in the answer."""
    return ApiError(
        500,
        "The server failed while handling this request. Its log says why.",
        kind="server_error",
        code="internal_error",
    )


def from_kvasir(error: KvasirError) -> ApiError:
    """Any error that Kvasir raises on purpose, as an ``ApiError``."""
    known = error if isinstance(error, ApiError) else _known(error)
    if known is None:
        log.error("unexpected %s", type(error).__name__, exc_info=error)
        return internal_error()
    return known


def _known(error: KvasirError) -> ApiError | None:
    said = str(error)
    match error:
        case NotReady():
            known = _not_ready(error)
        case UnsupportedFile():
            known = ApiError(415, said, param="file", code="unsupported_file")
        case UnreadableFile():
            known = ApiError(422, said, param="file", code="unreadable_file")
        case RequestError():
            status = _STATUSES.get(error.code or "", 400)
            known = ApiError(status, said, param=error.param, code=error.code or "invalid_value")
        case TemplateError():
            known = bad_request(said, "messages", "template_error")
        case NameTaken():
            known = ApiError(409, said, param="name", code="name_taken")
        case StoreBroken():
            known = ApiError(500, said, kind="server_error", code="text_lost")
        case StillReading():
            headers = retry_after(_BUSY_S)
            known = ApiError(
                409, f"{said} Try again in a moment.", code="context_busy", headers=headers
            )
        case CatalogUnavailable():
            log.error("%s", said)  # which names the database, and that is nobody's business
            known = _unavailable()
        case EngineStopped():
            known = stopping()
        case _:
            return None
    return known


def _unavailable() -> ApiError:
    return ApiError(
        503,
        "The server's database cannot be used at the moment, so nothing was done. Try again soon; "
        "its log says why.",
        kind="server_error",
        code="catalog_unavailable",
        headers=retry_after(5.0),
    )


def _not_ready(error: NotReady) -> ApiError:
    """Clients try again by themselves where that is soon; OpenAI's gives up beyond two minutes."""
    wait_s = error.eta_s if error.eta_s is not None else 5.0
    again = "true" if wait_s <= _MOST_RETRY_S else "false"
    headers = {**retry_after(wait_s), "x-should-retry": again}
    return ApiError(409, str(error), param=error.param, code=error.code, headers=headers)


def install(app: FastAPI) -> None:
    """Make ``app`` answer every exception in the shape above."""

    async def on_kvasir(_request: Request, error: Exception) -> Response:
        if isinstance(error, Disconnected):
            return Response(status_code=CLIENT_CLOSED)
        if isinstance(error, KvasirError):
            return from_kvasir(error).response()
        return internal_error().response()

    async def on_gone(_request: Request, _error: Exception) -> Response:
        return Response(status_code=CLIENT_CLOSED)

    async def on_http(request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            return internal_error().response()
        return _from_http(request, error).response()

    async def on_invalid(_request: Request, error: Exception) -> Response:
        found = error.errors() if isinstance(error, RequestValidationError) else []
        first = found[0] if found else {"msg": "the request is not valid", "loc": ()}
        names = [str(part) for part in first["loc"][1:]]
        return bad_request(str(first["msg"]), ".".join(names) or None).response()

    async def on_bug(_request: Request, _error: Exception) -> Response:
        return internal_error().response()

    app.add_exception_handler(KvasirError, on_kvasir)
    app.add_exception_handler(ClientDisconnect, on_gone)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(Exception, on_bug)


def unknown_url(method: str, path: str) -> ApiError:
    """There is no such path, or not for this caller."""
    what = f"{method} {path}"
    return ApiError(
        404, f"There is no {what} here. GET /docs lists what there is.", code="unknown_url"
    )


def method_not_allowed(method: str, path: str, allowed: Sequence[str]) -> ApiError:
    """The path is there, but not for this method."""
    return ApiError(
        405,
        f"{method} {path} is not allowed; GET /docs lists the methods of every path.",
        code="method_not_allowed",
        headers={"allow": ", ".join(allowed)},
    )


def _from_http(request: Request, error: HTTPException) -> ApiError:
    if error.status_code == HTTPStatus.NOT_FOUND:
        return unknown_url(request.method, request.url.path)
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (error.headers or {}).get("Allow", "").split(", ")
        return method_not_allowed(request.method, request.url.path, allowed)
    return ApiError(error.status_code, str(error.detail), headers=error.headers)
