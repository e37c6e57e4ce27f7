"""Text to token ids and back, for tokenizers of the Hugging Face layout and of GGUF files.

Invariant: nothing is ever cut, padded or dropped silently (a tokenizer file may ask for it; it is
not heeded), and the text of ids is the UTF-8 reading of their concatenated bytes, so that
streaming, whole decoding and transcripts agree. Thread-safe; encoding releases the GIL.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import tokenizers
from tokenizers import models

from kvasir.core.errors import CorruptWeights, ModelNotFound, RequestError
from kvasir.model.fields import Fields, read_json_object, shorten
from kvasir.model.limits import MAX_VOCAB
from kvasir.text.gguf_bpe import add_bos_default, build_backend
from kvasir.text.spelling import BYTE_LEVEL_ALPHABET, Spelling, spelling_of

T = TypeVar("T")

_SURROGATE = re.compile("[\ud800-\udfff]")
_TOKENIZER_LIMIT_BYTES = 256 * 2**20  # the largest published tokenizer.json has 35 MB


class Tokenizer:
    """Text to token ids and back.

    ``eos_ids`` are all the ids that end an answer; ``eos_id`` is the one of them that a chat
    template writes as ``eos_token``. ``add_bos`` says that a text begins with ``bos_id``.
    Raises ``UnsupportedModel`` for a decoder that is neither byte-level nor SentencePiece and
    ``CorruptWeights`` for ids that are not of the vocabulary.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        eos_ids: frozenset[int],
        bos_id: int | None,
        add_bos: bool,
        eos_id: int | None = None,
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        if isinstance(backend.model, models.BPE) and backend.model.dropout is not None:
            backend.model.dropout = None  # BPE dropout is for training: encoding must be a function
        self._backend = backend
        self._plain: tokenizers.Tokenizer | None = None  # made when first needed
        self._plain_lock = threading.Lock()
        self._spelling = spelling_of(backend)
        self._unwritable = _unwritable_bytes(backend, self._spelling)
        added = backend.get_added_tokens_decoder()
        self._added = {id_: token.content.encode("utf-8") for id_, token in added.items()}
        self._special = frozenset(id_ for id_, token in added.items() if token.special)
        self._vocab_size = 1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1)
        if not 0 < self._vocab_size <= MAX_VOCAB:
            raise CorruptWeights(
                f"the tokenizer's largest id is {self._vocab_size - 1}; expected 0 to {MAX_VOCAB}"
            )
        wanted = [*eos_ids, *(i for i in (bos_id, eos_id) if i is not None)]
        for id_ in wanted:
            if not 0 <= id_ < self._vocab_size:
                raise CorruptWeights(
                    f"token id {id_} is named as a beginning or end of text, but the tokenizer has "
                    f"ids 0 to {self._vocab_size - 1}"
                )
        self._eos_ids = eos_ids
        self._eos_id = eos_id if eos_id is not None else min(eos_ids, default=None)
        self._bos_id = bos_id
        self._add_bos = add_bos and bos_id is not None
        # filled as tokens are met; two threads at worst compute the same entry twice
        self._bytes: list[bytes | None] = [None] * self._vocab_size

    @property
    def vocab_size(self) -> int:
        """One more than the largest id; a model's embedding may be padded to more."""
        return self._vocab_size

    @property
    def eos_ids(self) -> frozenset[int]:
        """All ids that end an answer."""
        return self._eos_ids

    @property
    def bos_id(self) -> int | None:
        """The id that begins a text, where the vocabulary has one."""
        return self._bos_id

    @property
    def bos_text(self) -> str:
        """What chat templates write as ``bos_token``; empty where there is none."""
        return "" if self._bos_id is None else self.token_text(self._bos_id)

    @property
    def eos_text(self) -> str:
        """What chat templates write as ``eos_token``; empty where there is none."""
        return "" if self._eos_id is None else self.token_text(self._eos_id)

    @property
    def strips_space(self) -> bool:
        """Whether one space at the beginning of a decoded text is a mark and no text."""
        return self._spelling.strips_space

    def encode(self, text: str, *, special: bool = True, bos: bool | None = None) -> list[int]:
        """The token ids of ``text``.

        With ``special``, special tokens written in ``text`` become their ids and the text begins
        with bos where the model wants it (once: not where ``text`` itself begins with it). Without,
        ``text`` is ordinary text throughout. ``bos`` overrules that rule: chat prompts say False,
        since their template writes bos. Raises ``RequestError`` for text that is no Unicode or has
        a character for which the vocabulary has no token.
        """
        self._check_text(text)
        backend = self._backend if special else self._plain_backend()
        # unlike encode(), the batch call releases the GIL; "fast" leaves the offsets out
        ids = backend.encode_batch_fast([text], add_special_tokens=False)[0].ids
        if bos is None:
            bos = special and self._add_bos
        if bos and self._bos_id is not None and ids[:1] != [self._bos_id]:
            ids.insert(0, self._bos_id)
        return ids

    def count(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each of ``texts`` has as ordinary text, all of them on all cores."""
        for text in texts:
            self._check_text(text)
        encodings = self._plain_backend().encode_batch_fast(list(texts), add_special_tokens=False)
        return [len(encoding) for encoding in encodings]

    def writable(self, text: str) -> tuple[str, int]:
        """``text`` with a space for each character that cannot be encoded, so that offsets stay as
        they are; and how many these were."""
        data = text.encode("utf-8", errors="surrogatepass")
        if not any(byte in data for byte in self._unwritable) and not _SURROGATE.search(text):
            return text, 0
        bad = {
            c
            for c in set(text)
            if _SURROGATE.match(c) or any(byte in c.encode() for byte in self._unwritable)
        }
        n_bad = sum(text.count(c) for c in bad)
        return text.translate({ord(c): " " for c in bad}), n_bad

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """The text of ``ids``; U+FFFD stands for bytes that are not UTF-8.

        Raises ``RequestError`` for an id that is not of the vocabulary.
        """
        data = b"".join(
            self.token_bytes(id_) for id_ in ids if not (skip_special and id_ in self._special)
        )
        if self.strips_space and data.startswith(b" "):
            data = data[1:]
        return data.decode("utf-8", errors="replace")

    def token_bytes(self, token: int) -> bytes:
        """The bytes that ``token`` adds to a text; ``RequestError`` if it is not of the vocabulary.

        Ids that the vocabulary leaves out between others stand for nothing.
        """
        if not 0 <= token < self._vocab_size:
            raise RequestError(
                f"token id {shorten(token)} is not of the vocabulary, whose ids are 0 to "
                f"{self._vocab_size - 1}"
            )
        known = self._bytes[token]
        if known is None:
            known = self._bytes[token] = self._spell(token)
        return known

    def token_text(self, token: int) -> str:
        """``token`` by itself as text, U+FFFD for parts of a character."""
        return self.token_bytes(token).decode("utf-8", errors="replace")

    def is_special(self, token: int) -> bool:
        """Whether ``token`` marks structure and is no text (end of turn, beginning of text, …)."""
        return token in self._special

    def is_added(self, token: int) -> bool:
        """Whether ``token`` is matched whole, before any other rule cuts the text."""
        return token in self._added

    def _check_text(self, text: str) -> None:
        try:
            data = text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RequestError(
                f"the text has half of a surrogate pair (U+{ord(text[error.start]):04X}) at "
                f"character {error.start}, which is no Unicode text; remove it or send the whole "
                "pair"
            ) from error
        for byte in self._unwritable:
            at = data.find(byte)
            if at >= 0:
                before = len(data[:at].decode("utf-8", errors="ignore"))
                raise RequestError(
                    f"the text has the character U+{ord(text[before]):04X} at position {before}, "
                    "for which this model's vocabulary has no token; remove or replace it"
                )

    def _spell(self, token: int) -> bytes:
        if token in self._added:
            return self._added[token]
        piece = self._backend.id_to_token(token)
        return b"" if piece is None else self._spelling.to_bytes(piece)

    def _plain_backend(self) -> tokenizers.Tokenizer:
        """A copy that reads special tokens as ordinary text: the switch is on the whole object, so
        flipping it on the shared one would change what other threads encode."""
        with self._plain_lock:
            if self._plain is None:
                plain = tokenizers.Tokenizer.from_str(self._backend.to_str())
                plain.encode_special_tokens = True
                self._plain = plain
            return self._plain


def tokenizer_from_folder(path: Path) -> Tokenizer:
    """The tokenizer of a model folder in the Hugging Face layout.

    ``tokenizer.json`` is required; ``tokenizer_config.json``, ``generation_config.json`` and
    ``config.json`` say which tokens begin and end a text. Raises ``ModelNotFound`` where the file
    is missing, ``CorruptWeights`` where one is broken or contradicts another, ``UnsupportedModel``
    for a kind that is not known.
    """
    file = path / "tokenizer.json"
    data = _read(file)
    backend = _guarded(lambda: tokenizers.Tokenizer.from_buffer(data), str(file))
    configs = {
        name: Fields(read_json_object(path / name) if (path / name).exists() else {}, name)
        for name in ("tokenizer_config.json", "generation_config.json", "config.json")
    }
    named, generation, config = configs.values()
    bos_id = _named_token(named, "bos_token", backend)
    eos_id = _named_token(named, "eos_token", backend)
    if bos_id is None and "bos_token" not in named.values:
        bos_id = next(iter(_ids(config, "bos_token_id")), None)
    eos_ids = _ids(generation, "eos_token_id") or _ids(config, "eos_token_id")
    if eos_id is not None:
        eos_ids = [*eos_ids, eos_id]
    return _guarded(
        lambda: Tokenizer(
            backend,
            eos_ids=frozenset(eos_ids),
            bos_id=bos_id,
            add_bos=named.flag("add_bos_token", _begins_with(backend, bos_id)),
            eos_id=eos_id,
        ),
        str(file),
    )


def tokenizer_from_gguf(metadata: Mapping[str, object]) -> Tokenizer:
    """The tokenizer in a GGUF file's ``metadata``: byte-level BPE of a known kind.

    Raises ``UnsupportedModel`` naming a kind that is not known and ``CorruptWeights`` where the
    metadata are incomplete or contradict themselves.
    """
    source = "the GGUF metadata"
    fields = Fields(metadata, source)
    backend = _guarded(lambda: build_backend(metadata), source)
    ids = {name: _ids(fields, f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")}
    return _guarded(
        lambda: Tokenizer(
            backend,
            eos_ids=frozenset(i for found in ids.values() for i in found),
            bos_id=next(iter(_ids(fields, "tokenizer.ggml.bos_token_id")), None),
            add_bos=fields.flag("tokenizer.ggml.add_bos_token", add_bos_default(metadata)),
            eos_id=next(iter(ids["eos"]), None),
        ),
        source,
    )


def _guarded(build: Callable[[], T], source: str) -> T:
    """``build()``, with whatever the tokenizers library throws told as ``CorruptWeights``.

    It throws plain ``Exception`` for malformed content, and a panic, which is a ``BaseException``,
    for content that its authors did not foresee.
    """
    try:
        return build()
    except BaseException as error:
        foreign = type(error) is Exception or type(error).__name__ == "PanicException"
        if foreign or isinstance(error, ValueError | TypeError | OverflowError):
            reason = str(error)[:200]
            raise CorruptWeights(f"{source} is no usable tokenizer: {reason}") from error
        raise


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            data = stream.read(_TOKENIZER_LIMIT_BYTES + 1)
    except OSError as error:
        raise ModelNotFound(f"cannot read {file}: {error.strerror}") from error
    if len(data) > _TOKENIZER_LIMIT_BYTES:
        raise CorruptWeights(f"{file} is longer than {_TOKENIZER_LIMIT_BYTES} bytes")
    return data


def _named_token(fields: Fields, key: str, backend: tokenizers.Tokenizer) -> int | None:
    """The id of the token that ``key`` names as a string or as an object with its content."""
    value = fields.values.get(key)
    if isinstance(value, Mapping):
        value = value.get("content")
    if value is None:
        return None
    if not isinstance(value, str):
        raise CorruptWeights(f"{fields.source} says {key} = {shorten(value)}; expected a token")
    return backend.token_to_id(value)


def _ids(fields: Fields, key: str) -> list[int]:
    """The id or ids under ``key``; none where it is absent."""
    value = fields.values.get(key)
    if value is None:
        return []
    ids: Sequence[object] = value if isinstance(value, list) else [value]
    found = [
        i for i in ids if isinstance(i, int) and not isinstance(i, bool) and 0 <= i < MAX_VOCAB
    ]
    if len(found) != len(ids):
        raise CorruptWeights(f"{fields.source} says {key} = {shorten(value)}; expected token ids")
    return found


def _begins_with(backend: tokenizers.Tokenizer, bos_id: int | None) -> bool:
    """Whether the tokenizer's own post-processor begins a text with bos."""
    return bos_id is not None and backend.encode("a").ids[:1] == [bos_id]


def _unwritable_bytes(backend: tokenizers.Tokenizer, spelling: Spelling) -> tuple[bytes, ...]:
    """The bytes of UTF-8 that encoding would drop without a word: those that a byte-level BPE has
    neither a token nor an unknown token for (SmolLM2 lacks some control characters)."""
    model = backend.model
    if not spelling.byte_level or getattr(model, "unk_token", None) is not None:
        return ()
    never = {0xC0, 0xC1, *range(0xF5, 0x100)}  # do not occur in UTF-8
    return tuple(
        bytes([byte])
        for character, byte in sorted(BYTE_LEVEL_ALPHABET.items())
        if byte not in never and model.token_to_id(character) is None
    )
