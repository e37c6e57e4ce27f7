"""Reading contexts in the background: part after part, each marked when its KV is durable.

Invariants: a part is marked as read only when the tier that it was promised to holds all of it;
what was marked is not computed again because of a crash or a cancel, unless it was lost since; a
context is read by the model that it was made for alone; one that is being read takes no more than
two places in the engine, whose fair shares keep it from holding up others.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from kvasir.catalog.values import UNFINISHED, ContextRow, ContextStatus, SectionRow
from kvasir.contexts import summaries
from kvasir.contexts.asking import is_of_this_model
from kvasir.contexts.batch import Cancelled, Done, run_all
from kvasir.contexts.library import Library
from kvasir.contexts.outline import unpacked
from kvasir.contexts.progress import Progress, tell, tell_end
from kvasir.contexts.promise import disk
from kvasir.core.errors import CatalogUnavailable, EngineStopped, KvasirError
from kvasir.core.requests import Request

log = logging.getLogger(__name__)

_READERS = 4  # contexts that are read concurrently
_WIDTH = 2  # parts of one that are with the engine: one is computed while one is saved
_SETTLE_S = 60.0  # how long what was computed may take to be durable
_LOOK_S = 0.02
_FAULT = "The server failed while reading it; its log says why."
_ATTEMPTS = 3  # at having a part computed and saved


class StillReading(KvasirError):
    """The reading of a context did not end in time."""


@dataclass(slots=True, eq=False)
class _Reading:
    """Of one context, from being queued to its end."""

    row: ContextRow
    cancelled: threading.Event = field(default_factory=threading.Event)
    begun: bool = False
    ending: bool = False  # how it ended is being noted
    again: ContextRow | None = None  # somebody wants it read, who came after it was cancelled
    progress: Progress | None = None


class Reader:
    """Reads what is queued, in threads of its own, until it is closed."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._threads = ThreadPoolExecutor(_READERS, thread_name_prefix="kvasir-reader")
        self._changed = threading.Condition()
        self._readings: dict[str, _Reading] = {}  # by context
        self._closing = threading.Event()

    def resume(self) -> None:
        """Go on where the last process stopped; to be called once, at the start."""
        for row in self._library.catalog.contexts.unfinished():
            self.take(row)

    def take(self, row: ContextRow) -> None:
        """Read ``row`` as soon as a thread is free. One that is being read already is left, unless
        that is about to end early: then it is read on afterwards."""
        with self._changed:
            if self._closing.is_set():
                return
            known = self._readings.get(row.id)
            if known is None:
                known = self._readings[row.id] = _Reading(row)
                self._threads.submit(self._run, known)
            elif known.cancelled.is_set() or known.ending:
                known.again = row

    def cancel(self, context_id: str) -> bool:
        """End the reading of a context and keep what was read; False where it is not read now."""
        with self._changed:
            reading = self._readings.get(context_id)
            if reading is None:
                return False
            reading.cancelled.set()
            reading.again = None
            if reading.begun:
                return True
            del self._readings[context_id]  # no thread has come to it yet
            self._changed.notify_all()
        self._note_end(reading, "cancelled", None)
        return True

    @contextlib.contextmanager
    def stopped(self, row: ContextRow, timeout_s: float) -> Iterator[None]:
        """Nobody reads ``row`` while the block runs: a reading is ended before, and one that is
        asked for meanwhile begins after it. Raises ``StillReading`` where that takes longer."""
        blocker = _Reading(row, begun=True)
        blocker.cancelled.set()
        self.cancel(row.id)
        with self._changed:
            if not self._changed.wait_for(lambda: row.id not in self._readings, timeout_s):
                raise StillReading("It is still being read: a step of the engine takes long.")
            self._readings[row.id] = blocker
        try:
            yield
        finally:
            self._leave(blocker)

    def progress(self, context_id: str) -> Progress | None:
        """How far a context that is being read is; None where it is not."""
        with self._changed:
            reading = self._readings.get(context_id)
            return reading.progress if reading is not None else None

    def eta_s(self, context_id: str) -> float | None:
        """Predicted seconds until a context is read; None where nobody knows."""
        progress = self.progress(context_id)
        eta_s = progress.snapshot()["eta_seconds"] if progress is not None else None
        return float(eta_s) if eta_s is not None else None

    def close(self) -> None:
        """End what runs, as a crash would but tidily: it goes on at the next start."""
        with self._changed:
            self._closing.set()
        self._threads.shutdown(wait=True, cancel_futures=True)

    # inside --------------------------------------------------------------------------------------

    def _run(self, reading: _Reading) -> None:
        row = reading.row
        with self._changed:
            if self._readings.get(row.id) is not reading:
                return  # cancelled while it was queued
            reading.begun = True
        try:
            self._read(reading)
        except Cancelled:
            if not self._closing.is_set():
                self._note_end(reading, "cancelled", None)
        except EngineStopped:
            log.info("reading of %s goes on at the next start", row.id)
        except KvasirError as error:
            self._note_end(reading, "failed", str(error))
        except Exception:
            log.exception("reading %s failed", row.id)
            self._note_end(reading, "failed", _FAULT)
        finally:
            self._leave(reading)

    def _leave(self, reading: _Reading) -> None:
        """Nobody reads the context any more; somebody else may."""
        with self._changed:
            del self._readings[reading.row.id]
            again = reading.again
            self._changed.notify_all()
        if again is not None and not self._closing.is_set():
            contexts = self._library.catalog.contexts
            with self._library.turn:
                row = contexts.get(again.tenant, again.id)
                if row is not None and row.status in ("cancelled", "failed"):
                    row = contexts.update(row.tenant, row.id, status="queued", error=None)
            if row is not None:
                self.take(row)

    def _begin(self, reading: _Reading) -> ContextRow | None:
        """The context as it is now; None where nothing of it is to be read."""
        library, known = self._library, reading.row
        contexts = library.catalog.contexts
        with library.turn:  # what is to be kept of it does not change meanwhile
            row = contexts.get(known.tenant, known.id)
            if row is None or row.status not in UNFINISHED or not is_of_this_model(library, row):
                return None  # one of another model goes on when that is served again
            if row.keep == "text":
                self._note_end(reading, "completed", None)
                return None
            return contexts.update(row.tenant, row.id, status="in_progress")

    def _read(self, reading: _Reading) -> None:
        row = self._begin(reading)
        if row is None:
            return
        library, contexts = self._library, self._library.catalog.contexts
        sections = contexts.sections(row.id)
        progress = Progress(library, row, sum(s.n_tokens for s in sections if s.read))
        reading.progress = progress
        tell(library, row.id, "context.in_progress", progress.snapshot())
        began_s = time.monotonic()

        def unwanted() -> bool:
            return reading.cancelled.is_set() or self._closing.is_set()

        try:
            self._read_parts(row, sections, progress, unwanted)
        finally:
            read_s = time.monotonic() - began_s
            contexts.update(row.tenant, row.id, read_s=row.read_s + read_s)
        if row.definition.get("summaries"):
            summaries.make(library, row, unwanted)
        self._note_end(reading, "completed", None)

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
        # what a reading before this one has aborted may still be known to the engine
        stamp = secrets.token_hex(4)
        asked: dict[str, SectionRow] = {}

        def requests() -> Iterator[Request]:
            for section, tokens in self._missing(row, sections, ids, progress, unwanted):
                request = Request(
                    id=f"read-{row.id}-{stamp}-{section.index}",
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

    def _missing(
        self,
        row: ContextRow,
        sections: tuple[SectionRow, ...],
        ids: dict[int, bytes],
        progress: Progress,
        unwanted: summaries.Unwanted,
    ) -> Iterator[tuple[SectionRow, list[int]]]:
        """The parts that are not kept, with their ids; those that are found kept are marked."""
        library = self._library
        namespace = library.namespace_of(row.tenant)
        for section in sections:
            if unwanted():
                raise Cancelled
            if section.read and disk(library) is None:
                continue
            tokens = unpacked(ids[section.index])
            if not kept(library, namespace, tokens):
                if section.read:  # lost since it was marked: cleared, damaged, a disk that failed
                    progress.lose_part(section.n_tokens)
                yield section, tokens
            elif not section.read:
                library.catalog.contexts.mark_read(
                    row.id, section.index, reused_tokens=section.n_tokens
                )
                progress.find_part(section.n_tokens)

    def _settle(self, done: Done, unwanted: summaries.Unwanted) -> None:
        """Wait until what was computed is durable, where there is a tier that lasts. What gave way
        to others before it was saved is computed again."""
        library, request = self._library, done.request
        until_s = time.monotonic() + _SETTLE_S
        for attempt in range(1, _ATTEMPTS + 1):
            while disk(library) is not None and time.monotonic() < until_s:
                where = library.engine.residence(request.namespace, request.tokens)
                if where.durable:
                    return
                if not where.saving:
                    break
                if unwanted():
                    raise Cancelled
                time.sleep(_LOOK_S)
            if disk(library) is None:
                return
            again = replace(request, id=f"{request.id}-{attempt}")
            for _ in run_all(library.engine, [again], width=1, cancelled=unwanted):
                pass
        raise KvasirError(
            "What was computed could not be kept on disk. `kvasir cache size` and the server's log "
            "say how storage is doing; create it again to go on."
        )

    def _note_end(self, reading: _Reading, status: ContextStatus, error: str | None) -> None:
        """Note how a reading ended, where everybody looks."""
        with self._changed:
            reading.ending = True
        try:
            tell_end(self._library, reading.row, status, error)
        except CatalogUnavailable:
            # it stays as one that is read; to create or cancel it, or the next start, goes on
            log.exception("how the reading of %s ended could not be noted", reading.row.id)


def hold(library: Library, row: ContextRow, namespace: bytes, ids: dict[int, bytes]) -> None:
    """Keep the KV of ``row`` from giving way to others."""
    library.engine.hold(row.id, namespace, [unpacked(each) for each in ids.values()])


def kept(library: Library, namespace: bytes, tokens: Sequence[int]) -> bool:
    """Whether all of ``tokens`` is where it survives the process and a power cut."""
    return disk(library) is not None and library.engine.residence(namespace, tokens).durable
