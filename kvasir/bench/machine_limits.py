"""What the machine can do at most, and what a token cannot do without: a share of the limit is the
time that this would take at the limits over the time that was measured.

Invariant: raw samples only; whoever asks gets times by their medians.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

# By the format of weights or KV. What they are multiplied with has 16 bits: two products of bytes.
PRODUCTS = {"bf16": ("bf16", 1), "int8": ("int8", 2), "int4": ("int8", 2)}


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitSamples:
    """Every sample of the machine's limits."""

    read_bytes_per_s: Mapping[int, tuple[float, ...]]  # by threads
    peak_operations_per_s: Mapping[str, tuple[float, ...]]  # by kind of number

    def read_s(self, n_bytes: float, threads: int) -> float:
        """Seconds in which ``n_bytes`` can be read at the fastest."""
        return n_bytes / statistics.median(self.read_bytes_per_s[threads])

    def product_s(self, operations: float, number_format: str) -> float:
        """Seconds in which so many operations on weights or KV of a format can be done."""
        kind, products = PRODUCTS[number_format]
        return products * operations / statistics.median(self.peak_operations_per_s[kind])


def limit_lines(found: LimitSamples) -> list[str]:
    """The limits in words."""
    return [
        *(
            f"memory is read at {statistics.median(rates) / 1e9:.1f} GB/s by {n} thread(s)"
            for n, rates in found.read_bytes_per_s.items()
        ),
        *(
            f"{kind} is multiplied at {statistics.median(rates) / 1e9:.0f} GFLOP/s"
            for kind, rates in found.peak_operations_per_s.items()
        ),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """Of one token of a figure in tokens per second: read or multiplied, whichever bounds it."""

    weights: str
    kv: str
    read_bytes: float = 0.0
    linear_operations: float = 0.0
    attention_operations: float = 0.0

    def least_s(self, found: LimitSamples, threads: int) -> float:
        """Seconds of a token at the limits of the machine."""
        linear_s = found.product_s(self.linear_operations, self.weights)
        product_s = linear_s + found.product_s(self.attention_operations, self.kv)
        return max(product_s, found.read_s(self.read_bytes, threads))
