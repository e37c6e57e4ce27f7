"""Samples the limits of the machine, in the run whose figures they are compared with."""

from __future__ import annotations

from kvasir.bench.machine_limits import LimitSamples
from kvasir.kernels.native import limits
from kvasir.kernels.native.library import Isa


class LimitSampler:
    """Samples the limits whenever it is told to."""

    def __init__(self, isa: Isa, threads: tuple[int, ...], buffer_bytes: int) -> None:
        self._isa = isa
        self._most_threads = max(threads)
        self._buffer_bytes = buffer_bytes
        self._reads: dict[int, list[float]] = {n: [] for n in sorted(set(threads))}
        self._peaks: dict[str, list[float]] = {kind: [] for kind in limits.KINDS}

    def sample(self) -> None:
        """Measure everything once; takes about a second."""
        for n, rates in self._reads.items():
            rates.append(limits.read_rate(n, self._buffer_bytes))
        for kind, rates in self._peaks.items():
            rates.append(limits.peak_rate(self._isa, kind, self._most_threads))

    @property
    def complete(self) -> bool:
        """Whether every limit was measured at least once."""
        return all((*self._reads.values(), *self._peaks.values()))

    def samples(self) -> LimitSamples:
        """What was measured so far."""
        return LimitSamples(
            read_bytes_per_s={n: tuple(rates) for n, rates in self._reads.items()},
            peak_operations_per_s={kind: tuple(rates) for kind, rates in self._peaks.items()},
        )
