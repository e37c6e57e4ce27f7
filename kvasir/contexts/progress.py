"""How far a context is read: counted here while it goes on, told as events that can be resumed.

Invariant: the events of a context are numbered without gaps that matter: whoever asks for what came
after a number gets all that is kept behind it, and the last one says how it ended.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

from kvasir.catalog.values import ContextRow, ContextStatus
from kvasir.contexts.library import Library

_EVERY_S = 1.0  # between two events of progress
_KEPT = 64  # events of a context whose reading has ended


class Progress:
    """Of one context while its reading runs. Used by the thread that reads it; ``snapshot`` by
    any."""

    def __init__(self, library: Library, row: ContextRow, read_tokens: int) -> None:
        self._library = library
        self._row = row
        self._read_tokens = read_tokens  # of parts that are read and kept
        self._parts: dict[str, int] = {}  # request id -> tokens read of a part that is not
        self._lock = threading.Lock()
        self._began_s = time.monotonic()
        self._began_tokens = read_tokens
        self._told_s = 0.0

    def advance(self, request_id: str, tokens: int) -> None:
        """So many tokens of a part are read."""
        with self._lock:
            self._parts[request_id] = tokens
        self._tell()

    def finish_part(self, request_id: str, tokens: int) -> None:
        """A part of so many tokens is read and kept."""
        with self._lock:
            self._parts.pop(request_id, None)
            self._read_tokens += tokens
        self._tell()

    def find_part(self, tokens: int) -> None:
        """A part of so many tokens was kept already: progress, and no speed."""
        with self._lock:
            self._read_tokens += tokens
            self._began_tokens += tokens
        self._tell()

    def lose_part(self, tokens: int) -> None:
        """A part of so many tokens that was read is kept no more."""
        with self._lock:
            self._read_tokens -= tokens
            self._began_tokens -= tokens

    def snapshot(self) -> dict[str, Any]:
        """What clients are told: tokens, speed, and the seconds that are left."""
        with self._lock:
            done = min(self._row.tokens, self._read_tokens + sum(self._parts.values()))
        elapsed_s = time.monotonic() - self._began_s
        rate = (done - self._began_tokens) / elapsed_s if elapsed_s > 0 else 0.0
        left = self._row.tokens - done
        eta_s = left / rate if rate > 0 else None
        return {
            "processed_tokens": done,
            "total_tokens": self._row.tokens,
            "tokens_per_second": round(rate, 1),
            "eta_seconds": round(eta_s, 1) if eta_s is not None else None,
        }

    def _tell(self) -> None:
        now_s = time.monotonic()
        if now_s - self._told_s >= _EVERY_S:
            self._told_s = now_s
            tell(self._library, self._row.id, "context.progress", self.snapshot())


def tell(library: Library, context_id: str, kind: str, data: Mapping[str, Any]) -> int:
    """Put an event behind those of a context; its number."""
    return library.catalog.events.append(context_id, kind, dict(data), library.now())


def tell_end(library: Library, row: ContextRow, status: ContextStatus, error: str | None) -> None:
    """Note how the reading of ``row`` ended and tell it, in one; old events are forgotten."""
    now = library.now()
    library.catalog.contexts.conclude(
        row.tenant,
        row.id,
        f"context.{status}",
        {"status": status, "error": error},
        now,
        status=status,
        error=error,
        completed_at=now if status == "completed" else None,
    )
    library.catalog.events.trim(row.id, _KEPT)
