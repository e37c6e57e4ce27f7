"""The header of a safetensors file, checked before any library opens the file. Torch-free.

Invariant: tensors of ``read_header`` lie inside the file, side by side without gaps or overlaps,
and each has as many bytes as its shape and dtype say. Format: the safetensors project's description
(8 bytes of little-endian length, a JSON object, the data).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TypeGuard

from kvasir.core.errors import CorruptWeights, ModelNotFound
from kvasir.model.fields import parse_json_object, read_json_object, shorten

# The format allows 100 MB. A dense model's header has some hundred kilobytes, and JSON of hostile
# shape takes twenty times its length once parsed.
MAX_HEADER_BYTES = 32 * 2**20
MAX_TENSORS = 131_072
MAX_DIMS = 8
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

DTYPE_BITS: Mapping[str, int] = MappingProxyType({
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32,
    "F32": 32, "U64": 64, "I64": 64, "F64": 64, "C64": 64, "F8_E4M3": 8, "F8_E5M2": 8,
    "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a safetensors file."""

    file: Path
    dtype: str  # "F32", "BF16", …
    shape: tuple[int, ...]


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of the safetensors file ``path`` by name.

    Raises ``ModelNotFound`` where it cannot be read, ``CorruptWeights`` where the header
    contradicts itself or the file's size.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(8)
            length = int.from_bytes(head, "little")
            if len(head) < 8 or not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
                raise _corrupt(path, f"a header of {length} bytes does not fit in {size} bytes")
            data = file.read(length)
    except OSError as error:
        raise ModelNotFound(f"cannot read {path}: {error.strerror}") from error
    if len(data) != length:
        raise _corrupt(path, "it ended while it was read")
    header = parse_json_object(data, f"the header of {path}")
    header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:
        raise _corrupt(path, f"{len(header)} tensors are more than the {MAX_TENSORS} that are read")
    spans: list[tuple[int, int, str]] = []
    tensors: dict[str, StoredTensor] = {}
    for name, entry in header.items():
        tensors[name], span = _tensor(path, name, entry)
        spans.append((*span, name))
    position = 0
    for begin, end, name in sorted(spans):
        if begin != position:
            raise _corrupt(path, f"tensor {shorten(name)} begins at {begin}, expected {position}")
        position = end
    if position != size - 8 - length:
        raise _corrupt(path, f"the tensors have {position} bytes, the file {size - 8 - length}")
    return tensors


def _tensor(path: Path, name: str, entry: object) -> tuple[StoredTensor, tuple[int, int]]:
    if not isinstance(entry, dict):
        raise _corrupt(path, f"tensor {shorten(name)} is no object")
    dtype, shape, span = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise _corrupt(path, f"tensor {shorten(name)} has the unknown dtype {shorten(dtype)}")
    if not _whole_numbers(shape) or len(shape) > MAX_DIMS:
        raise _corrupt(path, f"tensor {shorten(name)} has the shape {shorten(shape)}")
    if not _whole_numbers(span) or len(span) != 2 or span[0] > span[1]:
        raise _corrupt(path, f"tensor {shorten(name)} has the offsets {shorten(span)}")
    bits = DTYPE_BITS[dtype]
    for dim in shape:  # Python's integers do not overflow
        bits *= dim
    if bits != 8 * (span[1] - span[0]):
        raise _corrupt(
            path,
            f"tensor {shorten(name)} {shorten(shape)} of {dtype} needs {shorten(bits // 8)} bytes "
            f"and has {shorten(span[1] - span[0])}",
        )
    return StoredTensor(path, dtype, tuple(shape)), (span[0], span[1])


def _whole_numbers(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(
        isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 2**63 for n in value
    )


def read_folder(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of all safetensors files of ``folder``: those that its index lists, else
    ``model.safetensors``. Raises as ``read_header``, and ``CorruptWeights`` for an index that names
    files outside the folder or tensors that are not where it says."""
    if not (folder / INDEX).exists():
        return read_header(inside(folder, SINGLE))
    index = read_json_object(folder / INDEX, MAX_HEADER_BYTES)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CorruptWeights(f"{folder / INDEX} has no weight_map")
    files = {name: None for name in weight_map.values() if isinstance(name, str)}
    tensors: dict[str, StoredTensor] = {}
    for name in files:
        for tensor, stored in read_header(inside(folder, name)).items():
            if tensor in tensors:
                raise CorruptWeights(f"tensor {shorten(tensor)} is in two files of {folder}")
            tensors[tensor] = stored
    for tensor, name in weight_map.items():
        found = tensors.get(tensor)
        if found is None or found.file.name != name:
            raise CorruptWeights(
                f"{INDEX} puts tensor {shorten(tensor)} in {shorten(name)}, where it is not"
            )
    return tensors


def weight_files(tensors: Mapping[str, StoredTensor]) -> list[Path]:
    """The files that hold ``tensors``, in order of their names."""
    return sorted({stored.file for stored in tensors.values()})


def inside(folder: Path, name: str) -> Path:
    """The file ``name`` of ``folder``; ``CorruptWeights`` where the name is a path or does not end
    in .safetensors, or where a link leads elsewhere.

    A hub cache keeps files as links into a ``blobs`` folder two levels up; those are followed.
    """
    if Path(name).name != name or "\\" in name or "\0" in name or not name.endswith(".safetensors"):
        raise CorruptWeights(f"{shorten(name)} is not the plain name of a safetensors file")
    path = folder / name
    target, home = path.resolve(), folder.resolve()
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    if target.parent not in (home, blobs):
        raise CorruptWeights(f"{path} is a link that leads out of its folder, to {target}")
    return path


def _corrupt(path: Path, reason: str) -> CorruptWeights:
    return CorruptWeights(
        f"{path} is not a sound safetensors file: {reason}. It may be an incomplete download."
    )
