"""The record format: what it claims, what is no record, and version 1, which is still read."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest
from simulated_folder import SimulatedFolder, _File

from kvasir.core.geometry import KvGeometry
from kvasir.core.realm import Realm
from kvasir.tiers.record import (
    PRELUDE,
    Damaged,
    NewerVersion,
    Record,
    decode_header,
    differs_in,
    encode_header,
    extent,
    header_size,
    size_of_record,
)
from kvasir.tiers.store import RecordStore

REALM = Realm(weights="w", numerics="n", tokenizer="t", layout="l")
FULL = Record(
    realm=REALM.tag,
    namespace_tag=b"n" * 16,
    parent=b"p" * 32,
    start=8,
    keys=(b"a" * 32, b"b" * 32, b"c" * 32),
    tokens=tuple(range(12)),
    block_tokens=4,
    n_planes=2,
    plane_bytes=120,
    created_s=1.5,
    compute_s=0.25,
)
TAIL = dataclasses.replace(FULL, keys=(b"a" * 32,), tokens=(1, 2, 3))
BEGINNING = dataclasses.replace(FULL, parent=bytes(32), start=0)


def digests(record: Record) -> list[bytes]:
    return [bytes([index]) * 16 for index in range(record.n_planes * len(record.keys))]


@pytest.mark.parametrize("record", [FULL, TAIL, BEGINNING])
def test_a_header_is_read_as_it_was_written(record: Record) -> None:
    header = encode_header(record, digests(record))
    assert len(header) == record.planes_at
    assert header_size(header[: PRELUDE.size]) == record.header_bytes
    assert decode_header(header[: record.header_bytes]) == (record, digests(record))


def test_the_name_is_bound_to_all_but_the_times() -> None:
    others: dict[str, Any] = {
        "realm": dataclasses.replace(REALM, adapter="x").tag,
        "namespace_tag": b"m" * 16,
        "parent": b"q" * 32,
        "start": 12,
        "keys": (b"a" * 32, b"b" * 32, b"d" * 32),
        "tokens": (*range(11), 99),
        "block_tokens": 5,
        "n_planes": 4,
        "plane_bytes": 240,
        "version": 1,
    }
    timeless = {"created_s": 2.0, "compute_s": 9.0}
    assert set(others) | set(timeless) == {field.name for field in dataclasses.fields(Record)}
    changed = [dataclasses.replace(FULL, **{field: value}) for field, value in others.items()]
    changed[-1] = dataclasses.replace(changed[-1], realm=FULL.realm[:32])
    assert len({record.name for record in (FULL, *changed)}) == 1 + len(changed)
    assert dataclasses.replace(FULL, **timeless).name == FULL.name


@pytest.mark.parametrize(
    "change",
    [
        {"keys": (), "tokens": ()},
        {"tokens": tuple(range(11))},  # a tail that is not alone
        {"tokens": tuple(range(8))},
        {"tokens": tuple(range(13))},
        {"tokens": (*range(11), -1)},
        {"tokens": (*range(11), 2**32)},
        {"block_tokens": 0},
        {"n_planes": 0},
        {"plane_bytes": 0},
        {"plane_bytes": 121},
        {"plane_bytes": 12 * 2**40},
        {"start": -1},
        {"start": 0},  # with a parent
        {"start": 9},
        {"start": 2**60},
        {"parent": bytes(32)},
        {"parent": b""},
        {"realm": b"r" * 32},
        {"namespace_tag": b"n" * 15},
        {"keys": (b"a" * 32, b"b" * 32, b"c" * 31)},
        {"compute_s": -1.0},
        {"compute_s": float("nan")},
        {"created_s": float("inf")},
        {"version": 1, "realm": b"r" * 32},
    ],
    ids=str,
)
def test_what_no_record_can_be_is_not_written(change: dict[str, Any]) -> None:
    record = dataclasses.replace(FULL, **change)
    with pytest.raises(ValueError):
        encode_header(record, digests(record))
    store = RecordStore(SimulatedFolder(), 1 << 20)
    with pytest.raises(ValueError):
        store.put(record, bytes(min(record.n_planes * record.plane_bytes, 1000)))
    assert store.used_bytes == 0


def test_planes_of_another_size_are_not_written() -> None:
    store = RecordStore(SimulatedFolder(), 1 << 20)
    for n_bytes in (239, 241):
        with pytest.raises(ValueError, match="size"):
            store.put(FULL, bytes(n_bytes))


def test_a_header_of_another_version_or_length_is_refused() -> None:
    header = bytearray(encode_header(FULL, digests(FULL))[: FULL.header_bytes])
    for version in (0, 3, 2**32 - 1):
        header[8:12] = version.to_bytes(4, "little")
        with pytest.raises(Damaged if version == 0 else NewerVersion, match="version"):
            header_size(header[: PRELUDE.size])
    header[8:12] = (2).to_bytes(4, "little")
    for size in (0, 16, 2**32 - 1):
        header[12:16] = size.to_bytes(4, "little")
        with pytest.raises(Damaged, match="header of"):
            header_size(header[: PRELUDE.size])


def test_counts_that_do_not_make_up_the_header_are_refused_before_they_are_used() -> None:
    """Even under a digest that is right: whoever wrote it may have meant harm."""
    import xxhash

    body = bytearray(encode_header(FULL, digests(FULL))[: FULL.header_bytes - 16])
    at = PRELUDE.size + 80 + 16 + 32 + 8
    for index in range(4):  # blocks, block_tokens, tokens, planes
        wrong = bytearray(body)
        wrong[at + 4 * index : at + 4 * index + 4] = (2**32 - 1).to_bytes(4, "little")
        with pytest.raises(Damaged):
            decode_header(bytes(wrong) + xxhash.xxh3_128_digest(wrong))


def test_the_size_is_known_before_there_is_a_record() -> None:
    geometry = KvGeometry(
        n_layers=3, n_kv_heads=2, head_dim=8, dtype="float32", dtype_bytes=4, block_tokens=4,
        n_blocks=9,
    )  # fmt: skip
    for record in (FULL, TAIL):
        n_tokens = len(record.tokens)
        made = dataclasses.replace(record, n_planes=6, plane_bytes=n_tokens * 2 * 8 * 4)
        assert size_of_record(geometry, len(record.keys), n_tokens) == made.file_bytes


def test_it_says_in_which_parts_of_the_realm_it_differs() -> None:
    assert differs_in(FULL, REALM) == ()
    for part in ("weights", "numerics", "adapter", "tokenizer", "layout"):
        assert differs_in(FULL, dataclasses.replace(REALM, **{part: "other"})) == (part,)


def test_the_extent_of_a_record() -> None:
    found = extent(FULL, 3.0)
    assert (found.name, found.n_bytes) == (FULL.name, FULL.file_bytes)
    assert (found.parent, found.start, found.keys) == (FULL.parent, 8, FULL.keys)
    assert (found.tokens, found.compute_s, found.used_s) == (FULL.tokens, 0.25, 3.0)
    assert not found.is_tail
    assert extent(TAIL, 0.0).is_tail
    assert extent(TAIL, 0.0).tokens == TAIL.tokens
    assert extent(BEGINNING, 0.0).parent == b""


# --- version 1: a file that its code has written, of two full blocks and a tail of three tokens ---

V1_FILE = next((Path(__file__).parents[2] / "fixtures" / "record_v1").glob("*.kv"))
V1_NAME = V1_FILE.stem
V1_BYTES = V1_FILE.read_bytes()
V1_REALM = Realm(
    weights="any", numerics="numerics of v1", layout="layout of v1", tokenizer="tokenizer of v1"
)


def v1_planes() -> list[bytes]:
    """As they were made: 4 planes of 11 tokens of 8 bytes."""
    rng = random.Random("kvasir record v1")
    return [rng.randbytes(88) for _ in range(4)]


def v1_store(content: bytes = V1_BYTES) -> tuple[RecordStore, bytearray]:
    file = _File(bytearray(content), bytearray(content))
    folder = SimulatedFolder(seen={V1_FILE.name: file})
    return RecordStore(folder, 1 << 20), file.seen


def v1_read(store: RecordStore, first: int, count: int) -> list[bytes]:
    found: list[bytes] = []
    store.read(V1_NAME, first, count, lambda index, data: found.append(bytes(data)))
    return found


def test_version_1_is_read_whole_and_in_part() -> None:
    store, _ = v1_store()
    assert [record.version for record in store.records.values()] == [1]
    planes = v1_planes()
    assert v1_read(store, 0, 3) == planes
    assert v1_read(store, 0, 2) == [plane[:64] for plane in planes]
    assert v1_read(store, 1, 1) == [plane[32:64] for plane in planes]
    assert v1_read(store, 2, 1) == [plane[64:] for plane in planes]
    store.verify(V1_NAME)


def test_of_version_1_the_full_blocks_are_indexed() -> None:
    store, _ = v1_store()
    record = store.records[V1_NAME]
    found = extent(record, 0.0)
    assert (found.start, found.compute_s) == (-1, 0.0)
    assert (found.keys, found.tokens) == (record.keys[:2], record.tokens[:8])
    assert not found.is_tail


def test_version_1_tells_another_realm() -> None:
    record = v1_store()[0].records[V1_NAME]
    assert differs_in(record, V1_REALM) == ()
    for part in ("numerics", "layout", "tokenizer"):
        other = dataclasses.replace(V1_REALM, **{part: "other"})
        assert differs_in(record, other) == ("numerics",)


def test_damage_anywhere_in_version_1_is_noticed() -> None:
    header_bytes = header_size(V1_BYTES[: PRELUDE.size])
    for bit in range(8 * header_bytes):
        content = bytearray(V1_BYTES)
        content[bit // 8] ^= 1 << bit % 8
        store, _ = v1_store(content)
        assert V1_NAME not in store.records
    for bit in range(8 * 4096, 8 * len(V1_BYTES)):
        store, content = v1_store()
        content[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Damaged):  # the whole plane is verified, whichever part is asked for
            v1_read(store, bit % 3, 1)
        assert not store.records


def test_version_1_is_not_written() -> None:
    record = v1_store()[0].records[V1_NAME]
    with pytest.raises(ValueError, match="read, not written"):
        RecordStore(SimulatedFolder(), 1 << 20).put(record, b"".join(v1_planes()))
