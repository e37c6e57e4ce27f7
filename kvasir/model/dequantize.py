"""Tensor bytes of a GGUF file as float32 rows, a chunk at a time. Torch-free.

Invariant: beside the chunk that is handed out, no more than the quantised bytes of that chunk and
the temporaries of decoding it are alive, so loading peaks near the size of the loaded tensor.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from kvasir.core.errors import CorruptWeights, UnsupportedModel
from kvasir.model.gguf_file import GgufTensor

CHUNK_VALUES = 2**20  # float32 values of a chunk: 4 MiB, which stays in the cache of most CPUs

# what gguf.quants can turn into float32
KINDS = frozenset({
    "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K",
    "Q6_K", "TQ1_0", "TQ2_0", "MXFP4", "NVFP4", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S",
    "IQ1_S", "IQ1_M", "IQ4_NL", "IQ4_XS",
})  # fmt: skip


def check_kind(tensor: GgufTensor) -> None:
    """Raise ``UnsupportedModel`` where ``tensor`` is of a type that cannot be dequantised."""
    if tensor.kind not in KINDS:
        raise UnsupportedModel(
            f"the tensor {tensor.name!r} is of type {tensor.kind}, which cannot be dequantised; "
            "convert the model to one of " + ", ".join(sorted(KINDS))
        )


def rows_of(path: Path, tensor: GgufTensor) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """Yield (first row, float32 [n, columns]) over ``tensor``; one of a single dimension is one
    row. Raises ``UnsupportedModel`` for other types, ``CorruptWeights`` for a file cut short."""
    check_kind(tensor)
    kind = GGMLQuantizationType[tensor.kind]
    block, block_bytes = GGML_QUANT_SIZES[kind]
    columns = tensor.shape[-1]
    row_bytes = columns // block * block_bytes
    n_rows = tensor.n_bytes // row_bytes
    per_chunk = max(1, CHUNK_VALUES // columns)
    with path.open("rb") as file:
        for first in range(0, n_rows, per_chunk):
            count = min(per_chunk, n_rows - first)
            raw = np.empty((count, row_bytes), dtype=np.uint8)
            n_read = os.preadv(file.fileno(), [raw.data], tensor.offset + first * row_bytes)
            if n_read != raw.nbytes:
                raise CorruptWeights(
                    f"{path} became shorter while {tensor.name!r} was read; obtain it again"
                )
            yield (
                first,
                dequantize(raw, kind).reshape(count, columns).astype(np.float32, copy=False),
            )
