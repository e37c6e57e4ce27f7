"""What Kvasir asks of the system's memory: to keep what a step frees, and large pages for the pool.

A step frees and takes again the same tens of megabytes. glibc hands large freed blocks back to the
system, which clears every page anew when they are taken again; a prefill chunk of 1,000 tokens then
spends a quarter of its time in page faults.
"""

from __future__ import annotations

import ctypes
import mmap
import sys

from torch import Tensor

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -2, -3, -8  # of mallopt(3)
_LARGEST_MMAP_THRESHOLD = 32 * 2**20  # glibc refuses more
_KEPT_BYTES = 2**30  # of free memory at the top of the heap
_PAGE_BYTES = mmap.PAGESIZE
LARGE_PAGE_BYTES = 2 * 2**20
_MADV_HUGEPAGE, _MADV_POPULATE_WRITE = 14, 23  # of madvise(2)


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


def ask_for_large_pages(tensor: Tensor) -> bool:
    """Ask for large pages under ``tensor`` (on a CPU, contiguous): a new prompt's KV then costs a
    few page faults instead of thousands, and attention fewer address translations. A wish only:
    False, and nothing changed, where the system has no such pages."""
    if not sys.platform.startswith("linux") or tensor.device.type != "cpu":
        return False
    return tensor.nbytes >= LARGE_PAGE_BYTES and _advise(tensor, _MADV_HUGEPAGE)


def populate(tensor: Tensor) -> bool:
    """Have the pages of ``tensor`` (on a CPU, contiguous) ready, without changing what they hold,
    also while it is being written. False where the system cannot (Linux can since 5.14)."""
    if not sys.platform.startswith("linux") or tensor.device.type != "cpu":
        return False
    return tensor.nbytes < _PAGE_BYTES or _advise(tensor, _MADV_POPULATE_WRITE)


def _advise(tensor: Tensor, advice: int) -> bool:
    """madvise(2) on the whole pages of ``tensor``; lets other threads run meanwhile."""
    start = -(-tensor.data_ptr() // _PAGE_BYTES) * _PAGE_BYTES
    end = (tensor.data_ptr() + tensor.nbytes) // _PAGE_BYTES * _PAGE_BYTES
    try:
        madvise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return False
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return start >= end or bool(madvise(start, end - start, advice) == 0)
