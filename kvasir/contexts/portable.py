"""One context as one file: its text, the KV of its parts, and a signature over all of it.

    magic, then parts (each its length and its bytes), then the manifest, its Ed25519 signature, its
    length, and the magic again

The manifest comes last, so that a file is written in one pass; it names every part with its kind,
its size and its SHA-256, and is what is signed. Nothing in the file is bound to a tenant.

Invariants: no byte of a part is used before its digest was compared with a manifest whose signature
verified; a part is read whole only after its size was compared with the file and with a bound; KV
whose signer is not trusted is never taken in.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from kvasir.catalog.values import ContextRow
from kvasir.contexts.definition import Definition
from kvasir.contexts.library import Library
from kvasir.contexts.outline import unpacked
from kvasir.core.errors import KvasirError, NotStored, ParcelRefused, RequestError

MAGIC = b"KVASIRC1"
_LENGTH_BYTES = 8
_SIGNATURE_BYTES = 64
_MOST_MANIFEST_BYTES = 64 * 2**20
_MOST_TEXT_BYTES = 256 * 2**20
_MOST_PARCEL_BYTES = 64 * 2**20
_FOOTER_BYTES = _SIGNATURE_BYTES + _LENGTH_BYTES + len(MAGIC)
_TEXT, _KV = "text", "kv"


class BadFile(RequestError):
    """A file that is not an exported context, or not as it was when it was signed."""

    def __init__(self, why: str) -> None:
        super().__init__(
            f"This is not a context that Kvasir exported, or it was damaged or changed since: "
            f"{why}. Export it again and send the file as it is.",
            param="file",
            code="invalid_context_file",
        )


@dataclass(frozen=True, slots=True)
class Imported:
    """What a file holds, verified: the definition, and what the manifest says beside parts."""

    definition: Definition
    about: Mapping[str, Any]
    signer: str  # public key in hex


def signing_key(path: Path) -> Ed25519PrivateKey:
    """The home's own key at ``path``, made where there is none (mode 0600)."""
    try:
        return Ed25519PrivateKey.from_private_bytes(path.read_bytes())
    except FileNotFoundError:
        key = Ed25519PrivateKey.generate()
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as stream:
            stream.write(key.private_bytes_raw())
            stream.flush()
            os.fsync(stream.fileno())
        return key
    except ValueError as error:
        raise KvasirError(
            f"{path} does not hold a signing key. Remove it and a new one is made; servers that "
            "trust the old one have to be told."
        ) from error


def public_hex(key: Ed25519PrivateKey) -> str:
    """By which a signer is known to others."""
    return key.public_key().public_bytes_raw().hex()


def export(library: Library, row: ContextRow, key: Ed25519PrivateKey) -> Iterator[bytes]:
    """The file of ``row``, piece by piece, signed with ``key``. Of its KV, what is kept now. Raises
    ``NoContext`` where it was deleted since, before there is a first piece."""
    definition, parts_ids = library.definition(row), library.tokens(row)
    return _pieces(library, row, definition, list(parts_ids.values()), key)


def _pieces(
    library: Library,
    row: ContextRow,
    definition: Definition,
    parts_ids: Sequence[bytes],
    key: Ed25519PrivateKey,
) -> Iterator[bytes]:
    parts: list[dict[str, Any]] = []

    def part(kind: str, data: bytes) -> Iterator[bytes]:
        digest = hashlib.sha256(data).hexdigest()
        parts.append({"kind": kind, "bytes": len(data), "sha256": digest})
        yield len(data).to_bytes(_LENGTH_BYTES, "little")
        yield data

    yield MAGIC
    text = json.dumps(definition.to_json(), ensure_ascii=True)
    yield from part(_TEXT, text.encode("ascii"))
    namespace = library.namespace_of(row.tenant)
    if row.keep == "kv":
        for ids in parts_ids:
            # what is not kept, or not any more, is read anew by whoever takes the file in
            with contextlib.suppress(NotStored):
                for parcel in library.engine.parcels(namespace, unpacked(ids)):
                    yield from part(_KV, parcel)
    about = {
        "format": 1,
        "name": row.name,
        "model": row.model,
        "fingerprint": row.fingerprint,
        "tokens": row.tokens,
        "metadata": dict(row.metadata),
        "unread": [dict(each) for each in row.unread],
        "summaries": bool(row.definition.get("summaries")),
        "keep": row.keep,
        "exported_at": library.now(),
        "signer": public_hex(key),
        "parts": parts,
    }
    manifest = json.dumps(about, ensure_ascii=True).encode("ascii")
    yield manifest
    yield key.sign(MAGIC + manifest)
    yield len(manifest).to_bytes(_LENGTH_BYTES, "little")
    yield MAGIC


