"""Tiny models for tests: configs, weights, and writers of GGUF and safetensors files of our own, so
that tests can also write files that no library would."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf.constants import GGMLQuantizationType
from gguf.quants import quantize

from kvasir.model.config_json import spec_from_config
from kvasir.model.names import expected_tensors, gguf_name
from kvasir.model.spec import ModelSpec

Array = npt.NDArray[Any]

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
SIZES: dict[str, object] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "head_dim": 8,
    "sliding_window": None,
}


def config_of(family: str, **changes: object) -> dict[str, object]:
    """A small config.json of ``family``."""
    return {"model_type": family, **SIZES, **changes}


def random_weights(spec: ModelSpec, seed: int = 0) -> dict[str, npt.NDArray[np.float32]]:
    """Every tensor of ``spec`` by its Hugging Face name."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in expected_tensors(spec).items()
    }


# --- safetensors ----------------------------------------------------------------------------------

_DTYPE_NAMES = {"float32": "F32", "float16": "F16", "float64": "F64", "int32": "I32"}


def safetensors_bytes(tensors: Mapping[str, Array]) -> bytes:
    """A sound safetensors file."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, array in tensors.items():
        raw = array.tobytes()
        header[name] = {
            "dtype": _DTYPE_NAMES[str(array.dtype)],
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    return with_header(json.dumps(header).encode(), data)


def with_header(header: bytes, data: bytes = b"") -> bytes:
    """A safetensors file with whatever header."""
    return struct.pack("<Q", len(header)) + header + data


def write_folder(
    folder: Path, config: Mapping[str, object], tensors: Mapping[str, Array] | None = None
) -> Path:
    """A model folder with config.json and model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    weights = random_weights(spec_from_config(config)) if tensors is None else tensors
    (folder / "model.safetensors").write_bytes(safetensors_bytes(weights))
    return folder


# --- GGUF -----------------------------------------------------------------------------------------

U32, I32, F32, BOOL, STRING, ARRAY, U64 = 4, 5, 6, 7, 8, 9, 10
_CODES = {0: "B", U32: "I", I32: "i", F32: "f", BOOL: "B", U64: "Q"}
Meta = tuple[str, int, Any]


def gguf_text(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def gguf_value(kind: int, value: Any) -> bytes:
    if kind == STRING:
        return gguf_text(value)
    if kind == ARRAY:
        item, items = value
        return struct.pack("<IQ", item, len(items)) + b"".join(gguf_value(item, v) for v in items)
    return struct.pack("<" + _CODES[kind], value)


def gguf_bytes(
    meta: Sequence[Meta],
    tensors: Mapping[str, Array],
    *,
    kinds: Mapping[str, str] | None = None,
    version: int = 3,
    alignment: int = 32,
    heads: Sequence[bytes] | None = None,
) -> bytes:
    """A GGUF file; ``kinds`` gives the ggml type of tensors that are not F32, ``heads`` replaces
    the tensor descriptions."""
    described: list[bytes] = []
    data = b""
    for name, array in tensors.items():
        kind = GGMLQuantizationType[(kinds or {}).get(name, "F32")]
        data += b"\0" * (-len(data) % alignment)
        dims = tuple(reversed(array.shape))
        described.append(tensor_head(name, dims, int(kind), len(data)))
        data += quantize(array, kind).tobytes()
    described = list(heads) if heads is not None else described
    header = b"GGUF" + struct.pack("<IQQ", version, len(described), len(meta))
    for key, kind, value in meta:
        header += gguf_text(key) + struct.pack("<I", kind) + gguf_value(kind, value)
    header += b"".join(described)
    return header + b"\0" * (-len(header) % alignment) + data


def tensor_head(name: str, dims: Sequence[int], kind: int, offset: int) -> bytes:
    """A tensor's description; ``dims`` in GGUF's order, columns first."""
    return (
        gguf_text(name)
        + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
        + struct.pack("<IQ", kind, offset)
    )


def gguf_meta(architecture: str, spec: ModelSpec, **changes: Meta) -> list[Meta]:
    """The metadata of a model of ``spec``."""
    own = architecture + "."
    meta: list[Meta] = [
        ("general.architecture", STRING, architecture),
        (own + "block_count", U32, spec.n_layers),
        (own + "context_length", U32, spec.window),
        (own + "embedding_length", U32, spec.hidden),
        (own + "feed_forward_length", U32, spec.intermediate),
        (own + "attention.head_count", U32, spec.n_heads),
        (own + "attention.head_count_kv", U32, spec.n_kv_heads),
        (own + "attention.layer_norm_rms_epsilon", F32, spec.norm_eps),
        (own + "attention.key_length", U32, spec.head_dim),
        (own + "rope.freq_base", F32, spec.rope.theta),
        ("tokenizer.ggml.eos_token_id", U32, 2),
        ("tokenizer.ggml.tokens", ARRAY, (STRING, ["a", "b", "c"])),
    ]
    return meta + list(changes.values())


def pairs_first(rows: Array, heads: int) -> Array:
    """Rows of ``heads`` heads in the order that GGUF files of the llama architecture have."""
    rest = rows.shape[1:]
    halves = rows.reshape(heads, 2, -1, *rest)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def gguf_tensors(spec: ModelSpec, weights: Mapping[str, Array]) -> dict[str, Array]:
    """``weights`` under GGUF names and in GGUF's row order."""
    permuted = spec.architecture in ("llama", "mistral")
    tensors = {}
    for name, array in weights.items():
        stored = array
        if permuted and ".q_proj." in name:
            stored = pairs_first(array, spec.n_heads)
        elif permuted and ".k_proj." in name:
            stored = pairs_first(array, spec.n_kv_heads)
        tensors[gguf_name(name)] = stored
    return tensors
