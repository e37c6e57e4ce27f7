"""The header of a GGUF file: its metadata and where each tensor lies. Torch-free.

Invariant: nothing is allocated, skipped or believed because a file says so. Every count, length,
offset and size is compared with the bytes that are left, and with a bound of ours, before it is
used; what ``read_gguf`` returns points inside the file. Format: the GGUF description in the ggml
project, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, NoReturn

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from kvasir.core.errors import CorruptWeights, ModelNotFound, UnsupportedModel

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_HEADER_BYTES = 128 * 2**20  # a vocabulary of 256,000 tokens with merges has about 12 MiB
MAX_ITEMS = 4_000_000  # metadata values over all arrays
MAX_KEYS = 65_536
MAX_TENSORS = 131_072
MAX_NAME_BYTES = 1024
MAX_DEPTH = 4  # arrays in arrays
MAX_DIMS = 4
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 2**20

_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS = {  # value type -> struct code
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor: ``shape`` with rows first, as torch has it, and its bytes in the file."""

    name: str
    shape: tuple[int, ...]
    kind: str  # ggml type name: "F32", "Q4_1", …
    offset: int  # from the beginning of the file
    n_bytes: int


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A checked header."""

    path: Path
    metadata: Mapping[str, object]
    tensors: Mapping[str, GgufTensor]


def read_gguf(path: Path) -> GgufFile:
    """Read and check the header of ``path``.

    Raises ``ModelNotFound`` where it cannot be opened, ``UnsupportedModel`` for versions, byte
    orders and tensor types that are not read, ``CorruptWeights`` for a header that contradicts
    itself or the file's size.
    """
    try:
        with path.open("rb") as file:
            cursor = _Cursor(file, path, os.fstat(file.fileno()).st_size)
            return _read(cursor)
    except OSError as error:
        raise ModelNotFound(f"cannot read {path}: {error.strerror}") from error


class _Cursor:
    """A position in a file of known size. Takes bytes only after checking that they are there."""

    def __init__(self, file: BinaryIO, path: Path, size: int) -> None:
        self._file = file
        self.path = path
        self.size = size
        self.position = 0
        self.items_left = MAX_ITEMS

    def left(self) -> int:
        return min(self.size, MAX_HEADER_BYTES) - self.position

    def take(self, n_bytes: int, what: str) -> bytes:
        if n_bytes > self.left():
            self.corrupt(
                f"{what} needs {n_bytes} bytes at {self.position}, but only {max(0, self.left())} "
                "of the header are left"
            )
        data = self._file.read(n_bytes)
        if len(data) != n_bytes:
            self.corrupt(f"it ended at {self.position + len(data)} while it was read")
        self.position += n_bytes
        return data

    def number(self, code: str, what: str) -> int:
        (value,) = struct.unpack("<" + code, self.take(struct.calcsize("<" + code), what))
        return int(value)

    def count(self, what: str, bound: int, min_bytes_each: int) -> int:
        """A 64-bit count of things that have at least ``min_bytes_each`` bytes each."""
        value = self.number("Q", what)
        most = min(bound, self.left() // min_bytes_each)
        if value > most:
            self.corrupt(f"{what} is {value}; the file has room for at most {most}")
        return value

    def text(self, what: str, bound: int = MAX_HEADER_BYTES) -> str:
        data = self.take(self.count(f"the length of {what}", bound, 1), what)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            self.corrupt(f"{what} is not valid UTF-8")

    def corrupt(self, reason: str) -> NoReturn:
        raise CorruptWeights(
            f"{self.path} is not a sound GGUF file: {reason}. It may be an incomplete download."
        )


def _read(cursor: _Cursor) -> GgufFile:
    if cursor.take(4, "the magic number") != MAGIC:
        cursor.corrupt("it does not begin with 'GGUF'")
    version = cursor.number("I", "the version")
    if version not in VERSIONS:
        order = " (or a big-endian file)" if version & 0xFFFF == 0 else ""
        raise UnsupportedModel(
            f"{cursor.path} is of GGUF version {version}{order}; versions 2 and 3 in little-endian "
            "order are read"
        )
    # a tensor has at least a name's length, a count of dimensions, one dimension, type and offset
    n_tensors = cursor.count("the number of tensors", MAX_TENSORS, 8 + 4 + 8 + 4 + 8)
    n_keys = cursor.count("the number of metadata keys", MAX_KEYS, 8 + 4 + 1)
    metadata: dict[str, object] = {}
    for _ in range(n_keys):
        key = cursor.text("a metadata key", MAX_NAME_BYTES)
        if key in metadata:
            cursor.corrupt(f"the metadata key {key!r} occurs twice")
        metadata[key] = _value(cursor, cursor.number("I", f"the type of {key!r}"), key, 0)
    alignment = _alignment(cursor, metadata)
    heads = [_tensor_head(cursor) for _ in range(n_tensors)]
    data_start = -(-cursor.position // alignment) * alignment
    tensors: dict[str, GgufTensor] = {}
    for name, shape, kind, relative in heads:
        if name in tensors:
            cursor.corrupt(f"the tensor {name!r} occurs twice")
        tensors[name] = _place(cursor, name, shape, kind, relative, data_start, alignment)
    _refuse_overlaps(cursor, tensors)
    return GgufFile(cursor.path, MappingProxyType(metadata), MappingProxyType(tensors))


def _value(cursor: _Cursor, kind: int, key: str, depth: int) -> object:
    if kind == _STRING:
        return cursor.text(f"the value of {key!r}")
    if kind == _BOOL:
        return _truth(cursor, cursor.take(1, f"the value of {key!r}"), key)[0]
    if kind in _SCALARS:
        code = "<" + _SCALARS[kind]
        return struct.unpack(code, cursor.take(struct.calcsize(code), f"the value of {key!r}"))[0]
    if kind != _ARRAY:
        cursor.corrupt(f"the value of {key!r} is of unknown type {kind}")
    return _array(cursor, key, depth + 1)


def _array(cursor: _Cursor, key: str, depth: int) -> list[object]:
    if depth > MAX_DEPTH:
        cursor.corrupt(f"the value of {key!r} nests arrays deeper than {MAX_DEPTH}")
    kind = cursor.number("I", f"the item type of {key!r}")
    if kind in _SCALARS or kind == _BOOL:
        code = _SCALARS.get(kind, "B")
        width = struct.calcsize("<" + code)
        n = _item_count(cursor, key, width)
        data = cursor.take(n * width, f"the items of {key!r}")
        if kind == _BOOL:
            return list(_truth(cursor, data, key))
        return list(struct.unpack(f"<{n}{code}", data))
    if kind not in (_STRING, _ARRAY):
        cursor.corrupt(f"the items of {key!r} are of unknown type {kind}")
    n = _item_count(cursor, key, 8 if kind == _STRING else 12)
    return [_value(cursor, kind, key, depth) for _ in range(n)]


def _item_count(cursor: _Cursor, key: str, width: int) -> int:
    n = cursor.count(f"the number of items of {key!r}", cursor.items_left, width)
    cursor.items_left -= n
    return n


def _truth(cursor: _Cursor, data: bytes, key: str) -> tuple[bool, ...]:
    if data.strip(b"\x00\x01"):
        cursor.corrupt(f"a truth value of {key!r} is neither 0 nor 1")
    return tuple(byte == 1 for byte in data)


def _alignment(cursor: _Cursor, metadata: Mapping[str, object]) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if (
        isinstance(value, bool)
        or not isinstance(value, int)
        or not 1 <= value <= MAX_ALIGNMENT
        or value & (value - 1)
    ):
        cursor.corrupt(f"general.alignment is {value!r:.40}; expected a power of two")
    return value


def _tensor_head(cursor: _Cursor) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
    name = cursor.text("a tensor name", MAX_NAME_BYTES)
    n_dims = cursor.number("I", f"the number of dimensions of {name!r}")
    if not 1 <= n_dims <= MAX_DIMS:
        cursor.corrupt(f"the tensor {name!r} has {n_dims} dimensions")
    dims = struct.unpack(f"<{n_dims}Q", cursor.take(8 * n_dims, f"the shape of {name!r}"))
    number = cursor.number("I", f"the type of {name!r}")
    relative = cursor.number("Q", f"the offset of {name!r}")
    try:
        kind = GGMLQuantizationType(number)
    except ValueError:
        raise UnsupportedModel(
            f"the tensor {name!r} of {cursor.path} is of the ggml type {number}, which is not known"
        ) from None
    return name, tuple(reversed(dims)), kind, relative


def _place(
    cursor: _Cursor,
    name: str,
    shape: tuple[int, ...],
    kind: GGMLQuantizationType,
    relative: int,
    data_start: int,
    alignment: int,
) -> GgufTensor:
    block, block_bytes = GGML_QUANT_SIZES[kind]
    n_values = 1
    for dim in shape:  # Python's integers do not overflow, so the product can be compared as it is
        n_values *= dim
    if n_values == 0 or shape[-1] % block:
        cursor.corrupt(f"the shape {list(shape)} of {name!r} does not do for the type {kind.name}")
    n_bytes = n_values // block * block_bytes
    if relative % alignment:
        cursor.corrupt(f"the tensor {name!r} is not aligned to {alignment} bytes")
    if data_start + relative + n_bytes > cursor.size:
        cursor.corrupt(
            f"the tensor {name!r} {list(shape)} ends at byte {data_start + relative + n_bytes} of "
            f"{cursor.size}"
        )
    return GgufTensor(name, shape, kind.name, data_start + relative, n_bytes)


def _refuse_overlaps(cursor: _Cursor, tensors: Mapping[str, GgufTensor]) -> None:
    placed = sorted(tensors.values(), key=lambda tensor: tensor.offset)
    for before, after in itertools.pairwise(placed):
        if before.offset + before.n_bytes > after.offset:
            cursor.corrupt(f"the tensors {before.name!r} and {after.name!r} overlap")
