"""Which model this is, by content: the digest of its files, and the ids of how its KV comes about
and of what turns text into its tokens.

Invariant: a remembered digest is used only while inode, size, modification and change time of the
file are those it was computed at. Torch-free.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from kvasir.core.errors import ModelError, ModelNotFound
from kvasir.model.atomic import written
from kvasir.model.fields import read_json_object
from kvasir.model.spec import ModelSpec

Report = Callable[[str], None]

CHUNK_BYTES = 2**20
REMEMBERED = "digests.json"  # in the cache folder
MAX_REMEMBERED = 1000
TOKENIZER_FILES = ("tokenizer.json", "special_tokens_map.json", "added_tokens.json")
TOKENIZER_CONFIG = "tokenizer_config.json"
MODEL_CONFIG = "config.json"
TELL_FROM_BYTES = 2**30  # hashing less than this takes no time worth a line


def fingerprint(files: Sequence[Path], cache: Path | None, report: Report | None = None) -> str:
    """SHA-256 (hex) over names and contents of ``files``.

    Digests are remembered in ``cache`` where it is given and can be written, so that only the first
    start with a model reads it twice. Raises ``ModelNotFound`` where a file cannot be read.
    """
    whole = hashlib.sha256(b"kvasir model fingerprint v1")
    for path in sorted(files, key=lambda path: path.name):
        name = path.name.encode()
        whole.update(len(name).to_bytes(8, "little") + name)
        whole.update(bytes.fromhex(file_digest(path, cache, report)))
    return whole.hexdigest()


def file_digest(path: Path, cache: Path | None, report: Report | None = None) -> str:
    """SHA-256 (hex) of ``path``'s content, remembered as ``fingerprint`` says."""
    try:
        key, state = str(path.resolve()), _state(path)
        remembered = _load(cache)
        known = remembered.get(key)
        if isinstance(known, dict) and known.get("state") == state:
            digest = known.get("sha256")
            if isinstance(digest, str) and len(digest) == 64:
                return digest
        if report is not None and state[1] >= TELL_FROM_BYTES:
            report(f"computing the digest of {path.name}, once")
        digest = _hash(path)
        if _state(path) != state:
            raise ModelNotFound(f"{path} changed while it was read; try again")
    except OSError as error:
        raise ModelNotFound(f"cannot read {path}: {error.strerror}") from error
    _remember(cache, remembered, key, {"state": state, "sha256": digest})
    return digest


def numerics_id(spec: ModelSpec, *, dtype: str, kv_dtype: str, attention: str) -> str:
    """The id of how KV values come about, given the weights: part of every KV key.

    Two engines with the same weights and the same id compute the same KV for the same tokens, and
    one that differs in shape, RoPE, dtype, KV dtype or attention policy has another id. The weights
    have a digest of their own, ``fingerprint``, so that a miss can say which of both is another.
    """
    parts = {
        "spec": dataclasses.asdict(spec),
        "dtype": dtype,
        "kv_dtype": kv_dtype,
        "attention": attention,
    }
    return "n2-" + hashlib.sha256(_canonical(parts)).hexdigest()


def tokenizer_id(path: Path, metadata: Mapping[str, object], cache: Path | None = None) -> str:
    """The id of what turns text into token ids, for the model at ``path``: a folder, or a GGUF file
    with ``metadata``.

    Chat templates are left out: they write the text, which shows in the ids by itself. Digests are
    remembered in ``cache`` as ``fingerprint`` says. Raises ``ModelNotFound`` where a file cannot be
    read and ``CorruptWeights`` where one is not what it should be.
    """
    parts = _tokenizer_of_folder(path, cache) if path.is_dir() else _tokenizer_of_gguf(metadata)
    return "t1-" + hashlib.sha256(_canonical(parts)).hexdigest()


def _tokenizer_of_folder(folder: Path, cache: Path | None) -> dict[str, object]:
    parts: dict[str, object] = {}
    for name in TOKENIZER_FILES:
        if (folder / name).is_file():
            parts[name] = file_digest(folder / name, cache)
    if (folder / TOKENIZER_CONFIG).is_file():
        named = read_json_object(folder / TOKENIZER_CONFIG)
        parts[TOKENIZER_CONFIG] = {k: v for k, v in named.items() if k != "chat_template"}
    if (folder / MODEL_CONFIG).is_file():  # names the beginning of a text where nothing else does
        parts[MODEL_CONFIG] = read_json_object(folder / MODEL_CONFIG).get("bos_token_id")
    return parts


def _tokenizer_of_gguf(metadata: Mapping[str, object]) -> dict[str, object]:
    return {
        key: value
        for key, value in metadata.items()
        if key.startswith("tokenizer.") and not key.startswith("tokenizer.chat_template")
    }


def _canonical(parts: Mapping[str, object]) -> bytes:
    """``parts`` as bytes that do not depend on the order in which they were found."""
    return json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()


def _state(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _load(cache: Path | None) -> dict[str, object]:
    if cache is None or not (cache / REMEMBERED).is_file():
        return {}
    try:
        return read_json_object(cache / REMEMBERED)
    except ModelError:  # a damaged memory is no memory
        return {}


def _remember(cache: Path | None, remembered: dict[str, object], key: str, entry: object) -> None:
    if cache is None or not os.access(cache, os.W_OK):
        return
    remembered[key] = entry
    while len(remembered) > MAX_REMEMBERED:
        del remembered[next(iter(remembered))]
    with written(cache / REMEMBERED) as file:
        file.write(json.dumps(remembered).encode())
