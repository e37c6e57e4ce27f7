"""Keep freed memory in the process: a step frees and takes again the same tens of megabytes.

glibc hands large freed blocks back to the system, which clears every page anew when they are taken
again; a prefill chunk of 1,000 tokens then spends a quarter of its time in page faults.
"""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -2, -3, -8  # of mallopt(3)
_LARGEST_MMAP_THRESHOLD = 32 * 2**20  # glibc refuses more
_KEPT_BYTES = 2**30  # of free memory at the top of the heap


def keep_freed_memory() -> str:
    """Tell the C library to keep up to 1 GiB of freed memory; says what came of it. Affects the
    whole process, and nothing where the C library is not glibc."""
    if not sys.platform.startswith("linux"):
        return "freed memory: left to the C library (only glibc's is tuned)"
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return "freed memory: left to the C library (it has no mallopt)"
    done = (
        mallopt(_ARENA_MAX, 1)  # other arenas, which threads get, give memory back all the same
        and mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        and mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
        and mallopt(_TOP_PAD, 2 * _LARGEST_MMAP_THRESHOLD)
    )
    if not done:
        return "freed memory: left to the C library (mallopt refused)"
    return "freed memory: up to 1 GiB kept for the next step"
