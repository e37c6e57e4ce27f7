"""What an extraction still has left of its limits, kept while files are read.

Every reader charges what it makes *before* it keeps it, and asks before each unit (a page of a PDF,
else a whole file) whether to read it. Invariant: no reader's text and unpacked bytes outgrow the
limits, whatever its file says of its own size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kvasir.core.errors import UnreadableFile
from kvasir.documents.limits import MIB, ExtractLimits

WHOLE = -1  # the unit of a file that is read in one piece
Unit = tuple[int, int]  # member of the collection (0 for a single file), page or WHOLE


@dataclass(frozen=True, slots=True)
class Place:
    """Where reading has got to: the unit, and how many of how many are done."""

    unit: Unit
    done: int
    total: int


class Exhausted(UnreadableFile):
    """The extraction has used up what it may take; nothing more of the file is read."""


def _say_nothing(_: Place) -> None:
    return


class Allowance:
    """What is left of ``limits`` for a file of ``file_bytes``. ``tell`` hears of each unit before
    it is read; ``skip`` names units that are not to be read, and why. For one thread."""

    def __init__(
        self,
        limits: ExtractLimits,
        file_bytes: int,
        *,
        tell: Callable[[Place], None] = _say_nothing,
        skip: Mapping[Unit, str] | None = None,
    ) -> None:
        self.limits = limits
        self.member = 0
        self.members = 0  # of a collection; none where a single file is read
        self._text_left = self._unpacked_left = limits.allowed_bytes(file_bytes)
        self._said_mib = max(1, limits.allowed_bytes(file_bytes) // MIB)
        self._tell = tell
        self._skip = skip or {}
        self._cpu_end_s = time.process_time() + 0.9 * limits.cpu_s
        self._wall_end_s = time.monotonic() + 0.9 * limits.wall_s

    @property
    def late(self) -> bool:
        """Whether the time is nearly over: finish with what there is."""
        return time.process_time() > self._cpu_end_s or time.monotonic() > self._wall_end_s

    @property
    def unpacked_left(self) -> int:
        """Bytes that may still come out of archives."""
        return self._unpacked_left

    def charge_text(self, n_bytes: int) -> None:
        """Take ``n_bytes`` of text. Raises ``Exhausted``."""
        self._text_left -= n_bytes
        if self._text_left < 0:
            self._refuse("text")

    def charge_unpacked(self, n_bytes: int) -> None:
        """Take ``n_bytes`` that came out of an archive. Raises ``Exhausted``."""
        self._unpacked_left -= n_bytes
        if self._unpacked_left < 0:
            self._refuse("unpacked data")

    def _refuse(self, of_what: str) -> None:
        raise Exhausted(
            f"it holds more than the {self._said_mib} MiB of {of_what} that is taken from a file "
            f"of its size (up to {self.limits.expansion} times the file); split it into smaller "
            "files"
        )

    def begin(self, page: int, done: int, total: int) -> str | None:
        """Say that this page (or ``WHOLE``) of the current member is read now, as what is done of
        the file so far. Gives the reason where it must not be read."""
        unit = (self.member, page)
        if unit in self._skip:
            return self._skip[unit]
        if self.members:
            done, total = self.member, self.members
        self._tell(Place(unit, done, total))
        return None
