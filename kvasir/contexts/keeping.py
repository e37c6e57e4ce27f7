"""How long contexts and files stay: holds at the start, ends by expiry, deletion, collection.

Invariants: what is promised to stay is held before the first request is served; KV that a deleted
or expired context shares with another live one stays; a deletion that a crash interrupts is
finished or undone at the next start, never half visible.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable

from kvasir.catalog.values import ContextRow
from kvasir.contexts.asking import is_of_this_model
from kvasir.contexts.library import Library
from kvasir.contexts.outline import unpacked
from kvasir.contexts.reading import StillReading, hold

log = logging.getLogger(__name__)

Stopped = Callable[[ContextRow, float], contextlib.AbstractContextManager[None]]

_EVERY_S = 15.0
_STOP_S = 1.0  # how long a round waits for a reading to end
_DELETED_AT = 0  # when a context "expires" that is being deleted
_EXPIRED_KEPT_S = 7 * 24 * 3600  # how long an expired context's text stays, to be read again
_IDEMPOTENCY_S = 24 * 3600


def open_shelves(library: Library) -> None:
    """Hold the KV of all live contexts, and remove what no row names. Before anything is served."""
    contexts = library.catalog.contexts
    for row in contexts.held():
        if not is_of_this_model(library, row):
            continue  # under this model it has no KV, and room for it would be taken from others
        ids = contexts.section_tokens(row.id)
        hold(library, row, library.namespace_of(row.tenant), ids)
    # what a crash has interrupted goes on once that is held which others share with it
    for row in contexts.expired(_DELETED_AT):
        delete(library, row)
    library.store.collect(library.catalog.files.ids(), contexts.ids())
    library.catalog.idempotency.forget_unfinished()


def delete(library: Library, row: ContextRow) -> None:
    """Forget ``row``, its text and its KV. Nobody may be reading it (``Reader.stopped``)."""
    contexts = library.catalog.contexts
    with library.turn:
        # from here on it is deleted, also if the process ends: the next start goes on
        contexts.update(row.tenant, row.id, status="expired", pinned=False, expires_at=_DELETED_AT)
        _let_go(library, row)
        contexts.remove(row.tenant, row.id)
        library.store.remove_context(row.id)


def expire(library: Library, row: ContextRow) -> None:
    """Give up the KV of ``row``; its text stays for a while, so that it can be read again. Nobody
    may be reading it."""
    contexts = library.catalog.contexts
    with library.turn:
        # first what everybody sees: nothing is called kept that is not
        until = library.now() + _EXPIRED_KEPT_S
        contexts.update(row.tenant, row.id, status="expired", expires_at=until)
        contexts.forget_read(row.id)
        _let_go(library, row)


def _let_go(library: Library, row: ContextRow) -> None:
    library.engine.let_go(row.id)
    # of one that keeps its text alone, what questions have left of it
    texts = [unpacked(ids) for ids in library.catalog.contexts.section_tokens(row.id).values()]
    library.engine.drop(library.namespace_of(row.tenant), texts)


class Keeper:
    """A thread that ends what has expired."""

    def __init__(self, library: Library, stopped: Stopped) -> None:
        """``stopped`` is the ``Reader``'s."""
        self._library = library
        self._stopped = stopped
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
            # one whose reading takes long to end is left to a later round
            with contextlib.suppress(StillReading), self._stopped(row, _STOP_S), library.turn:
                self._end(row.tenant, row.id, now)
        for file in library.catalog.files.expired(now):
            library.catalog.files.remove(file.tenant, file.id)
            library.store.remove_file(file.id)
        library.catalog.idempotency.purge(now - _IDEMPOTENCY_S)

    def _end(self, tenant: str, context_id: str, now: int) -> None:
        """End a context, unless it was renewed since it was looked up."""
        row = self._library.catalog.contexts.get(tenant, context_id)
        if row is None or row.pinned or row.expires_at is None or row.expires_at > now:
            return
        if row.status == "expired":
            delete(self._library, row)
        else:
            expire(self._library, row)

    def _run(self) -> None:
        while not self._closing.wait(_EVERY_S):
            try:
                self.round()
            except Exception:  # whatever it was, the thread is the only one that ends things
                log.exception("ending what has expired failed; it is tried again")
