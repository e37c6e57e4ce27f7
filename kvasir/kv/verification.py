"""Every stored record read again, in the background, because somebody asked for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from kvasir.core.tiers import KeptRecord
from kvasir.kv.moves import Load, Moved
from kvasir.kv.stored import StoredTiers


class Verification:
    """One reading of all records; ``ended`` is told those that did not verify."""

    def __init__(
        self,
        stored: StoredTiers,
        ended: Callable[[Sequence[KeptRecord]], None],
    ) -> None:
        self._stored = stored
        self._ended = ended
        self._left = deque(stored.kept())
        self._reading: tuple[int, KeptRecord] | None = None
        self._damaged: list[KeptRecord] = []
        self._read_next()

    @property
    def done(self) -> bool:
        """Whether every record has been read."""
        return self._reading is None

    def moved(self, moved: Moved) -> None:
        """A load has ended; others' are ignored."""
        if self._reading is None or self._reading[0] != moved.id:
            return
        record = self._reading[1]
        if moved.damaged:
            self._stored.lost(record.tier, record.name, damaged=True)
            self._damaged.append(record)
        self._read_next()

    def _read_next(self) -> None:
        """One at a time, so that whoever needs stored KV meanwhile waits for one record at most."""
        if not self._left:
            self._reading = None
            self._ended(self._damaged)
            return
        record = self._left.popleft()
        load_id = self._stored.next_id()
        self._reading = (load_id, record)
        self._stored.mover.load(
            Load(
                id=load_id,
                tier=record.tier,
                record=record.name,
                first=0,
                blocks=(),
                n_bytes=record.n_bytes,
            )
        )
