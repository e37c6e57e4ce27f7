"""The application: the routes, the door in front of them, the counter in front of the door."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI

from kvasir.core.config import Config
from kvasir.service import (
    cache,
    chat,
    completions,
    errors,
    health,
    models,
    openapi,
    pages,
    tokens,
)
from kvasir.service.desk import Desk
from kvasir.service.door import Door
from kvasir.service.identity import Identity
from kvasir.service.metrics import Metrics, RequestCounter
from kvasir.service.served import Limits, Served
from kvasir.service.workers import Workers

DEFAULT_LIMITS = Limits()


def create_app(served: Served, config: Config, *, limits: Limits = DEFAULT_LIMITS) -> FastAPI:
    """The HTTP application over ``served``. Starts no engine and binds no port.

    It ends cleanly with its engine: once ``EngineClient.stop`` is called, new requests get 503 and
    running streams finish within the grace or end with an error event.
    """
    workers = Workers()
    identity = Identity(config.keys, served.secret)
    metrics = Metrics(served.engine)
    desk = Desk(
        served=served,
        config=config,
        limits=limits,
        workers=workers,
        metrics=metrics,
        opened=int(time.time()),
    )

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            workers.close()
            served.codec.transcripts.close()  # nobody is left who could remember anything

    app = FastAPI(
        title="Kvasir",
        docs_url=None,  # FastAPI's page loads scripts from elsewhere; /docs is our own
        redoc_url=None,
        redirect_slashes=False,  # a redirect would repeat the client's Host
        lifespan=lifespan,
    )
    errors.install(app)
    for module in (chat, completions, models, tokens, health):
        app.include_router(module.routes(desk))
    app.include_router(cache.routes(desk, identity))
    app.include_router(pages.routes(desk, app))

    def document() -> dict[str, Any]:
        return openapi.document(app)

    app.openapi = document  # type: ignore[method-assign]
    app.add_middleware(Door, config=config, identity=identity)
    app.add_middleware(RequestCounter, metrics=metrics)  # added last, so it sees refusals too
    return app
