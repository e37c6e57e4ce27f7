"""The process that reads one stranger's file, apart from the server and limited.

Started by ``extract`` as a fresh interpreter with the file already open and its order on standard
input. It limits itself before it touches the file: memory, CPU time, open files, and no writing at
all. Invariant: it answers with frames (below) and ends with one, or the process ends.

A frame is one byte for its kind, eight for the length, and the payload.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from dataclasses import asdict
from typing import Any, BinaryIO

from kvasir.core.errors import RequestError, UnsupportedFile
from kvasir.documents.allowance import Allowance, Place
from kvasir.documents.limits import ExtractLimits
from kvasir.documents.values import Extraction

PLACE = b"P"  # what is being read now: member, page, done, total
TEXT = b"T"  # UTF-8 text of the document whose description follows
DOCUMENT = b"D"  # the document without its text
END = b"E"  # all is told: what was unread in the whole
REFUSED = b"R"  # nothing is read: whether the format is unsupported, code, reason
LENGTH_BYTES = 8
MAX_JSON_BYTES = 16 * 2**20
_OPEN_FILES = 64


def _limit(limits: ExtractLimits) -> None:
    """From now on this process ends when it oversteps ``limits``."""
    cpu_s = max(1, int(limits.cpu_s))
    wanted = (
        (resource.RLIMIT_AS, limits.memory_bytes),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    )
    for kind, most in wanted:
        hard = resource.getrlimit(kind)[1]
        allowed = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (allowed, allowed))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, max(1.0, limits.wall_s))  # should the parent have gone


class _Replies:
    def __init__(self, stream: BinaryIO, unit_cpu_s: float) -> None:
        self._stream = stream
        self._unit_cpu_s = unit_cpu_s

    def send(self, kind: bytes, payload: bytes) -> None:
        self._stream.write(kind + len(payload).to_bytes(LENGTH_BYTES, "little") + payload)
        self._stream.flush()

    def send_json(self, kind: bytes, value: object) -> None:
        self.send(kind, json.dumps(value, ensure_ascii=False).encode("utf-8"))

    def tell(self, place: Place) -> None:
        """Name what is read now, and give it its CPU time."""
        self.send_json(PLACE, [*place.unit, place.done, place.total])
        signal.setitimer(signal.ITIMER_PROF, self._unit_cpu_s)

    def answer(self, extraction: Extraction) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        for document in extraction.documents:
            self.send(TEXT, document.text.encode("utf-8"))
            told = asdict(document)
            del told["text"]
            self.send_json(DOCUMENT, told)
        self.send_json(END, [asdict(row) for row in extraction.unread])

    def refuse(self, error: RequestError) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        unsupported = isinstance(error, UnsupportedFile)
        self.send_json(REFUSED, [unsupported, error.code or "", str(error)])


def main() -> None:
    """Carry out the order on standard input."""
    order: dict[str, Any] = json.loads(sys.stdin.buffer.read())
    limits = ExtractLimits(**order["limits"])
    _limit(limits)
    from kvasir.documents.reading import read  # noqa: PLC0415 - parsers, which the server never loads

    replies = _Replies(sys.stdout.buffer, limits.unit_cpu_s)
    skip = {(member, page): reason for member, page, reason in order["skip"]}
    with os.fdopen(order["fd"], "rb") as source:
        n_bytes = os.fstat(source.fileno()).st_size
        allowance = Allowance(limits, n_bytes, tell=replies.tell, skip=skip)
        try:
            replies.answer(read(source, order["name"], allowance))
        except RequestError as error:
            replies.refuse(error)
    os._exit(0)  # trees of millions of elements take long to be taken apart


if __name__ == "__main__":
    main()
