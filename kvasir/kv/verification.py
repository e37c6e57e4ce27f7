"""Every stored record read again, in the background, because somebody asked for it."""

from __future__ import annotations

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
        self._reading: dict[int, KeptRecord] = {}
        self._damaged: list[KeptRecord] = []
        for record in stored.kept():
            self._read(record)
        if not self._reading:
            ended(())

    @property
    def done(self) -> bool:
        """Whether every record has been read."""
        return not self._reading

    def moved(self, moved: Moved) -> None:
        """A load has ended; others' are ignored."""
        record = self._reading.pop(moved.id, None)
        if record is None:
            return
        if moved.problem:
            self._stored.lost(record.tier, record.name, damaged=True)
            self._damaged.append(record)
        if not self._reading:
            self._ended(self._damaged)

    def _read(self, record: KeptRecord) -> None:
        load_id = self._stored.next_id()
        self._reading[load_id] = record
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
