"""Reading a request body: bounded while it arrives, parsed strictly, validated off the event loop.

JSON is taken as the standard has it: no NaN or Infinity, valid UTF-8, no lone surrogates, nesting
bounded by the parser. Whatever is wrong becomes a 400 that names the field.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from kvasir.service import unsupported
from kvasir.service.errors import ApiError, bad_request
from kvasir.service.served import Limits
from kvasir.service.workers import Workers

M = TypeVar("M", bound=BaseModel)


async def read(request: Request, limits: Limits) -> bytes:
    """The whole body. Raises 413 as soon as it is longer than allowed, whatever its
    Content-Length claims, and 408 when it does not arrive in time."""
    claimed = request.headers.get("content-length", "")
    if claimed.isascii() and claimed.isdigit() and int(claimed[:20]) > limits.body_bytes:
        raise _too_large(limits)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(limits.body_s):
            async for part in request.stream():
                size += len(part)
                if size > limits.body_bytes:
                    raise _too_large(limits)
                parts.append(part)
    except TimeoutError:
        raise ApiError(
            408,
            f"The request body did not arrive within {limits.body_s:g} s.",
            code="request_timeout",
        ) from None
    return b"".join(parts)


async def parse(
    request: Request,
    model: type[M],
    not_yet: Mapping[str, unsupported.Harmless],
    *,
    workers: Workers,
    limits: Limits,
) -> M:
    """The body as a ``model``. Raises ``ApiError`` 400, 408 or 413."""
    data = await read(request, limits)
    return await workers.run(len(data), lambda: decode(data, model, not_yet))


def decode(data: bytes, model: type[M], not_yet: Mapping[str, unsupported.Harmless]) -> M:
    """``data`` as a ``model``; raises ``ApiError`` 400 saying what is wrong with which field."""
    try:
        body = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise bad_request(
            f"The request body is not valid JSON: {error}.", code="invalid_json"
        ) from None
    unsupported.check(body, not_yet)
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise _invalid(error) from None


def _invalid(error: ValidationError) -> ApiError:
    """The first thing wrong, with the field's path as OpenAI writes it: messages[0].content."""
    first: Any = error.errors(include_url=False, include_context=False)[0]
    kind, message = first["type"], first["msg"]
    param = ""
    for part in first["loc"]:
        param += f"[{part}]" if isinstance(part, int) else f".{part}" if param else str(part)
    if kind == "model_type" and not param:
        return bad_request("The request body must be a JSON object.", code="invalid_type")
    if not param:
        return bad_request(f"{message}.")
    if kind == "missing":
        return bad_request(f"The field '{param}' is required.", param, "missing_required_parameter")
    text = f"Invalid '{param}': {message[:1].lower()}{message[1:]}"
    given = first["input"]
    if isinstance(given, int | float) and -(2**64) < given < 2**64:
        text += f" (got {given!r})"
    code = "invalid_type" if kind.endswith("_type") else "invalid_value"
    return bad_request(text + ".", param, code)


def _too_large(limits: Limits) -> ApiError:
    return ApiError(
        413,
        f"The request body is longer than the {limits.body_bytes} bytes that are accepted. "
        "Send less text; a prompt of this size would not fit the window either.",
        code="request_too_large",
    )
