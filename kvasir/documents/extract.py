"""Files to documents: a process that may fail reads a stranger's file, and is believed nothing.

``extract`` starts ``extract_child`` for one file. Whatever the child does it ends, in time: by
itself, at its own limits, or killed. Where a page or a member of a collection ended it, another
child reads the rest and that part is unread. Invariant: what ``extract`` returns satisfies
``values.check``, has safe and distinct names, and holds no more than the limits allow.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import IO, Any, NoReturn

from kvasir.core.errors import RequestError, UnreadableFile, UnsupportedFile
from kvasir.documents import extract_child as child
from kvasir.documents import media
from kvasir.documents.allowance import WHOLE, Unit
from kvasir.documents.archive import safe_name
from kvasir.documents.limits import MIB, ExtractLimits
from kvasir.documents.values import Document, Extraction, Unread, check

Progress = Callable[[int, int], None]
"""Called with how many pages (of a single file) or members (of a collection) are done, and of how
many. It is called at least every half second; what it raises stops the extraction."""

DEFAULT_LIMITS = ExtractLimits()
_PACKAGE_ROOT = str(Path(__file__).resolve().parents[2])
_CODE = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from kvasir.documents.extract_child import main; main()"
)
_BEAT_S = 0.5
_START_S = 30.0  # an interpreter on a busy machine
_MAX_NAME_CHARS = 1024
_MAX_JSON_TOTAL_BYTES = 64 * MIB
_CODES = frozenset(
    ("unsupported_file", "damaged_file", "encrypted_file", "hostile_file", "no_text", "")
)


def extract(
    path: Path,
    name: str,
    limits: ExtractLimits = DEFAULT_LIMITS,
    progress: Progress | None = None,
) -> Extraction:
    """What the file at ``path``, called ``name`` by whoever sent it, holds as text.

    Raises ``UnsupportedFile`` (its format gives no text), ``UnreadableFile`` (nothing of it can be
    read), ``OSError`` where ``path`` cannot be opened, and what ``progress`` raises. Takes at most
    ``limits.wall_s`` seconds and the start of an interpreter. May be called in threads.
    """
    name = name.encode("utf-8", "replace").decode("utf-8")  # what follows encodes it again
    deadline_s = time.monotonic() + limits.wall_s
    skip: dict[Unit, str] = {}
    with path.open("rb") as source:
        n_bytes = _size(source, name, limits)
        _look(source, name)
        while True:
            try:
                left_s = max(1.0, deadline_s - time.monotonic())
                run = _Run(source, name, replace(limits, wall_s=left_s), skip, progress)
                return run.finish(n_bytes, deadline_s)
            except _Died as death:
                skip[death.unit] = death.reason
                if not death.leaves_a_rest or len(skip) > limits.restarts:
                    raise _unreadable(name, death.reason, "hostile_file") from None


def _size(source: IO[bytes], name: str, limits: ExtractLimits) -> int:
    n_bytes = os.fstat(source.fileno()).st_size
    if n_bytes == 0:
        raise _unreadable(name, "it is empty", "no_text")
    if n_bytes > limits.file_bytes:
        reason = f"it is larger than the {limits.file_bytes // MIB} MiB that are taken; split it"
        raise _unreadable(name, reason, "hostile_file")
    return n_bytes


def _look(source: IO[bytes], name: str) -> None:
    """Refuse what its first bytes tell already, without a process."""
    try:
        media.media_type_of(name, source.read(media.FIRST_BYTES))
    except UnsupportedFile as error:
        raise _unsupported(name, str(error), error.code) from None
    except UnreadableFile as error:
        raise _unreadable(name, str(error), error.code) from None


def _unreadable(name: str, reason: str, code: str | None) -> UnreadableFile:
    return UnreadableFile(f"{_shown(name)} cannot be read: {reason}", param="file", code=code)


def _unsupported(name: str, reason: str, code: str | None) -> UnsupportedFile:
    message = f"{_shown(name)} cannot be read: {reason}; {media.WHAT_IS_TAKEN}"
    return UnsupportedFile(message, param="file", code=code)


def _shown(name: str) -> str:
    return "".join(c if c.isprintable() else "\ufffd" for c in name[:200]) or "the file"


class _Died(Exception):
    """The child ended while it read ``unit``. Whether there is a rest that another could read."""

    def __init__(self, unit: Unit, reason: str, leaves_a_rest: bool) -> None:
        super().__init__(reason)
        self.unit = unit
        self.reason = reason
        self.leaves_a_rest = leaves_a_rest


@dataclass(slots=True)
class _Received:
    """What a child has sent so far, checked."""

    documents: list[Document] = field(default_factory=list)
    text: str | None = None  # of the document whose description comes next
    text_bytes: int = 0
    json_bytes: int = 0


class _Run:
    """One child, from its start to its end."""

    def __init__(
        self,
        source: IO[bytes],
        name: str,
        limits: ExtractLimits,
        skip: dict[Unit, str],
        progress: Progress | None,
    ) -> None:
        self._name = name
        self._limits = limits
        self._progress = progress
        self._unit: Unit | None = None  # that the child reads now
        self._done, self._total = 0, 0
        self._collection = False
        source.seek(0)
        order = {
            "fd": source.fileno(),
            "name": PurePosixPath(name).name[-255:],
            "limits": asdict(limits),
            "skip": [[member, page, reason] for (member, page), reason in skip.items()],
        }
        self._child = subprocess.Popen(  # noqa: S603 - a fixed command of our own
            [sys.executable, "-I", "-c", _CODE, _PACKAGE_ROOT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=[source.fileno()],
            env={"LC_ALL": "C.UTF-8"},
            start_new_session=True,  # a Ctrl-C at the terminal is for the server alone
        )
        self._order = json.dumps(order).encode("ascii")

    def finish(self, n_bytes: int, deadline_s: float) -> Extraction:
        """What the child says. Raises ``_Died`` where it does not."""
        child_in, child_out = self._child.stdin, self._child.stdout
        try:
            if child_in is None or child_out is None:
                raise _unreadable(self._name, "the process that reads it has no pipes", None)
            _give(child_in, self._order)
            return self._receive(child_out.fileno(), n_bytes, deadline_s + _START_S)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            reason = f"the process that read it gave what cannot be right ({str(error)[:200]})"
            raise _unreadable(self._name, reason, "hostile_file") from error
        finally:
            self._child.kill()
            self._child.wait()
            for stream in (child_in, child_out):
                if stream is not None:
                    stream.close()

    def _receive(self, fd: int, n_bytes: int, deadline_s: float) -> Extraction:
        received = _Received()
        most = self._limits.allowed_bytes(n_bytes)
        while True:
            head = self._read(fd, 1 + child.LENGTH_BYTES, deadline_s)
            kind, length = head[:1], int.from_bytes(head[1:], "little")
            if kind == child.TEXT:
                received.text_bytes += length
            else:
                received.json_bytes += length
            if (
                received.text_bytes > most
                or received.json_bytes > _MAX_JSON_TOTAL_BYTES
                or (kind != child.TEXT and length > child.MAX_JSON_BYTES)
            ):
                raise ValueError("more than it may")
            payload = self._read(fd, length, deadline_s)
            if kind == child.TEXT:
                received.text = payload.decode("utf-8")
                continue
            value = json.loads(payload)
            if kind == child.PLACE:
                self._place(value)
            elif kind == child.DOCUMENT:
                received.documents.append(self._document(value, received.text))
                received.text = None
            elif kind == child.END:
                return self._end(received.documents, value)
            elif kind == child.REFUSED:
                self._refuse(value)
            else:
                raise ValueError("an unknown kind of frame")

    def _place(self, value: Any) -> None:
        member, page, done, total = (_whole_number(number) for number in value)
        self._unit = (member, page)
        self._collection = self._collection or member > 0
        self._done, self._total = min(done, total), total
        self._beat()

    def _beat(self) -> None:
        if self._progress is not None and self._total > 0:
            self._progress(self._done, self._total)

    def _document(self, value: Any, text: str | None) -> Document:
        if text is None or "\0" in text:
            raise ValueError("a document without text")
        document = Document.from_json({**value, "text": text})
        _validate(document, self._limits)
        return document

    def _end(self, documents: list[Document], unread: Any) -> Extraction:
        rows = tuple(_checked_unread(Unread(**row), None) for row in unread)
        if (
            not documents
            or len(documents) > self._limits.members
            or len(rows) > self._limits.unread
        ):
            raise ValueError("no documents, or too many")
        names = [document.name for document in documents]
        single = len(documents) == 1 and names[0] == PurePosixPath(self._name).name[-255:]
        if single:
            documents = [replace(documents[0], name=self._name)]
        elif any(safe_name(name, self._limits.depth) != name for name in names):
            raise ValueError("a name that leads elsewhere")
        elif sorted(set(names)) != names:
            raise ValueError("names that are not in order")
        if self._progress is not None:
            self._progress(max(1, self._total), max(1, self._total))
        return Extraction(tuple(documents), rows)

    def _refuse(self, value: Any) -> NoReturn:
        unsupported, code, reason = value
        if not isinstance(reason, str) or code not in _CODES:
            raise ValueError("a refusal without a reason")
        made = _unsupported if unsupported is True else _unreadable
        raise made(self._name, reason[:2000], code or None)

    def _read(self, fd: int, n_bytes: int, deadline_s: float) -> bytes:
        poll = select.poll()
        poll.register(fd, select.POLLIN | select.POLLHUP)
        data = bytearray()
        while len(data) < n_bytes:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise self._died("reading it took longer than is allowed", out_of_time=True)
            if not poll.poll(1000 * min(left_s, _BEAT_S)):
                self._beat()
                continue
            chunk = os.read(fd, min(n_bytes - len(data), MIB))
            if not chunk:
                raise self._ended()
            data += chunk
        return bytes(data)

    def _ended(self) -> RequestError | _Died:
        """Why the child has ended by itself."""
        status = self._child.wait()
        if self._unit is None:
            reason = f"the process that reads it did not start (status {status})"
            return _unreadable(self._name, reason, None)
        if status == -signal.SIGPROF:
            return self._died(f"reading it took more than {self._limits.unit_cpu_s:.0f} s")
        if status in {-signal.SIGXCPU, -signal.SIGKILL, -signal.SIGALRM}:
            return self._died("reading it took more time than is allowed", out_of_time=True)
        return self._died("its content ended the process that read it, or asked for all its memory")

    def _died(self, reason: str, *, out_of_time: bool = False) -> _Died:
        unit = self._unit or (0, WHOLE)
        rest = self._collection or unit[1] != WHOLE or self._total > 1
        return _Died(unit, reason, rest and not out_of_time)


def _give(stream: IO[bytes], order: bytes) -> None:
    try:
        stream.write(order)
        stream.close()
    except BrokenPipeError:
        return  # it has ended; why is seen where it should answer


def _validate(document: Document, limits: ExtractLimits) -> None:
    check(document)
    if document.media_type not in media.TAKEN or len(document.name) > _MAX_NAME_CHARS:
        raise ValueError("a document of a kind that is not taken")
    if (
        len(document.pages) > limits.pages
        or len(document.headings) > limits.headings
        or len(document.unread) > limits.unread
    ):
        raise ValueError("more pages or headings than it may")
    for page in document.pages:
        _short(page.label)
    for heading in document.headings:
        _short(heading.title)
    for row in document.unread:
        _checked_unread(row, len(document.pages))
    if document.encoding is not None:
        _short(document.encoding)


def _checked_unread(row: Unread, n_pages: int | None) -> Unread:
    if row.page is not None and not 0 <= _whole_number(row.page) < (n_pages or 0):
        raise ValueError("something unread on a page that is not there")
    _short(row.what), _short(row.reason)
    return row


def _whole_number(value: Any) -> int:
    if type(value) is not int:
        raise ValueError("a number that is none")
    return value


def _short(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 2000:
        raise ValueError("a text that is none, or too long")
    value.encode("utf-8")
    return value
