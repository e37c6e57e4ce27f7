"""How long contexts and files stay: holds at the start, ends by expiry, deletion, collection.

Invariants: what is promised to stay is held before the first request is served; KV that a deleted
or expired context shares with another live one stays; a deletion that a crash interrupts is
finished or undone at the next start, never half visible.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from kvasir.catalog.values import ContextRow
from kvasir.contexts.library import Library
from kvasir.contexts.outline import unpacked
from kvasir.contexts.reading import hold
from kvasir.core.errors import KvasirError

log = logging.getLogger(__name__)

_EVERY_S = 15.0
_EXPIRED_KEPT_S = 7 * 24 * 3600  # how long an expired context's text stays, to be read again
_IDEMPOTENCY_S = 24 * 3600


def open_shelves(library: Library) -> None:
    """Hold the KV of all live contexts, and remove what no row names. Before anything is served."""
    contexts = library.catalog.contexts
    library.store.collect(library.catalog.files.ids(), contexts.ids())
    library.catalog.idempotency.forget_unfinished()
    for row in contexts.held():
        ids = contexts.section_tokens(row.id)
        hold(library, row, library.namespace_of(row.tenant), ids)


def delete(library: Library, row: ContextRow) -> None:
    """Forget ``row``, its text and its KV. Its reading must have ended."""
    _let_go(library, row)
    library.catalog.contexts.remove(row.tenant, row.id)
    library.store.remove_context(row.id)


def expire(library: Library, row: ContextRow) -> None:
    """Give up the KV of ``row``; its text stays for a while, so that it can be read again."""
    _let_go(library, row)
    until = library.now() + _EXPIRED_KEPT_S
    contexts = library.catalog.contexts
    contexts.forget_read(row.id)
    contexts.update(row.tenant, row.id, status="expired", expires_at=until)


def _let_go(library: Library, row: ContextRow) -> None:
    library.engine.let_go(row.id)
    if row.keep == "kv":
        texts = [unpacked(ids) for ids in library.catalog.contexts.section_tokens(row.id).values()]
        library.engine.drop(library.namespace_of(row.tenant), texts)


class Keeper:
    """A thread that ends what has expired."""

    def __init__(self, library: Library, cancel: Callable[[str], bool]) -> None:
        """``cancel`` ends the reading of a context."""
        self._library = library
        self._cancel = cancel
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kvasir-keeper", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """End, after what is being done."""
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join()

    def round(self) -> None:
        """End everything whose time is over."""
        library, now = self._library, self._library.now()
        for row in library.catalog.contexts.expired(now):
            if row.status == "expired":
                delete(library, row)
            elif not self._cancel(row.id):  # what is being read ends first, in a later round
                expire(library, row)
        for file in library.catalog.files.expired(now):
            library.catalog.files.remove(file.tenant, file.id)
            library.store.remove_file(file.id)
        library.catalog.idempotency.purge(now - _IDEMPOTENCY_S)

    def _run(self) -> None:
        while not self._closing.wait(_EVERY_S):
            try:
                self.round()
            except (KvasirError, OSError):
                log.exception("ending what has expired failed; it is tried again")
