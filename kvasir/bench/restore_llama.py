"""llama.cpp's way of keeping KV: a sequence's state in a file, as its server's slots are saved.

A process of its own, in an interpreter that has ``llama_cpp`` and nothing else of Kvasir's: reads
one request as JSON from stdin and answers with one line of JSON.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama_cpp import llama_cpp as c

from kvasir.bench.candidate import Setup
from kvasir.bench.engines.llama_cpp import LlamaCppCandidate

_WARM_UP_TOKENS = 32


def main() -> None:
    """Answer the request on stdin. What llama.cpp prints goes to stderr."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    wanted = json.load(sys.stdin)
    candidate = LlamaCppCandidate(Setup(**wanted["setup"]))
    try:
        work = {"save": _save, "restore": _restore}[wanted["op"]]
        found = work(candidate, wanted["text"], wanted["questions"], Path(wanted["state"]))
    finally:
        candidate.close()
    with replies:
        replies.write(json.dumps({**found, "versions": candidate.versions()}) + "\n")


def _save(
    candidate: LlamaCppCandidate,
    text: Sequence[int],
    questions: Sequence[Sequence[int]],
    state: Path,
) -> dict[str, Any]:
    """Ask a question cold and another on what is in memory, then keep the text's state."""
    context = candidate.context
    _warm_up(candidate, text)
    began_s = time.perf_counter()
    context.read([*text, *questions[0]], start=0)
    cold_s = time.perf_counter() - began_s

    began_s = time.perf_counter()
    context.cut(len(text))
    context.read(questions[1], start=len(text))
    memory_s = time.perf_counter() - began_s

    context.cut(len(text))
    began_s = time.perf_counter()
    tokens = (c.llama_token * len(text))(*text)
    n_bytes = c.llama_state_seq_save_file(context.handle, os.fsencode(state), 0, tokens, len(text))
    if not n_bytes:
        raise RuntimeError("llama.cpp saved no state")
    fd = os.open(state, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    save_s = time.perf_counter() - began_s
    return {
        "cold_s": cold_s,
        "memory_s": memory_s,
        "save_s": save_s,
        "n_bytes": state.stat().st_size,
    }


def _restore(
    candidate: LlamaCppCandidate,
    text: Sequence[int],
    questions: Sequence[Sequence[int]],
    state: Path,
) -> dict[str, Any]:
    """Bring the state back and ask on it."""
    context = candidate.context
    _warm_up(candidate, text)
    tokens, n_tokens = (c.llama_token * len(text))(), ctypes.c_size_t()
    began_s = time.perf_counter()
    n_bytes = c.llama_state_seq_load_file(
        context.handle, os.fsencode(state), 0, tokens, len(text), ctypes.byref(n_tokens)
    )
    load_s = time.perf_counter() - began_s
    if not n_bytes or list(tokens) != list(text):
        raise RuntimeError("llama.cpp brought back no state, or another text's")
    context.read(questions[0], start=len(text))
    return {"first_s": time.perf_counter() - began_s, "load_s": load_s}


def _warm_up(candidate: LlamaCppCandidate, text: Sequence[int]) -> None:
    """Compute something once and forget it, as a server does before it takes requests."""
    candidate.context.read(text[-_WARM_UP_TOKENS:], start=0)
    candidate.context.cut(0)


if __name__ == "__main__":
    main()
