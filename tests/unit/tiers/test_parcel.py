"""The portable piece: what it says, and that nothing but it as it was packed is taken in."""

from __future__ import annotations

import hashlib
import os
import random
import struct
from collections.abc import Callable

import pytest
from realms import realm
from virtual_engine import geometry

from kvasir.core.errors import ParcelRefused
from kvasir.tiers.parcel import MAGIC, Parcel, cut, pack, parcel_of, unpack

SHAPE = geometry(64)  # blocks of 4 tokens, 2 planes of 4 bytes a token
REALM = realm(SHAPE)
TOKENS = tuple(range(7, 7 + 12))
FLIPS = int(os.environ.get("KVASIR_TEST_PARCEL_FLIPS", "1000"))


def made(tokens: tuple[int, ...] = TOKENS, start: int = 4) -> tuple[Parcel, bytes]:
    parcel = parcel_of(REALM, SHAPE, tokens, start)
    return parcel, pack(parcel, random.Random(1).randbytes(parcel.n_tokens * SHAPE.token_bytes))


@pytest.mark.parametrize(("n_tokens", "start"), [(12, 4), (4, 0), (3, 0), (9, 8), (12, 8)])
def test_what_was_packed_is_unpacked(n_tokens: int, start: int) -> None:
    parcel, data = made(TOKENS[:n_tokens], start)
    found, planes = unpack(data, REALM, SHAPE)
    assert found == parcel
    assert (found.n_tokens, found.tokens) == (n_tokens - start, TOKENS[:n_tokens])
    assert planes == random.Random(1).randbytes(len(planes))
    assert planes.readonly


def test_it_says_nothing_of_whose_it_is() -> None:
    """But for the tokens and their planes, all of it follows from the model."""
    parcel, data = made()
    header = data[: parcel.header_bytes]
    known = [
        MAGIC,
        struct.pack("<II", 1, len(header)),
        REALM.tag,
        hashlib.sha256(REALM.id).digest(),
        struct.pack("<QIIIQ", 4, 4, 12, 2, 32),
        struct.pack("<12I", *TOKENS),
    ]
    assert header == b"".join(known)
    assert len(data) == len(header) + 8 * SHAPE.token_bytes + 32


def test_every_flipped_bit_of_the_header_is_refused() -> None:
    parcel, data = made()
    for bit in range(8 * parcel.header_bytes):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ParcelRefused):
            unpack(flipped, REALM, SHAPE)


def test_flipped_bits_of_the_body_are_refused() -> None:
    rng = random.Random(2)
    parcel, data = made()
    for _ in range(FLIPS):
        bit = rng.randrange(8 * parcel.header_bytes, 8 * len(data))
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ParcelRefused):
            unpack(flipped, REALM, SHAPE)


def test_what_is_cut_or_longer_is_refused() -> None:
    _, data = made()
    for n_bytes in range(len(data)):
        with pytest.raises(ParcelRefused):
            unpack(data[:n_bytes], REALM, SHAPE)
    with pytest.raises(ParcelRefused):
        unpack(data + b"\0", REALM, SHAPE)


@pytest.mark.parametrize("part", ["weights", "numerics", "adapter", "tokenizer", "layout"])
def test_another_realm_is_refused_by_the_name_of_its_part(part: str) -> None:
    _, data = made()
    with pytest.raises(ParcelRefused, match=f": {part} differs"):
        unpack(data, realm(SHAPE, **{part: "another"}), SHAPE)
    with pytest.raises(ParcelRefused, match="weights, tokenizer differ from"):
        unpack(data, realm(SHAPE, weights="another", tokenizer="another"), SHAPE)


@pytest.mark.parametrize(
    "change",
    [
        lambda p: {"start": 5},  # no border of a block
        lambda p: {"start": 12},  # nothing is behind it
        lambda p: {"start": 2**60},
        lambda p: {"block_tokens": 0},
        lambda p: {"block_tokens": 8, "start": 8},
        lambda p: {"tokens": ()},
        lambda p: {"tokens": p.tokens[:11]},  # a tail behind a full block
        lambda p: {"tokens": (*p.tokens[:11], 2**31)},
        lambda p: {"n_planes": 2**31},
        lambda p: {"plane_bytes": 2**60},
        lambda p: {"n_planes": 1, "plane_bytes": 64},
        lambda p: {"n_planes": 0, "plane_bytes": 64},
    ],
)
def test_one_that_was_made_up_with_a_right_digest_is_refused(
    change: Callable[[Parcel], dict[str, object]],
) -> None:
    """Who signs may still be wrong: nothing is believed because a digest fits."""
    parcel, data = made()
    fields = {name: getattr(parcel, name) for name in Parcel.__slots__} | change(parcel)
    other = Parcel(**fields)
    assert packed_anyhow(parcel, data[parcel.header_bytes : -32]) == data
    with pytest.raises(ParcelRefused):
        unpack(packed_anyhow(other, data[parcel.header_bytes : -32]), REALM, SHAPE)


def packed_anyhow(parcel: Parcel, planes: bytes) -> bytes:
    """``parcel`` with bytes that need not be as many as it says, and a digest of all."""
    header = struct.pack(
        "<8sII80s32sQIIIQ",
        MAGIC,
        1,
        parcel.header_bytes,
        parcel.realm_tag,
        parcel.realm_digest,
        parcel.start,
        parcel.block_tokens,
        len(parcel.tokens),
        parcel.n_planes,
        parcel.plane_bytes,
    )
    data = header + struct.pack(f"<{len(parcel.tokens)}I", *parcel.tokens) + planes
    return data + hashlib.sha256(data).digest()


def test_a_newer_version_says_what_to_do() -> None:
    _, data = made()
    newer = data[:8] + (2).to_bytes(4, "little") + data[12:]
    with pytest.raises(ParcelRefused, match="version 2"):
        unpack(newer, REALM, SHAPE)


def test_planes_of_another_size_are_not_packed() -> None:
    parcel, _ = made()
    with pytest.raises(ValueError, match="planes of 8 tokens"):
        pack(parcel, b"1234")


def test_cutting_takes_the_same_tokens_of_every_plane() -> None:
    planes = memoryview(bytes([11, 12, 13, 21, 22, 23]))
    assert cut(planes, 2, 3, 0, 3) is planes
    assert bytes(cut(planes, 2, 3, 0, 2)) == bytes([11, 12, 21, 22])
    assert bytes(cut(planes, 2, 3, 2, 1)) == bytes([13, 23])
