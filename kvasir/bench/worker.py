"""A worker process: one engine, commanded by JSON lines on stdin, answering on stdout.

Standard library only (see the package). One message is one line: ``{"op": ..., ...}`` in,
``{"ok": true, "value": ...}`` or ``{"ok": false, "error": ...}`` out, in order. What libraries
print goes to stderr, so that it cannot mix with the answers. The worker ends when stdin does.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from kvasir.bench import candidate
from kvasir.bench.candidate import Candidate, Setup

Load = Callable[[Setup], Candidate]


def serve(commands: TextIO, replies: TextIO, load: Load = candidate.load) -> None:
    """Obey ``commands`` until they end."""
    engine: Candidate | None = None
    try:
        for line in commands:
            try:
                message = json.loads(line)
                if message["op"] == "load":
                    engine = load(Setup(**message["setup"]))
                    value: Any = None
                else:
                    value = _obey(engine, message)
                reply: dict[str, Any] = {"ok": True, "value": value}
            except Exception as error:  # the parent decides what a failure means
                traceback.print_exc()
                reply = {"ok": False, "error": f"{type(error).__name__}: {error}"}
            replies.write(json.dumps(reply) + "\n")
            replies.flush()
    finally:
        if engine is not None:
            engine.close()


def _obey(engine: Candidate | None, message: dict[str, Any]) -> Any:
    op = message["op"]
    if op == "memory":
        return peak_rss_bytes()
    if engine is None:
        raise ValueError(f"{op!r} before an engine was loaded")
    if op == "about":
        return {"versions": engine.versions(), "notes": engine.notes()}
    if op == "answer":
        return dataclasses.asdict(
            engine.answer(message["prompt"], message["n_tokens"], message["topic"])
        )
    if op == "answer_all":
        return dataclasses.asdict(
            engine.answer_all(message["prompts"], message["n_tokens"], message["topic"])
        )
    raise ValueError(f"unknown op {op!r}")


def peak_rss_bytes() -> int:
    """The most memory that this process has had resident.

    Read from the kernel's high-water mark of this process image: ``ru_maxrss`` would include what
    the parent had resident when it forked.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> None:
    """Run the worker on this process's stdin and stdout."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    with replies:
        serve(sys.stdin, replies)


if __name__ == "__main__":
    main()
