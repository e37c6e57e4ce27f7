"""A library over a whole engine without weights, for tests of what is done with contexts."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from virtual_server import WINDOW, PacedRunner, make_engine, make_served

from kvasir.catalog.values import ContextRow
from kvasir.contexts import creating
from kvasir.contexts.creating import Wanted
from kvasir.contexts.definition import Definition
from kvasir.contexts.library import Library
from kvasir.contexts.outline import packed
from kvasir.contexts.reading import Reader
from kvasir.contexts.store import TextStore
from kvasir.core.config import Config
from kvasir.documents.values import Document, Page
from kvasir.engine.client import EngineClient
from kvasir.kv.cache import KvCache

SECTION_TOKENS = 512


@dataclass
class Clock:
    """Unix time that stands until it is told to go on."""

    now_s: float = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Made:
    """A library and what is behind it."""

    library: Library
    reader: Reader
    client: EngineClient
    cache: KvCache
    runner: PacedRunner
    clock: Clock
    home: Path
    steps: list[int] = field(default_factory=list)

    def create(
        self, *texts: str, read: bool = True, tenant: str = "a", **wishes: Any
    ) -> ContextRow:
        """A context of ``texts``, and have it read to its end."""
        row, unread = creating.create(self.library, wanted(*texts, tenant=tenant, **wishes))
        if read:
            if unread:
                self.reader.take(row)
            row = self.ended(row)
            assert row.status == "completed", row
        return row

    def row(self, row: ContextRow) -> ContextRow:
        found = self.library.catalog.contexts.get(row.tenant, row.id)
        assert found is not None
        return found

    def ended(self, row: ContextRow) -> ContextRow:
        wait_for(lambda: self.row(row).status not in ("queued", "in_progress"))
        return self.row(row)

    def parts(self, row: ContextRow) -> list[list[int]]:
        from kvasir.contexts.outline import unpacked

        return [unpacked(ids) for ids in self.library.tokens(row).values()]

    def holders(self) -> set[str]:
        """Who holds something in the engine."""
        return self.client.call(lambda: set(self.cache.keeping._holders))

    def check(self) -> None:
        self.client.call(self.cache.check)


def wait_for(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    until_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until_s, "waited in vain"
        time.sleep(0.005)


def document(text: str, name: str = "a.txt", **fields: Any) -> Document:
    pages = fields.pop("pages", (Page(0, "1", 0, len(text)),))
    return Document(name=name, media_type="text/plain", text=text, pages=pages, **fields)


def definition(*texts: str, **fields: Any) -> Definition:
    documents = tuple(document(text, f"{n}.txt") for n, text in enumerate(texts))
    return Definition(documents=documents, **{"section_tokens": SECTION_TOKENS, **fields})


def wanted(*texts: str, tenant: str = "a", **wishes: Any) -> Wanted:
    made = {name: wishes.pop(name) for name in ("instructions", "turns") if name in wishes}
    wishes.setdefault("summaries", False)
    return Wanted(tenant=tenant, definition=definition(*texts, **made), **wishes)


@contextlib.contextmanager
def opened(
    home: Path,
    *,
    disk_gib: float = 0.25,
    window: int = WINDOW,
    clock: Clock | None = None,
    on_disk: bool = True,
    **limits: float,
) -> Iterator[Made]:
    """A library on ``home``; again on it is a restart."""
    stored = Config(home=home, disk_gib=disk_gib) if on_disk else None
    client, cache, runner, geometry = make_engine(window=window, stored=stored, **limits)
    served = make_served(client, geometry, window, home=home)
    clock = clock or Clock()
    library = Library(
        engine=client,
        codec=served.codec,
        card=served.card,
        geometry=geometry,
        catalog=served.catalog,
        store=TextStore(home),
        namespace_of=lambda tenant: hashlib.sha256(tenant.encode()).digest(),
        now_s=clock,
    )
    reader = Reader(library)
    try:
        yield Made(library, reader, client, cache, runner, clock, home)
    finally:
        runner.before = None  # what a test holds up goes on
        reader.close()
        client.stop()
        served.catalog.close()
        served.codec.transcripts.close()
        assert served.codec.template is not None
        served.codec.template.close()


__all__ = [
    "SECTION_TOKENS",
    "Clock",
    "Made",
    "definition",
    "document",
    "opened",
    "packed",
    "wanted",
]
