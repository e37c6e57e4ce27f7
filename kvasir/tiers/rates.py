"""How fast something is done, learnt from how long it took."""

from __future__ import annotations

_FADING = 0.8  # what the past keeps of its weight with each measurement
_LEAST_BYTES = 256 * 2**10  # less tells of the cost of beginning, not of the rate
_EXPECTED_BYTES = 4 * 2**20  # the weight of the expectation


class Rate:
    """Bytes per second: an expectation that gives way to measurements, of which the newest weigh
    most (exponentially fading sums of bytes and of seconds, so long ones count more)."""

    def __init__(self, expected_bytes_per_s: float) -> None:
        self._bytes = self._seconds = 0.0
        self._expected_bytes = float(_EXPECTED_BYTES)
        self._expected_s = _EXPECTED_BYTES / expected_bytes_per_s

    def learn(self, n_bytes: int, seconds: float) -> None:
        """``n_bytes`` took ``seconds``; small ones are passed over."""
        if n_bytes < _LEAST_BYTES or seconds <= 0:
            return
        self._bytes = self._bytes * _FADING + n_bytes
        self._seconds = self._seconds * _FADING + seconds
        self._expected_bytes *= _FADING
        self._expected_s *= _FADING

    @property
    def bytes_per_s(self) -> float:
        """The best guess."""
        return (self._bytes + self._expected_bytes) / (self._seconds + self._expected_s)

    @property
    def measured_bytes_per_s(self) -> float:
        """What was measured; 0 before anything was."""
        return self._bytes / self._seconds if self._seconds else 0.0
