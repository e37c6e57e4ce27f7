"""Reading contexts in the background: part after part, each marked when its KV is durable.

Invariants: a part is marked as read only when the tier that it was promised to holds all of it;
what was marked is never computed again because of a crash or a cancel; a context that is being read
takes no more than two places in the engine, whose fair shares keep it from holding up others.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from kvasir.catalog.values import ContextRow, SectionRow
from kvasir.contexts import summaries
from kvasir.contexts.batch import Cancelled, Done, run_all
from kvasir.contexts.library import Library
from kvasir.contexts.outline import unpacked
from kvasir.contexts.progress import Progress, tell, tell_last
from kvasir.contexts.promise import disk
from kvasir.core.errors import EngineStopped, KvasirError
from kvasir.core.requests import Request

log = logging.getLogger(__name__)

_READERS = 4  # contexts that are read concurrently
_WIDTH = 2  # parts of one that are with the engine: one is computed while one is saved
_SETTLE_S = 60.0  # how long what was computed may take to be durable
_LOOK_S = 0.02


class Reader:
    """Reads what is queued, in threads of its own, until it is closed."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._threads = ThreadPoolExecutor(_READERS, thread_name_prefix="kvasir-reader")
        self._lock = threading.Lock()
        self._cancelled: dict[str, threading.Event] = {}  # by context, while queued or read
        self._progress: dict[str, Progress] = {}
        self._closing = threading.Event()

    def resume(self) -> None:
        """Go on where the last process stopped; to be called once, at the start."""
        for row in self._library.catalog.contexts.unfinished():
            self.take(row)

    def take(self, row: ContextRow) -> None:
        """Read ``row`` as soon as a thread is free; one that is being read already is left."""
        with self._lock:
            if row.id in self._cancelled or self._closing.is_set():
                return
            self._cancelled[row.id] = threading.Event()
        self._threads.submit(self._run, row)

    def cancel(self, context_id: str) -> bool:
        """End the reading of a context and keep what was read; False where it is not read now."""
        with self._lock:
            event = self._cancelled.get(context_id)
        if event is None:
            return False
        event.set()
        return True

    def wait_until_ended(self, context_id: str, timeout_s: float) -> bool:
        """Wait until nobody reads a context; False where that takes longer."""
        until_s = time.monotonic() + timeout_s
        while time.monotonic() < until_s:
            with self._lock:
                if context_id not in self._cancelled:
                    return True
            time.sleep(_LOOK_S)
        return False

    def progress(self, context_id: str) -> Progress | None:
        """How far a context that is being read is; None where it is not."""
        with self._lock:
            return self._progress.get(context_id)

    def eta_s(self, context_id: str) -> float | None:
        """Predicted seconds until a context is read; None where nobody knows."""
        progress = self.progress(context_id)
        eta_s = progress.snapshot()["eta_seconds"] if progress is not None else None
        return float(eta_s) if eta_s is not None else None

    def close(self) -> None:
        """End what runs, as a crash would but tidily: it goes on at the next start."""
        self._closing.set()
        self._threads.shutdown(wait=True, cancel_futures=True)

    # inside --------------------------------------------------------------------------------------

    def _run(self, row: ContextRow) -> None:
        cancelled = self._cancelled[row.id]
        try:
            self._read(row, cancelled)
        except Cancelled:
            if not self._closing.is_set():
                self._end(row, "cancelled", None)
        except EngineStopped:
            log.info("reading of %s goes on at the next start", row.id)
        except KvasirError as error:
            self._end(row, "failed", str(error))
        except Exception:
            log.exception("reading %s failed", row.id)
            self._end(row, "failed", "The server failed while reading it; its log says why.")
        finally:
            with self._lock:
                self._cancelled.pop(row.id, None)
                self._progress.pop(row.id, None)

    def _read(self, row: ContextRow, cancelled: threading.Event) -> None:
        library, contexts = self._library, self._library.catalog.contexts
        if contexts.get(row.tenant, row.id) is None:
            return  # deleted while it was queued
        sections = contexts.sections(row.id)
        progress = Progress(library, row, sum(s.n_tokens for s in sections if s.read))
        with self._lock:
            self._progress[row.id] = progress
        contexts.update(row.tenant, row.id, status="in_progress")
        tell(library, row.id, "context.in_progress", progress.snapshot())
        began_s = time.monotonic()

        def unwanted() -> bool:
            return cancelled.is_set() or self._closing.is_set()

        try:
            if row.keep == "kv":
                self._read_parts(row, sections, progress, unwanted)
        finally:
            read_s = time.monotonic() - began_s
            contexts.update(row.tenant, row.id, read_s=row.read_s + read_s)
        if row.definition.get("summaries") and row.keep == "kv":
            summaries.make(library, row, unwanted)
        self._end(row, "completed", None)

    def _read_parts(
        self,
        row: ContextRow,
        sections: tuple[SectionRow, ...],
        progress: Progress,
        unwanted: summaries.Unwanted,
    ) -> None:
        library = self._library
        namespace = library.namespace_of(row.tenant)
        ids = library.catalog.contexts.section_tokens(row.id)
        hold(library, row, namespace, ids)
        left = {section.index: section for section in sections if not section.read}
        asked: dict[str, SectionRow] = {}

        def requests() -> Iterator[Request]:
            for section in left.values():
                tokens = unpacked(ids[section.index])
                if kept(library, namespace, tokens):
                    library.catalog.contexts.mark_read(
                        row.id, section.index, reused_tokens=section.n_tokens
                    )
                    progress.finish_part("", section.n_tokens)
                    continue
                request = Request(
                    id=f"read-{row.id}-{section.index}",
                    namespace=namespace,
                    tokens=tokens,
                    max_tokens=0,
                )
                asked[request.id] = section
                yield request

        for done in run_all(
            library.engine,
            requests(),
            width=_WIDTH,
            cancelled=unwanted,
            on_progress=progress.advance,
        ):
            if done.problem:
                number = asked[done.request.id].index + 1
                raise KvasirError(
                    f"Part {number} of {len(sections)} could not be read: {done.problem}. What was "
                    "read is kept; create the context again to go on."
                )
            self._settle(done, unwanted)
            section = asked[done.request.id]
            usage = done.usage
            library.catalog.contexts.mark_read(
                row.id,
                section.index,
                computed_tokens=usage.computed_tokens,
                reused_tokens=usage.reused_tokens,
            )
            progress.finish_part(done.request.id, section.n_tokens)

    def _settle(self, done: Done, unwanted: summaries.Unwanted) -> None:
        """Wait until what was computed is durable, where there is a tier that lasts."""
        library, request = self._library, done.request
        until_s = time.monotonic() + _SETTLE_S
        while disk(library) is not None and not kept(library, request.namespace, request.tokens):
            if unwanted():
                raise Cancelled
            if time.monotonic() > until_s:
                raise KvasirError(
                    "What was computed could not be kept on disk within a minute. `kvasir cache "
                    "size` and the server's log say how storage is doing; create it again to go on"
                )
            time.sleep(_LOOK_S)

    def _end(self, row: ContextRow, status: str, error: str | None) -> None:
        library, now = self._library, self._library.now()
        completed_at = now if status == "completed" else None
        library.catalog.contexts.update(
            row.tenant, row.id, status=status, error=error, completed_at=completed_at
        )
        data = {"status": status, "error": error}
        tell_last(library, row.id, f"context.{status}", data)


def hold(library: Library, row: ContextRow, namespace: bytes, ids: dict[int, bytes]) -> None:
    """Keep the KV of ``row`` from giving way to others."""
    library.engine.hold(row.id, namespace, [unpacked(each) for each in ids.values()])


def kept(library: Library, namespace: bytes, tokens: Sequence[int]) -> bool:
    """Whether all of ``tokens`` is where it survives the process and a power cut."""
    return disk(library) is not None and library.engine.residence(namespace, tokens).durable
