"""The parcel: a portable piece of the KV of one text, as it travels between homes. Version 1:

    magic, version, header_bytes
    realm tag, digest of the realm, start, counts, plane_bytes
    ids of all tokens from the beginning of the text to the end of this piece
    planes of the tokens from ``start`` on: layer 0 keys, layer 0 values, layer 1 keys, …
    SHA-256 of all before

Little-endian; planes lie as in a record (``tiers.record``), without digests of their own. There is
no key, no namespace and nothing else in it that tells whose the text was: who takes it in derives
the keys anew from the tokens, which is why it has all of them.

Invariant: nothing of a parcel is used before all of it has been checked. It is data of unknown
origin; that its numbers are what the model computes is for a signature over it to say.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

from kvasir.core import realm as realms
from kvasir.core.errors import ParcelRefused
from kvasir.core.geometry import KvGeometry
from kvasir.core.realm import Realm
from kvasir.tiers.record import Buffer

MAGIC = b"KVASIRPC"
VERSION = 1
_PRELUDE = struct.Struct("<8sII")
_FIELDS = struct.Struct(f"<{realms.TAG_BYTES}s32sQIIIQ")
_DIGEST_BYTES = 32
_MOST_TOKENS = 2**24
_MOST_ID = 2**31  # ids are hashed as signed numbers of 32 bits


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """What a parcel says of its planes."""

    realm_tag: bytes
    realm_digest: bytes
    start: int  # position of the first token that has planes here
    block_tokens: int
    tokens: tuple[int, ...]  # from the beginning of the text
    n_planes: int
    plane_bytes: int

    @property
    def n_tokens(self) -> int:
        """Tokens that have planes here."""
        return len(self.tokens) - self.start

    @property
    def header_bytes(self) -> int:
        """Bytes before the planes."""
        return _PRELUDE.size + _FIELDS.size + 4 * len(self.tokens)


def parcel_of(realm: Realm, geometry: KvGeometry, tokens: tuple[int, ...], start: int) -> Parcel:
    """The parcel of the last tokens of ``tokens``, those from position ``start`` on."""
    n_planes = 2 * geometry.n_layers
    return Parcel(
        realm_tag=realm.tag,
        realm_digest=hashlib.sha256(realm.id).digest(),
        start=start,
        block_tokens=geometry.block_tokens,
        tokens=tokens,
        n_planes=n_planes,
        plane_bytes=(len(tokens) - start) * geometry.token_bytes // n_planes,
    )


def pack(parcel: Parcel, planes: Buffer) -> bytes:
    """The bytes of ``parcel`` with ``planes`` [n_planes * plane_bytes]. Raises ``ValueError`` where
    their size is another."""
    data = memoryview(planes).cast("B")
    if data.nbytes != parcel.n_planes * parcel.plane_bytes:
        raise ValueError(f"{data.nbytes} bytes are not the planes of {parcel.n_tokens} tokens")
    header = b"".join(
        (
            _PRELUDE.pack(MAGIC, VERSION, parcel.header_bytes),
            _FIELDS.pack(
                parcel.realm_tag,
                parcel.realm_digest,
                parcel.start,
                parcel.block_tokens,
                len(parcel.tokens),
                parcel.n_planes,
                parcel.plane_bytes,
            ),
            struct.pack(f"<{len(parcel.tokens)}I", *parcel.tokens),
        )
    )
    digest = hashlib.sha256(header)
    digest.update(data)
    return b"".join((header, data, digest.digest()))


def unpack(data: Buffer, realm: Realm, geometry: KvGeometry) -> tuple[Parcel, memoryview]:
    """What ``data`` says, and its planes, a view of it. Raises ``ParcelRefused`` where it is not
    whole, contradicts itself, or is of another realm or layout than this one."""
    view = memoryview(data).cast("B").toreadonly()
    parcel = _header(view)
    planes = view[parcel.header_bytes : -_DIGEST_BYTES]
    if planes.nbytes != parcel.n_planes * parcel.plane_bytes:
        raise _damaged(f"{planes.nbytes} bytes of planes are not as many as it says")
    if hashlib.sha256(view[:-_DIGEST_BYTES]).digest() != view[-_DIGEST_BYTES:]:
        raise _damaged("it does not match its own digest")
    _check_realm(parcel, realm)
    if parcel_of(realm, geometry, parcel.tokens, parcel.start) != parcel:
        raise _damaged("its planes are not as this model lays them out")
    return parcel, planes


def _header(view: memoryview) -> Parcel:
    if len(view) < _PRELUDE.size + _FIELDS.size + _DIGEST_BYTES:
        raise _damaged("it is shorter than a header")
    magic, version, header_bytes = _PRELUDE.unpack_from(view)
    if magic != MAGIC:
        raise _damaged("it does not begin as a parcel does")
    if version != VERSION:
        raise ParcelRefused(
            f"The exported KV is in version {version} of its format; this Kvasir reads version "
            f"{VERSION}. Import it with the Kvasir that exported it, or export it anew."
        )
    tag, digest, start, block_tokens, n_tokens, n_planes, plane_bytes = _FIELDS.unpack_from(
        view, _PRELUDE.size
    )
    tokens_at = _PRELUDE.size + _FIELDS.size
    if not 0 < n_tokens <= _MOST_TOKENS or header_bytes != tokens_at + 4 * n_tokens:
        raise _damaged(f"{n_tokens} tokens do not make up its header")
    if header_bytes + _DIGEST_BYTES > len(view):
        raise _damaged("it is shorter than its header")
    tokens = struct.unpack_from(f"<{n_tokens}I", view, tokens_at)
    if max(tokens) >= _MOST_ID:
        raise _damaged("it has a token id that no vocabulary has")
    behind = n_tokens - start
    if not block_tokens or start % block_tokens or behind < 1:
        raise _damaged(f"no block begins at token {start} of {n_tokens}")
    if behind > block_tokens and behind % block_tokens:
        raise _damaged("a tail is not alone")
    return Parcel(
        realm_tag=tag,
        realm_digest=digest,
        start=start,
        block_tokens=block_tokens,
        tokens=tokens,
        n_planes=n_planes,
        plane_bytes=plane_bytes,
    )


def _check_realm(parcel: Parcel, realm: Realm) -> None:
    differing = realms.differences(parcel.realm_tag, realm.tag)
    if not differing and parcel.realm_digest == hashlib.sha256(realm.id).digest():
        return
    parts = ", ".join(differing or ("something",))
    raise ParcelRefused(
        f"The exported KV was computed with another model or in another way: {parts} "
        f"{'differs' if len(differing) < 2 else 'differ'} from what this server runs. Serve the "
        "model with which it was exported, or have the text read again here."
    )


def cut(planes: memoryview, n_planes: int, tokens: int, first: int, count: int) -> memoryview:
    """Of ``planes`` with ``tokens`` each those of ``count`` from ``first`` on; a copy where these
    are not all."""
    if count == tokens:
        return planes
    plane_bytes = len(planes) // n_planes
    token_bytes = plane_bytes // tokens
    starts = (plane * plane_bytes + first * token_bytes for plane in range(n_planes))
    return memoryview(b"".join(planes[at : at + count * token_bytes] for at in starts))


def _damaged(what: str) -> ParcelRefused:
    return ParcelRefused(f"The exported KV is damaged: {what}. Export or copy it again.")
