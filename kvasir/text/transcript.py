"""Which token ids stand for a conversation so far, so that a follow-up extends what was generated.

A model's own answer, tokenised again, often gives other ids than those it generated, and then the
KV of the whole answer and of all that follows is lost. Transcripts keep the ids.

Invariant: ids are only used for a text that begins, character by character, with the text that they
stand for (compared by digest), so a wrong or missing entry costs reuse and never correctness.
Entries of one namespace are invisible to the others. Thread-safe; bounded in bytes.

With a file they outlive the process: once ``remember`` has returned, they are in it. Looking them
up never touches the disk.
"""

from __future__ import annotations

import hashlib
import json
import threading
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

from kvasir.core.realm import namespace_tag
from kvasir.text.tokenizer import Tokenizer
from kvasir.text.transcript_file import Transcript, TranscriptFile

Message = Mapping[str, object]


class Transcripts:
    """The token ids of conversations, least recently used first out, of ``capacity_bytes``.

    What ``file`` holds is loaded here, and what is remembered is kept in it.
    """

    def __init__(self, capacity_bytes: int, file: TranscriptFile | None = None) -> None:
        self._capacity_bytes = capacity_bytes
        self._size_bytes = 0
        self._entries: OrderedDict[bytes, Transcript] = OrderedDict()
        self._used: dict[bytes, None] = {}  # since the last entry, the file does not know yet
        self._lock = threading.Lock()  # guards the above, and is never held while the disk works
        self._file = file
        if file is not None:
            for key, entry in file.load():
                self._keep(key, entry)

    @property
    def size_bytes(self) -> int:
        """Memory held, never above the capacity."""
        return self._size_bytes

    def encode(
        self,
        namespace: bytes,
        messages: Sequence[Message],
        rendered_text: str,
        tokenizer: Tokenizer,
    ) -> list[int]:
        """The token ids of ``rendered_text``, which the template made of ``messages``.

        They begin with the ids of the longest remembered conversation that ``messages`` continue
        and whose text ``rendered_text`` begins with. No bos is added: the template writes it.
        Raises ``RequestError`` as ``Tokenizer.encode`` does.
        """
        entry = self._longest(namespace, messages, rendered_text)
        if entry is not None:
            rest = rendered_text[entry.n_chars :]
            ids = tokenizer.encode(rest, bos=False)
            if _joins(ids, rest, tokenizer):
                return [*entry.ids, *ids]
        return tokenizer.encode(rendered_text, bos=False)

    def remember(
        self,
        namespace: bytes,
        messages: Sequence[Message],
        reply_text: str,
        token_ids: Sequence[int],
        rendered_text: str,
        *,
        n_prompt: int,
        tokenizer: Tokenizer,
    ) -> bool:
        """Keep that ``token_ids`` stand for ``messages`` and the assistant's ``reply_text``.

        The first ``n_prompt`` ids are those of ``rendered_text``, as ``encode`` gave them; the
        others were generated. Of these, the longest beginning whose text is a beginning of
        ``reply_text`` is kept: an answer cut by a stop string, or followed by its end-of-turn
        token, has ids beyond its text. Returns whether anything was kept.
        """
        kept, text = _spelled(islice(token_ids, n_prompt, None), reply_text, tokenizer)
        if not kept:
            return False
        reply = {"role": "assistant", "content": reply_text}
        key = list(_digests(namespace, [*messages, reply]))[-1]
        whole = rendered_text + text
        ids = array("i", islice(token_ids, n_prompt))
        ids.extend(kept)
        digest = hashlib.sha256(_utf8(whole)).digest()
        return self._store(key, Transcript(namespace_tag(namespace), ids, len(whole), digest))

    def clear(self, tag: bytes | None = None) -> None:
        """Forget the conversations of the namespace with the tag ``tag``, or all of them, in the
        file as well. Raises ``ConfigError`` where that can neither be emptied nor removed."""
        with self._lock:
            for key, entry in list(self._entries.items()):
                if tag in (None, entry.namespace_tag):
                    self._drop(key)
        if self._file is not None:
            self._file.clear(tag)

    def close(self) -> None:
        """Let the file go; memory goes on."""
        if self._file is not None:
            self._file.close()

    def _longest(
        self, namespace: bytes, messages: Sequence[Message], rendered_text: str
    ) -> Transcript | None:
        """The longest entry for a beginning of ``messages`` whose text ``rendered_text`` begins
        with. All of them are verified in one pass over the text."""
        digests = zip(messages, _digests(namespace, messages), strict=True)
        keys = [digest for message, digest in digests if message.get("role") == "assistant"]
        with self._lock:
            found = [(self._entries[key], key) for key in keys if key in self._entries]
        best: tuple[Transcript, bytes] | None = None
        seen, hashed = 0, hashlib.sha256()
        for entry, key in sorted(found, key=lambda pair: pair[0].n_chars):
            if entry.n_chars > len(rendered_text):
                break
            hashed.update(_utf8(rendered_text[seen : entry.n_chars]))
            seen = entry.n_chars
            if hashed.digest() == entry.digest:
                best = entry, key
        if best is None:
            return None
        with self._lock:
            if best[1] in self._entries:
                self._entries.move_to_end(best[1])
                self._used.pop(best[1], None)
                self._used[best[1]] = None
        return best[0]

    def _store(self, key: bytes, entry: Transcript) -> bool:
        if entry.size_bytes > self._capacity_bytes:
            return False
        with self._lock:
            self._keep(key, entry)
            used, self._used = list(self._used), {}
        if self._file is not None:
            self._file.put(key, entry, used)
        return True

    def _keep(self, key: bytes, entry: Transcript) -> None:
        self._drop(key)
        self._entries[key] = entry
        self._size_bytes += entry.size_bytes
        while self._size_bytes > self._capacity_bytes:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: bytes) -> None:
        entry = self._entries.pop(key, None)
        self._used.pop(key, None)
        if entry is not None:
            self._size_bytes -= entry.size_bytes


