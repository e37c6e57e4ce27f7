"""What the machine can do at most, measured by native code: reading memory, multiplying numbers.

Invariant: every call measures anew, for some tenths of a second; nothing is remembered.
"""

from __future__ import annotations

from kvasir.core.errors import DoesNotFit
from kvasir.kernels.native.library import Isa, required

KINDS = {"bf16": 0, "int8": 1}  # native/kernels.h's Peak


def read_rate(threads: int, n_bytes: int) -> float:
    """Bytes per second that ``threads`` threads together read of a buffer of ``n_bytes``, which
    should be many times larger than the caches. Raises ``DoesNotFit`` where memory is short."""
    if threads < 1 or n_bytes < 1:
        raise ValueError(f"{threads} threads cannot read {n_bytes} bytes")
    rate: float = required().kvasir_read_rate(threads, n_bytes)
    if not rate:
        raise DoesNotFit(f"{n_bytes} bytes to measure the speed of memory could not be allocated")
    return rate


def peak_rate(isa: Isa, kind: str, threads: int) -> float:
    """Operations per second (a multiply-accumulate is two) of ``threads`` threads together on
    numbers of ``kind`` (of ``KINDS``), without memory. An instruction set that multiplies neither
    bfloat16 nor bytes is measured by its float32. Raises ``DoesNotFit`` where it cannot run."""
    if threads < 1:
        raise ValueError(f"{threads} threads cannot multiply")
    rate: float = required().kvasir_peak_rate(isa.number, KINDS[kind], threads)
    if not rate:
        raise DoesNotFit(f"the peak of {isa.name} could not be measured: {isa.against or 'memory'}")
    return rate
