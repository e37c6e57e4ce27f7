"""A BF16 GGUF file out of a model's weights, so that llama.cpp is also compared like for like.

It carries no tokenizer: the benchmark hands every engine token ids. Matrices are bf16; vectors are
float32, as llama.cpp wants them, with the values that bf16 gives them elsewhere.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, RopeScalingType

from kvasir.bench.checkpoint import publish
from kvasir.core.errors import UnsupportedModel
from kvasir.model.files import ModelFiles
from kvasir.model.names import gguf_name, permuted_heads
from kvasir.model.spec import ModelSpec

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}


def make_gguf(files: ModelFiles, target: Path) -> Path:
    """The model of ``files`` as a BF16 GGUF file; ``target`` is used if it is there already.

    Raises ``UnsupportedModel`` for what this writer does not express: RoPE other than default and
    linear, and sliding windows.
    """
    spec = files.spec
    if spec.rope.kind not in ("default", "linear"):
        raise UnsupportedModel(f"RoPE kind {spec.rope.kind!r} is not written into a GGUF file here")
    if spec.sliding_window:
        raise UnsupportedModel("a sliding window is not written into a GGUF file here")
    return publish(target, lambda draft: _write(files, draft))


def _write(files: ModelFiles, path: Path) -> None:
    writer = GGUFWriter(path, ARCHITECTURES[files.spec.architecture])
    try:
        _add_metadata(writer, files.spec)
        for name in files.tensor_names:
            # the copy is dropped at once: only shapes and types are wanted before the bytes
            data, kind = _as_stored(files, name)
            writer.add_tensor_info(gguf_name(name), data.shape, data.dtype, data.nbytes, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name in files.tensor_names:
            writer.write_tensor_data(_as_stored(files, name)[0])
    finally:
        writer.close()


def _add_metadata(writer: GGUFWriter, spec: ModelSpec) -> None:
    writer.add_file_type(LlamaFileType.MOSTLY_BF16)
    writer.add_block_count(spec.n_layers)
    writer.add_context_length(spec.window)
    writer.add_embedding_length(spec.hidden)
    writer.add_feed_forward_length(spec.intermediate)
    writer.add_head_count(spec.n_heads)
    writer.add_head_count_kv(spec.n_kv_heads)
    writer.add_key_length(spec.head_dim)
    writer.add_value_length(spec.head_dim)
    writer.add_layer_norm_rms_eps(spec.norm_eps)
    writer.add_rope_dimension_count(spec.head_dim)
    writer.add_rope_freq_base(spec.rope.theta)
    if spec.rope.kind == "linear" and spec.rope.factor is not None:
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(spec.rope.factor)
    writer.add_vocab_size(spec.vocab_size)
    writer.add_tokenizer_model("no_vocab")


def _as_stored(
    files: ModelFiles, name: str
) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.generic]], gguf.GGMLQuantizationType]:
    """A tensor's bytes as the file has them (bf16 as pairs of bytes), and their GGML type."""
    tensor = files.tensor(name, torch.bfloat16)
    heads = permuted_heads(files.spec, name)
    if heads is not None:
        tensor = pairs_first(tensor, heads)
    if tensor.ndim == 1:
        return tensor.float().numpy(), GGMLQuantizationType.F32
    return tensor.contiguous().view(torch.uint8).numpy(), GGMLQuantizationType.BF16


def pairs_first(halves: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of ``heads`` heads from (half, pair) order, Hugging Face's, to GGUF's (pair, half)."""
    rest = halves.shape[1:]
    split = halves.view(heads, 2, -1, *rest)  # [heads, halves, pairs, …]
    return split.transpose(1, 2).reshape(halves.shape)