def _digests(namespace: bytes, messages: Sequence[Message]) -> Iterator[bytes]:
    """A digest per message, of everything up to and including it."""
    digest = hashlib.sha256(b"kvasir transcript 1" + _prefixed(namespace)).digest()
    for message in messages:
        content = message.get("content")
        written = content if isinstance(content, str) else json.dumps(content, sort_keys=True)
        role = str(message.get("role"))
        digest = hashlib.sha256(
            digest + _prefixed(_utf8(role)) + _prefixed(_utf8(written))
        ).digest()
        yield digest


def _prefixed(data: bytes) -> bytes:
    return len(data).to_bytes(8, "little") + data


def _utf8(text: str) -> bytes:
    # a text with half a surrogate pair has a digest too; encoding it is what refuses it
    return text.encode("utf-8", errors="surrogatepass")


def _spelled(
    generated: Iterator[int], reply_text: str, tokenizer: Tokenizer
) -> tuple[list[int], str]:
    """The longest beginning of ``generated`` that spells a beginning of ``reply_text``, in whole
    characters, and what it spells."""
    reply = _utf8(reply_text)
    ids: list[int] = []
    end = 0  # bytes of the reply that ``ids`` spell
    whole = (0, 0)  # ids and bytes as far as characters are complete
    for token in generated:
        if not 0 <= token < tokenizer.vocab_size:
            break
        data = tokenizer.token_bytes(token)
        if not ids and tokenizer.strips_space and data.startswith(b" "):
            reply = b" " + reply  # a stream leaves this space out; the ids have it
        if not reply.startswith(data, end):
            break
        ids.append(token)
        end += len(data)
        if end == len(reply) or reply[end] & 0xC0 != 0x80:
            whole = len(ids), end
    return ids[: whole[0]], reply[: whole[1]].decode("utf-8", errors="surrogatepass")


def _joins(ids: Sequence[int], rest: str, tokenizer: Tokenizer) -> bool:
    """Whether ``ids``, encoded from ``rest`` by itself, may follow other ids.

    After a token that is matched whole (the end of the turn, as a rule) the text is cut anyway.
    Elsewhere a tokenizer may have taken ``rest`` for the beginning of a text and put its mark for
    that in front; then the bytes differ.
    """
    if not ids or tokenizer.is_added(ids[0]):
        return True
    return b"".join(map(tokenizer.token_bytes, ids)) == _utf8(rest)