class PortableFile:
    """An exported context in a file. Use as a context manager; raises ``BadFile``."""

    def __init__(self, path: Path) -> None:
        self._stream: BinaryIO = path.open("rb")
        try:
            self._size = os.fstat(self._stream.fileno()).st_size
            manifest = self._manifest()
            self.about = _parsed(manifest)
            self.signer = str(self.about.get("signer", ""))
            self._parts = self._checked_parts()
        except BaseException:
            self._stream.close()
            raise

    def __enter__(self) -> PortableFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def definition(self) -> Definition:
        """What the context is made of."""
        kind, start, n_bytes, digest = self._parts[0]
        if kind != _TEXT:
            raise BadFile("its first part is not its text")
        data = self._part(start, n_bytes, digest)
        try:
            return Definition.from_json(json.loads(data))
        except (ValueError, RecursionError) as error:
            raise BadFile(str(error)) from error

    def check(self) -> None:
        """Read all of it once, so that nothing is begun with a file that is damaged further on."""
        for kind, start, n_bytes, digest in self._parts[1:]:
            if kind != _KV:
                raise BadFile(f"it has a part of the kind {kind!r}")
            self._part(start, n_bytes, digest)

    def parcels(self) -> Iterator[bytes]:
        """The KV, part by part."""
        for _, start, n_bytes, digest in self._parts[1:]:
            yield self._part(start, n_bytes, digest)

    def _part(self, start: int, n_bytes: int, digest: str) -> bytes:
        self._stream.seek(start)
        data = self._stream.read(n_bytes)
        if hashlib.sha256(data).hexdigest() != digest:
            raise BadFile("a part of it has another digest than was signed")
        return data

    def _manifest(self) -> bytes:
        """The manifest, after its signature has verified."""
        least = 2 * len(MAGIC) + _SIGNATURE_BYTES + _LENGTH_BYTES
        if self._size < least or self._stream.read(len(MAGIC)) != MAGIC:
            raise BadFile("it does not begin as one")
        self._stream.seek(self._size - _FOOTER_BYTES)
        footer = self._stream.read(_FOOTER_BYTES)
        if footer[-len(MAGIC) :] != MAGIC:
            raise BadFile("it does not end as one; was it cut off?")
        length = int.from_bytes(
            footer[_SIGNATURE_BYTES : _SIGNATURE_BYTES + _LENGTH_BYTES], "little"
        )
        if length > min(_MOST_MANIFEST_BYTES, self._size - least):
            raise BadFile("its manifest is larger than itself")
        self._end = self._size - _FOOTER_BYTES - length
        self._stream.seek(self._end)
        manifest = self._stream.read(length)
        signer = str(_parsed(manifest).get("signer", ""))
        try:
            key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(signer))
            key.verify(footer[:_SIGNATURE_BYTES], MAGIC + manifest)
        except (ValueError, InvalidSignature) as error:
            raise BadFile("its signature does not verify") from error
        return manifest

    def _checked_parts(self) -> list[tuple[str, int, int, str]]:
        """Kind, offset, size and digest of every part; together they fill the file exactly."""
        found: list[tuple[str, int, int, str]] = []
        at = len(MAGIC)
        parts = self.about.get("parts")
        for part in parts if isinstance(parts, list) else ():
            try:
                kind, n_bytes, digest = str(part["kind"]), int(part["bytes"]), str(part["sha256"])
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                raise BadFile("its manifest names a part without kind, size or digest") from error
            most = _MOST_TEXT_BYTES if kind == _TEXT else _MOST_PARCEL_BYTES
            if not 0 <= n_bytes <= min(most, self._end - at - _LENGTH_BYTES):
                raise BadFile("a part of it is larger than may be")
            self._stream.seek(at)
            written = int.from_bytes(self._stream.read(_LENGTH_BYTES), "little")
            if written != n_bytes:
                raise BadFile("a part of it has another size than was signed")
            found.append((kind, at + _LENGTH_BYTES, n_bytes, digest))
            at += _LENGTH_BYTES + n_bytes
        if not found or at != self._end:
            raise BadFile("its parts do not fill it")
        return found


def take_kv(
    library: Library, tenant: str, file: PortableFile, trusts: Callable[[str], bool]
) -> int:
    """Take the KV of ``file`` in for ``tenant``, if its signer is one that ``trusts`` names; how
    many tokens. KV of another model or made otherwise is left out: it is computed anew."""
    if not trusts(file.signer):
        return 0
    namespace = library.namespace_of(tenant)
    tokens = 0
    for parcel in file.parcels():
        try:
            tokens += library.engine.accept(namespace, parcel)
        except (ParcelRefused, NotStored):
            return tokens  # of another realm, or there is no room, which goes for the others too
    return tokens


def _parsed(manifest: bytes) -> dict[str, Any]:
    try:
        data = json.loads(manifest)
    except (ValueError, RecursionError) as error:
        raise BadFile("its manifest is not JSON") from error
    if not isinstance(data, dict):
        raise BadFile("its manifest is not an object")
    return data
