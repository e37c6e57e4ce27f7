"""The waiting queue: bounded in requests and tokens, in order of arrival, with honest refusals.

Invariant: ``n_tokens`` is the sum of the prompt tokens of what waits. Preempted sequences return to
the place that their arrival gives them and do not count against the bounds: what was admitted is
finished.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator

from kvasir.sched.sequence import Sequence


class WaitingQueue:
    """Sequences that hold no blocks, oldest first."""

    def __init__(self, max_requests: int, max_tokens: int) -> None:
        self._max_requests = max_requests
        self._max_tokens = max_tokens
        self._ordered: list[Sequence] = []
        self.n_tokens = 0

    def __len__(self) -> int:
        return len(self._ordered)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(tuple(self._ordered))

    @property
    def n_requests(self) -> int:
        """Requests of which at least one choice has never been admitted."""
        return len({s.request.id for s in self._ordered if s.reused < 0})

    def excess(self, n_tokens: int) -> int:
        """How many requests would have to leave before one of ``n_tokens`` may wait; 0 = none."""
        if not self._ordered:
            return 0  # whatever its size, one may always wait
        over = max(0, self.n_requests + 1 - self._max_requests)
        tokens = self.n_tokens + n_tokens - self._max_tokens
        for leaving, sequence in enumerate(self._ordered, start=1):
            if tokens <= 0:
                break
            tokens -= sequence.n_prompt
            over = max(over, leaving)
        return max(over, 1) if tokens > 0 else over

    def put(self, sequence: Sequence) -> None:
        """Queue by arrival; a preempted sequence comes back to where it stood."""
        insort(self._ordered, sequence, key=lambda s: (s.arrived_s, s.id))
        self.n_tokens += sequence.n_prompt

    def remove(self, sequence: Sequence) -> None:
        """Take ``sequence`` out; it must be in."""
        self._ordered.remove(sequence)
        self.n_tokens -= sequence.n_prompt
