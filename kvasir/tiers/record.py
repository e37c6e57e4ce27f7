"""The record: how a run of neighbouring blocks of one sequence lies in a file, header first.

    magic, version, header_bytes
    realm, namespace tag, parent key, counts, plane_bytes, created
    key of each block, token ids, digest of each plane, digest of the header
    (zeros up to the next multiple of 4,096)
    planes, one after another: layer 0 keys, layer 0 values, layer 1 keys, …

Little-endian. A plane is [n_tokens, n_kv_heads, head_dim] in the canonical layout. Only the last
block may be unfilled, a tail. A plane's digest covers the record's name and the plane's index too,
so a plane of another record, or in another place, does not verify. The digests find damage; they
do not keep out somebody who can write in the home folder.

Bytes from a file are data of unknown origin here: every number is bounded before it is used.
"""

from __future__ import annotations

import hashlib
import itertools
import struct
from dataclasses import dataclass

import xxhash

MAGIC = b"KVASIRKV"
VERSION = 1
KEY_BYTES = 32
TAG_BYTES = 16
DIGEST_BYTES = 16
ALIGNMENT = 4096
PRELUDE = struct.Struct("<8sII")
_FIELDS = struct.Struct("<32s16s32sIIIIQd")
_MOST_BLOCKS = _MOST_TOKENS = 2**24
_MOST_PLANES = 2**16
_MOST_PLANE_BYTES = 2**40
MOST_HEADER_BYTES = 2**28

Buffer = bytes | bytearray | memoryview


class Damaged(Exception):
    """A record is not what it was when it was written; says in which respect."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What the header says of a run of blocks."""

    realm: bytes  # digest of numerics, layout and tokenizer
    namespace_tag: bytes  # whose it is; the namespace itself is a secret
    parent: bytes  # key of the block before the first; zeros at the beginning of a text
    keys: tuple[bytes, ...]
    tokens: tuple[int, ...]
    block_tokens: int
    n_planes: int
    plane_bytes: int
    created_s: float  # Unix time

    @property
    def name(self) -> str:
        """What the record is called: 64 hexadecimal digits, bound to everything that it claims."""
        whole = hashlib.sha256(b"kvasir record v1")
        whole.update(_FIELDS.pack(*self._fields(), 0.0))
        for part in (*self.keys, struct.pack(f"<{len(self.tokens)}I", *self.tokens)):
            whole.update(part)
        return whole.hexdigest()

    @property
    def header_bytes(self) -> int:
        """Bytes before the zeros that precede the planes."""
        return _header_bytes(len(self.keys), len(self.tokens), self.n_planes)

    @property
    def planes_at(self) -> int:
        """Offset of the first plane."""
        return -(-self.header_bytes // ALIGNMENT) * ALIGNMENT

    @property
    def file_bytes(self) -> int:
        """Bytes of the whole file."""
        return self.planes_at + self.n_planes * self.plane_bytes

    def _fields(self) -> tuple[bytes, bytes, bytes, int, int, int, int, int]:
        return (
            self.realm,
            self.namespace_tag,
            self.parent,
            len(self.keys),
            self.block_tokens,
            len(self.tokens),
            self.n_planes,
            self.plane_bytes,
        )

    def check(self) -> None:
        """Raise ``Damaged`` where the parts contradict each other or a bound."""
        n_blocks, n_tokens = len(self.keys), len(self.tokens)
        if not 0 < n_blocks <= _MOST_BLOCKS or not 0 < self.block_tokens <= _MOST_TOKENS:
            raise Damaged(f"it claims {n_blocks} blocks of {self.block_tokens} tokens")
        if not (n_blocks - 1) * self.block_tokens < n_tokens <= n_blocks * self.block_tokens:
            raise Damaged(f"{n_tokens} tokens do not fill {n_blocks} blocks")
        if not 0 < self.n_planes <= _MOST_PLANES or not 0 < self.plane_bytes <= _MOST_PLANE_BYTES:
            raise Damaged(f"it claims {self.n_planes} planes of {self.plane_bytes} bytes")


def plane_digest(name: str, index: int, plane: Buffer) -> bytes:
    """The digest of plane ``index`` of the record ``name``."""
    digest = xxhash.xxh3_128(bytes.fromhex(name) + struct.pack("<I", index))
    digest.update(plane)
    return digest.digest()


def encode_header(record: Record, digests: list[bytes]) -> bytes:
    """The file's bytes before the planes, whose ``digests`` are given."""
    record.check()
    parts = [
        PRELUDE.pack(MAGIC, VERSION, record.header_bytes),
        _FIELDS.pack(*record._fields(), record.created_s),
        *record.keys,
        struct.pack(f"<{len(record.tokens)}I", *record.tokens),
        *digests,
    ]
    body = b"".join(parts)
    header = body + xxhash.xxh3_128_digest(body)
    return header + bytes(record.planes_at - len(header))


def header_size(prelude: Buffer) -> int:
    """Bytes of the header that begins with ``prelude``; raises ``Damaged`` where there is none."""
    magic, version, size = PRELUDE.unpack(prelude)
    if magic != MAGIC:
        raise Damaged("it does not begin as a record does")
    if version != VERSION:
        raise Damaged(f"its format is version {version}; version {VERSION} is read")
    if not PRELUDE.size + _FIELDS.size < size <= MOST_HEADER_BYTES:
        raise Damaged(f"it claims a header of {size} bytes")
    return int(size)


def decode_header(header: Buffer) -> tuple[Record, list[bytes]]:
    """The record that ``header`` (prelude included, padding excluded) describes, and the digests of
    its planes. Raises ``Damaged``."""
    header = bytes(header)
    if header_size(header[: PRELUDE.size]) != len(header):
        raise Damaged("its header has another length than it claims")
    body, digest = header[:-DIGEST_BYTES], header[-DIGEST_BYTES:]
    if xxhash.xxh3_128_digest(body) != digest:
        raise Damaged("its header does not match its digest")
    fields = _FIELDS.unpack_from(body, PRELUDE.size)
    realm, tag, parent, n_blocks, block_tokens, n_tokens, n_planes, plane_bytes, created_s = fields
    if len(header) != _header_bytes(n_blocks, n_tokens, n_planes):
        raise Damaged("its counts do not make up its header")
    at = PRELUDE.size + _FIELDS.size
    tokens_at = at + n_blocks * KEY_BYTES
    digests_at = tokens_at + 4 * n_tokens
    record = Record(
        realm=realm,
        namespace_tag=tag,
        parent=parent,
        keys=tuple(_cut(body[at:tokens_at], KEY_BYTES)),
        tokens=struct.unpack_from(f"<{n_tokens}I", body, tokens_at),
        block_tokens=block_tokens,
        n_planes=n_planes,
        plane_bytes=plane_bytes,
        created_s=created_s,
    )
    record.check()
    return record, _cut(body[digests_at:], DIGEST_BYTES)


def _header_bytes(n_blocks: int, n_tokens: int, n_planes: int) -> int:
    fixed = PRELUDE.size + _FIELDS.size + DIGEST_BYTES
    return fixed + n_blocks * KEY_BYTES + n_tokens * 4 + n_planes * DIGEST_BYTES


def _cut(data: bytes, size: int) -> list[bytes]:
    edges = range(0, len(data) + 1, size)
    return [data[a:b] for a, b in itertools.pairwise(edges)]
