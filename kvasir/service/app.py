"""The application: the routes, the door in front of them, the counter in front of the door."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.concurrency import run_in_threadpool

from kvasir.contexts.focus import Ranker
from kvasir.contexts.keeping import Keeper, open_shelves
from kvasir.contexts.library import Library
from kvasir.contexts.portable import signing_key
from kvasir.contexts.reading import Reader
from kvasir.contexts.store import TextStore
from kvasir.core.config import Config
from kvasir.service import (
    access,
    admin,
    cache,
    chat,
    completions,
    errors,
    files,
    health,
    models,
    openapi,
    pages,
    tokens,
)
from kvasir.service.contexts import asks as context_asks
from kvasir.service.contexts import events as context_events
from kvasir.service.contexts import routes as context_routes
from kvasir.service.contexts import transfer
from kvasir.service.desk import Desk
from kvasir.service.door import Door
from kvasir.service.identity import Identity, is_loopback
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
    identity = Identity(
        config.keys, served.secret, served.catalog, always=not is_loopback(config.host)
    )
    metrics = Metrics(served.engine)
    library = Library(
        engine=served.engine,
        codec=served.codec,
        card=served.card,
        geometry=served.geometry,
        catalog=served.catalog,
        store=TextStore(served.home),
        namespace_of=identity.namespace_of,
    )
    reader = Reader(library)
    keeper = Keeper(library, reader.stopped)
    desk = Desk(
        served=served,
        library=library,
        reader=reader,
        ranker=Ranker(library),
        signing_key=signing_key(served.home / "signing.key"),
        config=config,
        limits=limits,
        workers=workers,
        metrics=metrics,
        opened=int(time.time()),
    )

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(open_shelves, library)
        reader.resume()
        keeper.start()
        try:
            yield
        finally:
            await run_in_threadpool(reader.close)
            await run_in_threadpool(keeper.close)
            workers.close()
            served.codec.transcripts.close()  # nobody is left who could remember anything
            served.catalog.close()

    app = FastAPI(
        title="Kvasir",
        docs_url=None,  # FastAPI's page loads scripts from elsewhere; /docs is our own
        redoc_url=None,
        redirect_slashes=False,  # a redirect would repeat the client's Host
        lifespan=lifespan,
        dependencies=[Depends(access.check_route)],
    )
    errors.install(app)
    for module in (
        chat,
        completions,
        models,
        tokens,
        health,
        files,
        transfer,
        context_routes,
        context_events,
        context_asks,
    ):
        app.include_router(module.routes(desk))
    app.include_router(admin.routes(desk, identity))
    app.include_router(cache.routes(desk, identity))
    app.include_router(pages.routes(desk, app))

    def document() -> dict[str, Any]:
        return openapi.document(app)

    app.openapi = document  # type: ignore[method-assign]
    app.add_middleware(Door, config=config, identity=identity)
    app.add_middleware(RequestCounter, metrics=metrics)  # added last, so it sees refusals too
    return app
