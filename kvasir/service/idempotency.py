"""Requests that a client repeats because it did not see the answer: done once, answered again.

Invariant: for one tenant and key the work is done at most once for as long as the key is kept (a
day); another request under the same key is refused and never answered with the first one's object.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

from fastapi import Request

from kvasir.contexts.library import Library
from kvasir.service.desk import Desk
from kvasir.service.errors import ApiError, bad_request, retry_after

T = TypeVar("T")

HEADER = "idempotency-key"
_MAX_CHARS = 255


async def once(
    desk: Desk,
    request: Request,
    said: Callable[[], bytes],
    size: int,
    make: Callable[[], Awaitable[T]],
    id_of: Callable[[T], str],
    find: Callable[[str], Awaitable[T]],
) -> T:
    """What ``make`` gives, or what it gave to the same request before, which ``find`` looks up.

    ``said`` gives what the request says, without its key, of about ``size`` bytes; it is called on
    a worker thread, and only where there is a key. Raises ``ApiError`` 400 for a key
    that is no key, 409 while the first request is still at work, 422 where the key was another
    request's.
    """
    key = request.headers.get(HEADER)
    if key is None:
        return await make()
    if not 0 < len(key) <= _MAX_CHARS or not key.isprintable():
        raise bad_request(f"An Idempotency-Key has 1 to {_MAX_CHARS} printable characters.", HEADER)
    library: Library = desk.library
    tenant = desk.caller(request).tenant
    begins = f"{request.method} {request.url.path}\n".encode()
    digest = await desk.workers.run(size, lambda: hashlib.sha256(begins + said()).hexdigest())
    keys = library.catalog.idempotency
    claim = await desk.workers.in_catalog(lambda: keys.claim(tenant, key, digest, library.now()))
    if claim.state == "conflict":
        raise ApiError(
            422,
            "This Idempotency-Key was used for another request. Use a new key for each request.",
            param=HEADER,
            code="idempotency_key_reused",
        )
    if claim.state == "same":
        if claim.object_id is None:
            raise ApiError(
                409,
                "The first request with this Idempotency-Key is still being carried out.",
                code="idempotency_in_progress",
                headers=retry_after(1.0),
            )
        return await find(claim.object_id)
    try:
        made = await make()
    except BaseException:
        await desk.workers.in_catalog(lambda: keys.forget(tenant, key))
        raise
    await desk.workers.in_catalog(lambda: keys.finish(tenant, key, id_of(made)))
    return made
