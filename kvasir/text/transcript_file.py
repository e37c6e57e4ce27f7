"""Transcripts on disk: which token ids stand for which conversation, kept over restarts.

- What ``put`` has written survives the end of the process, however it ends. A power cut may take
  the last transcripts and damages none (SQLite: write-ahead log, ``synchronous=NORMAL``).
- No row that is read is trusted: it counts if its checksum, types, sizes and ids are in order, and
  is dropped otherwise. A damaged file is set aside (``transcript_db``).
- Of what the file holds, at most ``capacity_bytes`` are kept: rows of other tokenizers go first,
  then the least recently used.
- No error reaches a caller who only wants an answer: the first one ends the use of the file, and is
  logged. ``clear`` is for the owner, who is told.

Thread-safe.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import sqlite3
import sys
import threading
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from kvasir.core.realm import PART_BYTES
from kvasir.text import transcript_db

log = logging.getLogger(__name__)

KEY_BYTES = 32
_ENTRY_BYTES = 512  # a transcript beside its ids: key, digest, objects, its place in tables
_MOST_BYTES_PER_CAPACITY = 4  # for pages that are half empty, and the log
_SLACK_BYTES = 16 * 2**20  # for the log of a small file
_MOST_CHARS = 2**40
_MOST_USES = 2**62


@dataclass(frozen=True, slots=True)
class Transcript:
    """The token ids of a text, which is known by its length and SHA-256 digest."""

    namespace_tag: bytes
    ids: array[int]
    n_chars: int
    digest: bytes

    @property
    def size_bytes(self) -> int:
        """What it takes in memory, and counts in the file."""
        return _ENTRY_BYTES + self.ids.itemsize * len(self.ids)


class TranscriptFile:
    """The transcripts of one tokenizer in the file at ``path``, beside those of others.

    ``tokenizer_id`` is that of ``model.fingerprint``; ids are below ``vocab_size``. ``load`` opens.
    """

    def __init__(
        self, path: Path, tokenizer_id: str, *, capacity_bytes: int, vocab_size: int
    ) -> None:
        self._path = path
        self._tokenizer_id = tokenizer_id
        self._capacity_bytes = capacity_bytes
        self._vocab_size = vocab_size
        self._lock = threading.Lock()  # guards what follows
        self._db: sqlite3.Connection | None = None
        self._sizes: OrderedDict[bytes, int] = OrderedDict()  # of all rows, the next to go first
        self._size_bytes = 0
        self._last_use = 0

    def load(self) -> list[tuple[bytes, Transcript]]:
        """Open the file, made where it is missing: its transcripts with their keys, the most
        recently used last. Empty where it cannot be used; then nothing is written either."""
        with self._lock:
            return self._load()

    def put(self, key: bytes, transcript: Transcript, used: Sequence[bytes] = ()) -> None:
        """Keep ``transcript`` under ``key`` in place of what is there; ``used`` are the keys that
        were used since the last time, in that order."""
        size_bytes = transcript.size_bytes
        with self._lock:
            if self._db is None or size_bytes > self._capacity_bytes:
                return
            try:
                with transcript_db.transaction(self._db):
                    for one in used:
                        self._use(self._db, one)
                    # room first: the pages that this frees are the ones that the row then fills
                    self._size_bytes -= self._sizes.pop(key, 0)
                    self._make_room(self._db, size_bytes)
                    self._insert(self._db, key, transcript)
            except transcript_db.ERRORS as error:
                self._give_up(error)

    def clear(self, namespace_tag: bytes | None) -> None:
        """Forget the transcripts of one namespace, or all that there are. Where its own cannot be
        deleted, everything is. Raises ``ConfigError`` where not even that can be done."""
        with self._lock:
            if self._db is not None and namespace_tag is not None:
                try:
                    for key in transcript_db.delete_of(self._db, namespace_tag):
                        self._size_bytes -= self._sizes.pop(key, 0)
                    transcript_db.remove_set_aside(self._path)
                    return
                except sqlite3.Error as error:
                    log.warning(transcript_db.REMOVED, self._path, error)
            self._close()
            transcript_db.remove(self._path)
            self._load()

    def close(self) -> None:
        """Let the file go; what is put afterwards is not kept."""
        with self._lock:
            self._close()

    def _load(self) -> list[tuple[bytes, Transcript]]:
        try:
            return self._open()
        except transcript_db.ERRORS as error:
            if not transcript_db.is_damage(error):
                self._give_up(error)
                return []
            log.warning(
                "%s is damaged (%s) and set aside as %s. Conversations that were kept in it are "
                "tokenised anew when they go on; nothing needs to be done",
                self._path,
                error,
                transcript_db.set_aside_path(self._path).name,
            )
        self._close()
        try:
            transcript_db.set_aside(self._path)
            return self._open()
        except transcript_db.ERRORS as error:
            self._give_up(error)
            return []

    def _open(self) -> list[tuple[bytes, Transcript]]:
        most_bytes = _MOST_BYTES_PER_CAPACITY * self._capacity_bytes + _SLACK_BYTES
        self._db = transcript_db.connect(self._path, most_bytes)
        with transcript_db.transaction(self._db):
            found, unsound = self._read(self._db)
            self._db.executemany("DELETE FROM transcripts WHERE rowid = ?", unsound)
            self._make_room(self._db, 0)
        if unsound:
            log.warning("%d transcripts in %s were damaged and are gone", len(unsound), self._path)
        return [(key, transcript) for key, transcript in found if key in self._sizes]

    def _read(
        self, db: sqlite3.Connection
    ) -> tuple[list[tuple[bytes, Transcript]], list[tuple[int]]]:
        """The sound rows of this tokenizer, in order of their use, and the row ids of unsound ones.
        The sizes are then those of all sound rows."""
        own: list[tuple[int, bytes, Transcript]] = []
        others: list[tuple[int, bytes, int]] = []
        unsound: list[tuple[int]] = []
        for rowid, key, used, *fields in db.execute(
            "SELECT rowid, key, used, namespace_tag, n_chars, digest, ids, checksum "
            "FROM transcripts WHERE tokenizer IS ?",
            [self._tokenizer_id],
        ):
            transcript = self._sound(key, *fields)
            if transcript is None or not _is_number(used, _MOST_USES):
                unsound.append((rowid,))
            else:
                own.append((used, key, transcript))
        for rowid, key, used, n_bytes in db.execute(
            "SELECT rowid, key, used, length(ids) FROM transcripts WHERE tokenizer IS NOT ?",
            [self._tokenizer_id],
        ):
            sound = _is_blob(key, KEY_BYTES) and _is_number(n_bytes, 2**31)
            if sound and _is_number(used, _MOST_USES):
                others.append((used, key, _ENTRY_BYTES + n_bytes))
            else:
                unsound.append((rowid,))
        own.sort(key=lambda row: row[0])
        others.sort(key=lambda row: row[0])
        self._last_use = max((row[0] for row in [*own[-1:], *others[-1:]]), default=0)
        self._sizes = OrderedDict((key, size) for _, key, size in others)
        self._sizes |= OrderedDict((key, found.size_bytes) for _, key, found in own)
        self._size_bytes = sum(self._sizes.values())
        return [(key, transcript) for _, key, transcript in own], unsound

    def _sound(
        self,
        key: object,
        namespace_tag: object,
        n_chars: object,
        digest: object,
        ids: object,
        checksum: object,
    ) -> Transcript | None:
        """The transcript of a row; None where something about it is not as it was written."""
        if not (
            _is_blob(key, KEY_BYTES)
            and _is_blob(namespace_tag, PART_BYTES)
            and _is_number(n_chars, _MOST_CHARS)
            and _is_blob(digest, hashlib.sha256().digest_size)
            and isinstance(ids, bytes)
            and len(ids) % 4 == 0
        ):
            return None
        numbers = _from_little_endian(ids)
        # seen as unsigned, a negative one is too large as well
        if not numbers or max(memoryview(numbers).cast("B").cast("I")) >= self._vocab_size:
            return None
        transcript = Transcript(namespace_tag, numbers, n_chars, digest)
        return transcript if checksum == self._checksum(key, transcript, ids) else None

    def _insert(self, db: sqlite3.Connection, key: bytes, transcript: Transcript) -> None:
        ids = _little_endian(transcript.ids)
        self._last_use += 1
        db.execute(
            "INSERT OR REPLACE INTO transcripts VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [
                key,
                transcript.namespace_tag,
                self._tokenizer_id,
                transcript.n_chars,
                transcript.digest,
                ids,
                self._checksum(key, transcript, ids),
                self._last_use,
            ],
        )
        self._sizes[key] = transcript.size_bytes
        self._size_bytes += transcript.size_bytes

    def _checksum(self, key: bytes, transcript: Transcript, ids: bytes) -> bytes:
        """Of a whole row. The text's digest does not tell whether the ids still are those that
        stand for it."""
        name = self._tokenizer_id.encode()
        head = b"kvasir transcript row 1" + len(name).to_bytes(8, "little") + name
        n_chars = transcript.n_chars.to_bytes(8, "little")
        fixed = key + transcript.namespace_tag + n_chars + transcript.digest
        return hashlib.sha256(head + fixed + ids).digest()

    def _use(self, db: sqlite3.Connection, key: bytes) -> None:
        if key in self._sizes:
            self._last_use += 1
            self._sizes.move_to_end(key)
            db.execute("UPDATE transcripts SET used = ? WHERE key = ?", [self._last_use, key])

    def _make_room(self, db: sqlite3.Connection, n_bytes: int) -> None:
        gone = []
        while self._size_bytes + n_bytes > self._capacity_bytes:
            key, size_bytes = self._sizes.popitem(last=False)
            self._size_bytes -= size_bytes
            gone.append((key,))
        db.executemany("DELETE FROM transcripts WHERE key = ?", gone)

    def _give_up(self, error: Exception) -> None:
        """Use the file no more, and say so; where it is damaged, the next start begins anew."""
        self._close()
        if transcript_db.is_damage(error):
            with contextlib.suppress(OSError):
                transcript_db.set_aside(self._path)
        if isinstance(error, transcript_db.Newer):
            remedy = "use that version again, or name another --home"
        else:
            remedy = "see that the folder can be written and has room, then start again"
        log.warning(
            "Conversations are remembered, but not over a restart: %s cannot be used (%s). To "
            "change that, %s",
            self._path,
            error,
            remedy,
        )

    def _close(self) -> None:
        db, self._db = self._db, None
        self._sizes.clear()
        self._size_bytes = 0
        if db is not None:
            with contextlib.suppress(sqlite3.Error):
                db.close()


def _is_blob(value: object, n_bytes: int) -> TypeGuard[bytes]:
    return isinstance(value, bytes) and len(value) == n_bytes


def _is_number(value: object, below: int) -> TypeGuard[int]:
    return isinstance(value, int) and 0 <= value < below


def _little_endian(ids: array[int]) -> bytes:
    if sys.byteorder == "big":
        ids = array("i", ids)
        ids.byteswap()
    return ids.tobytes()


def _from_little_endian(data: bytes) -> array[int]:
    ids = array("i")
    ids.frombytes(data)
    if sys.byteorder == "big":
        ids.byteswap()
    return ids
