"""Where service and engine meet: a built engine behind the HTTP application."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fastapi import FastAPI

from kvasir.cli.home import OwnedHome
from kvasir.cli.own_catalog import open_own_catalog
from kvasir.core.config import Config
from kvasir.engine.build import Built, build
from kvasir.service.app import create_app
from kvasir.service.served import Served


@dataclass(frozen=True, slots=True)
class Server:
    """An application and the running engine that answers it."""

    app: FastAPI
    built: Built


def compose(config: Config, owned: OwnedHome, report: Callable[[str], None]) -> Server:
    """Load what ``config`` names and put the application on top. Raises what ``build`` raises."""
    catalog = open_own_catalog(config, owned)
    try:
        built = build(config, report)
    except BaseException:
        catalog.close()
        raise
    served = Served(
        card=built.card,
        geometry=built.geometry,
        engine=built.engine,
        codec=built.codec,
        catalog=catalog,
        home=owned.home.path,
        secret=owned.secret(),
    )
    return Server(create_app(served, config), built)
