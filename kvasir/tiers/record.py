"""The record: how neighbouring blocks of one sequence lie in a file, header first. Version 2:

    magic, version, header_bytes
    realm tag, namespace tag, parent key, start, counts, plane_bytes, compute_s, created_s
    key of each block, token ids, digest of each block of each plane, digest of the header
    (zeros up to the next multiple of 4,096)
    planes, one after another: layer 0 keys, layer 0 values, layer 1 keys, …

Little-endian. A plane is [n_tokens, n_kv_heads, head_dim] in the canonical layout. All blocks are
full, or there is one that is not, a tail. The digests of plane 0 come first, block after block, so
that any neighbouring blocks can be read and verified alone. Each covers the record's name, the
plane's and the block's index too: bytes of another record, or from another place, do not verify.
The digests find damage; they do not keep out somebody who can write in the home folder.

Version 1 is still read, and never written. Its realm is one digest, it does not say where it
begins nor what it cost, it may end in a tail behind full blocks, and has one digest per plane.

Every version to come begins with the magic and its number, so that it is told from damage.

Bytes from a file are data of unknown origin here: every number is bounded before it is used.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import xxhash

from kvasir.core import realm as realms
from kvasir.core.geometry import KvGeometry
from kvasir.kv.keys import KEY_BYTES, NO_PARENT
from kvasir.kv.moves import Extent

MAGIC = b"KVASIRKV"
VERSION = 2
DIGEST_BYTES = 16
ALIGNMENT = 4096
PRELUDE = struct.Struct("<8sII")
_FIELDS = {
    1: struct.Struct("<32s16s32sIIIIQd"),
    2: struct.Struct("<80s16s32sQIIIIQdd"),
}
_REALM_BYTES = {1: 32, 2: realms.TAG_BYTES}
_NO_PARENT = bytes(KEY_BYTES)
_MOST_BLOCKS = _MOST_TOKENS = 2**24
_MOST_PLANES = 2**16
_MOST_PLANE_BYTES = _MOST_START = 2**40
MOST_HEADER_BYTES = 2**28

Buffer = bytes | bytearray | memoryview


class Damaged(Exception):
    """A record is not what it was when it was written; says in which respect."""


class NewerVersion(Damaged):
    """A record of a version that is not known here. Where it lies it is for a newer Kvasir to read;
    where another record was before, it is damage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What the header says of a run of blocks."""

    realm: bytes  # Realm.tag; version 1: see ``differs_in``
    namespace_tag: bytes  # whose it is; the namespace itself is a secret
    parent: bytes  # key of the block before the first; zeros at the beginning of a text
    start: int  # position of the first token; -1 in version 1, which does not say
    keys: tuple[bytes, ...]
    tokens: tuple[int, ...]
    block_tokens: int
    n_planes: int
    plane_bytes: int
    created_s: float  # Unix time
    compute_s: float = 0.0  # predicted seconds in which it could be computed again; 0 if unknown
    version: int = VERSION

    @property
    def name(self) -> str:
        """What the record is called: 64 hexadecimal digits, bound to all that it claims except for
        its two times."""
        whole = hashlib.sha256(b"kvasir record v%d" % self.version)
        whole.update(self._fields(0.0, 0.0))
        for part in (*self.keys, self._token_bytes()):
            whole.update(part)
        return whole.hexdigest()

    @property
    def header_bytes(self) -> int:
        """Bytes before the zeros that precede the planes."""
        return _header_bytes(self.version, len(self.keys), len(self.tokens), self.n_planes)

    @property
    def planes_at(self) -> int:
        """Offset of the first plane."""
        return -(-self.header_bytes // ALIGNMENT) * ALIGNMENT

    @property
    def file_bytes(self) -> int:
        """Bytes of the whole file."""
        return self.planes_at + self.n_planes * self.plane_bytes

    def block_span(self, first: int, count: int) -> tuple[int, int]:
        """Where the blocks ``first`` … ``first + count - 1`` lie in a plane: offset and bytes."""
        token_bytes = self.plane_bytes // len(self.tokens)
        begin = first * self.block_tokens
        end = min((first + count) * self.block_tokens, len(self.tokens))
        return begin * token_bytes, (end - begin) * token_bytes

    def check(self) -> None:
        """Raise ``Damaged`` where the parts contradict each other or a bound."""
        n_blocks, n_tokens = len(self.keys), len(self.tokens)
        if not 0 < n_blocks <= _MOST_BLOCKS or not 0 < self.block_tokens <= _MOST_TOKENS:
            raise Damaged(f"it claims {n_blocks} blocks of {self.block_tokens} tokens")
        if not (n_blocks - 1) * self.block_tokens < n_tokens <= n_blocks * self.block_tokens:
            raise Damaged(f"{n_tokens} tokens do not fill {n_blocks} blocks")
        if min(self.tokens) < 0 or max(self.tokens) >= 2**32:
            raise Damaged("a token id is no unsigned number of 32 bits")
        if not 0 < self.n_planes <= _MOST_PLANES or not 0 < self.plane_bytes <= _MOST_PLANE_BYTES:
            raise Damaged(f"it claims {self.n_planes} planes of {self.plane_bytes} bytes")
        if self.plane_bytes % n_tokens:
            raise Damaged(f"{self.plane_bytes} bytes of a plane do not part into {n_tokens} tokens")
        if not all(math.isfinite(s) and s >= 0 for s in (self.created_s, self.compute_s)):
            raise Damaged("it claims times that cannot be")
        sizes = (len(self.realm), len(self.namespace_tag), len(self.parent), *map(len, self.keys))
        known = (_REALM_BYTES[self.version], realms.PART_BYTES, KEY_BYTES)
        if sizes != (*known, *[KEY_BYTES] * n_blocks):
            raise Damaged("a tag or a key has another size than all have")
        if self.version == 1:
            return
        if n_blocks > 1 and n_tokens % self.block_tokens:
            raise Damaged("a tail is not alone")
        if not 0 <= self.start <= _MOST_START or self.start % self.block_tokens:
            raise Damaged(f"no block begins at token {self.start}")
        if (self.start == 0) != (self.parent == _NO_PARENT):
            raise Damaged("it has a parent exactly if it does not begin a text")

    def _fields(self, compute_s: float, created_s: float) -> bytes:
        counts = (
            len(self.keys),
            self.block_tokens,
            len(self.tokens),
            self.n_planes,
            self.plane_bytes,
        )
        owner = (self.realm, self.namespace_tag, self.parent)
        if self.version == 1:
            return _FIELDS[1].pack(*owner, *counts, created_s)
        return _FIELDS[2].pack(*owner, self.start, *counts, compute_s, created_s)

    def _token_bytes(self) -> bytes:
        return struct.pack(f"<{len(self.tokens)}I", *self.tokens)


def block_digest(name: str, plane: int, block: int, data: Buffer) -> bytes:
    """The digest of ``data``, block ``block`` of plane ``plane`` of the record ``name``."""
    digest = xxhash.xxh3_128(bytes.fromhex(name) + struct.pack("<II", plane, block))
    digest.update(data)
    return digest.digest()


def plane_digest(name: str, index: int, plane: Buffer) -> bytes:
    """The digest of plane ``index`` of the record ``name`` of version 1."""
    digest = xxhash.xxh3_128(bytes.fromhex(name) + struct.pack("<I", index))
    digest.update(plane)
    return digest.digest()


def encode_header(record: Record, digests: Sequence[bytes]) -> bytes:
    """The file's bytes before the planes, whose ``digests`` [n_planes * n_blocks] are given.
    Raises ``ValueError`` for what is no record of the version that is written."""
    try:
        record.check()
    except Damaged as error:
        raise ValueError(f"no record can be like this: {error}") from error
    if record.version != VERSION or len(digests) != record.n_planes * len(record.keys):
        raise ValueError(f"not what version {VERSION} has in its header")
    parts = [
        PRELUDE.pack(MAGIC, VERSION, record.header_bytes),
        record._fields(record.compute_s, record.created_s),
        *record.keys,
        record._token_bytes(),
        *digests,
    ]
    body = b"".join(parts)
    header = body + xxhash.xxh3_128_digest(body)
    return header + bytes(record.planes_at - len(header))


def header_size(prelude: Buffer) -> int:
    """Bytes of the header that begins with ``prelude``; raises ``Damaged`` where there is none, and
    ``NewerVersion`` where it is in a format that is still to come."""
    magic, version, size = PRELUDE.unpack(prelude)
    if magic != MAGIC:
        raise Damaged("it does not begin as a record does")
    if version > VERSION:
        raise NewerVersion(f"its format is version {version}; {VERSION} is the newest known")
    if version not in _FIELDS:
        raise Damaged(f"its format is version {version}; {sorted(_FIELDS)} are read")
    if not PRELUDE.size + _FIELDS[version].size < size <= MOST_HEADER_BYTES:
        raise Damaged(f"it claims a header of {size} bytes")
    return int(size)


def was_known(header: Buffer) -> bool:
    """Whether ``header``, which claims an unknown version, was written in one that is known: then
    its version is damaged, and nobody will ever read it."""
    magic, _, size = PRELUDE.unpack(header[: PRELUDE.size])
    rest, digest = bytes(header[PRELUDE.size : -DIGEST_BYTES]), bytes(header[-DIGEST_BYTES:])
    return any(
        xxhash.xxh3_128_digest(PRELUDE.pack(magic, version, size) + rest) == digest
        for version in _FIELDS
    )


def decode_header(header: Buffer) -> tuple[Record, list[bytes]]:
    """The record that ``header`` (prelude included, padding excluded) describes, and its digests:
    of each block of each plane, in version 1 of each plane. Raises ``Damaged``."""
    header = bytes(header)
    if header_size(header[: PRELUDE.size]) != len(header):
        raise Damaged("its header has another length than it claims")
    body, digest = header[:-DIGEST_BYTES], header[-DIGEST_BYTES:]
    if xxhash.xxh3_128_digest(body) != digest:
        raise Damaged("its header does not match its digest")
    version = PRELUDE.unpack_from(body)[1]
    realm, tag, parent, *rest = _FIELDS[version].unpack_from(body, PRELUDE.size)
    start, compute_s = -1, 0.0
    if version == 1:
        n_blocks, block_tokens, n_tokens, n_planes, plane_bytes, created_s = rest
    else:
        start, n_blocks, block_tokens, n_tokens, n_planes, plane_bytes, compute_s, created_s = rest
    if len(header) != _header_bytes(version, n_blocks, n_tokens, n_planes):
        raise Damaged("its counts do not make up its header")
    at = PRELUDE.size + _FIELDS[version].size
    tokens_at = at + n_blocks * KEY_BYTES
    digests_at = tokens_at + 4 * n_tokens
    record = Record(
        realm=realm,
        namespace_tag=tag,
        parent=parent,
        start=start,
        keys=tuple(_cut(body[at:tokens_at], KEY_BYTES)),
        tokens=struct.unpack_from(f"<{n_tokens}I", body, tokens_at),
        block_tokens=block_tokens,
        n_planes=n_planes,
        plane_bytes=plane_bytes,
        created_s=created_s,
        compute_s=compute_s,
        version=version,
    )
    record.check()
    return record, _cut(body[digests_at:], DIGEST_BYTES)


def differs_in(record: Record, realm: realms.Realm) -> tuple[str, ...]:
    """The parts in which ``record``'s realm is not ``realm``; none where it may be used.

    Version 1 keeps one digest of numerics, layout and tokenizer, so it cannot say which of them is
    another one: it says numerics. Weights and adapter are in its blocks' keys alone.
    """
    if record.version > 1:
        return realms.differences(record.realm, realm.tag)
    parts = [part.encode() for part in (realm.numerics, realm.layout, realm.tokenizer)]
    whole = b"".join(len(part).to_bytes(8, "little") + part for part in parts)
    return () if record.realm == hashlib.sha256(whole).digest() else ("numerics",)


def extent(record: Record, used_s: float) -> Extent:
    """What the index of a tier knows of ``record``, which was last used at ``used_s``.

    Of a run of version 1 that ends in a tail, the full blocks: an extent has no tail behind them.
    """
    n_full = len(record.tokens) // record.block_tokens
    n_blocks = n_full or 1
    return Extent(
        name=record.name,
        namespace_tag=record.namespace_tag,
        parent=NO_PARENT if record.parent == _NO_PARENT else record.parent,
        keys=record.keys[:n_blocks],
        tokens=record.tokens[: n_blocks * record.block_tokens],
        start=record.start,
        block_tokens=record.block_tokens,
        n_bytes=record.file_bytes,
        compute_s=record.compute_s,
        used_s=used_s,
        format_version=record.version,
    )


def size_of_record(geometry: KvGeometry, n_blocks: int, n_tokens: int) -> int:
    """Bytes of the file that such a run would take."""
    header_bytes = _header_bytes(VERSION, n_blocks, n_tokens, 2 * geometry.n_layers)
    return -(-header_bytes // ALIGNMENT) * ALIGNMENT + n_tokens * geometry.token_bytes


def _header_bytes(version: int, n_blocks: int, n_tokens: int, n_planes: int) -> int:
    fixed = PRELUDE.size + _FIELDS[version].size + DIGEST_BYTES
    n_digests = n_planes if version == 1 else n_planes * n_blocks
    return fixed + n_blocks * KEY_BYTES + n_tokens * 4 + n_digests * DIGEST_BYTES


def _cut(data: bytes, size: int) -> list[bytes]:
    edges = range(0, len(data) + 1, size)
    return [data[a:b] for a, b in itertools.pairwise(edges)]
