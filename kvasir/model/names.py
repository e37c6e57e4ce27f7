"""The tensors of a decoder: their names in Hugging Face checkpoints and in GGUF files, and their
shapes. Torch-free.

Invariant: ``expected_tensors`` lists exactly what the decoder asks for, so a checkpoint that has
more or less computes something else than the spec says.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from kvasir.model.spec import ModelSpec

Shape = tuple[int, ...]

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
HEAD = "lm_head.weight"

_GLOBAL = {EMBEDDING: "token_embd.weight", FINAL_NORM: "output_norm.weight", HEAD: "output.weight"}
_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_LAYER_NAME = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")
# buffers of old checkpoints that are recomputed from the config
_RECOMPUTED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


def expected_tensors(spec: ModelSpec) -> dict[str, Shape]:
    """Name and shape of every tensor that a decoder of ``spec`` reads."""
    tensors: dict[str, Shape] = {EMBEDDING: (spec.vocab_size, spec.hidden)}
    for layer in range(spec.n_layers):
        for name, shape in _layer_tensors(spec).items():
            tensors[f"model.layers.{layer}.{name}"] = shape
    tensors[FINAL_NORM] = (spec.hidden,)
    if not spec.tied_embeddings:
        tensors[HEAD] = (spec.vocab_size, spec.hidden)
    return tensors


def _layer_tensors(spec: ModelSpec) -> dict[str, Shape]:
    queries = spec.n_heads * spec.head_dim
    keys = spec.n_kv_heads * spec.head_dim
    projections: list[tuple[str, int, int, bool]] = [  # name, out, in, bias
        ("self_attn.q_proj", queries, spec.hidden, spec.qkv_bias),
        ("self_attn.k_proj", keys, spec.hidden, spec.qkv_bias),
        ("self_attn.v_proj", keys, spec.hidden, spec.qkv_bias),
        ("self_attn.o_proj", spec.hidden, queries, spec.output_bias),
        ("mlp.gate_proj", spec.intermediate, spec.hidden, spec.mlp_bias),
        ("mlp.up_proj", spec.intermediate, spec.hidden, spec.mlp_bias),
        ("mlp.down_proj", spec.hidden, spec.intermediate, spec.mlp_bias),
    ]
    tensors: dict[str, Shape] = {
        "input_layernorm.weight": (spec.hidden,),
        "post_attention_layernorm.weight": (spec.hidden,),
    }
    for name, rows, columns, bias in projections:
        tensors[f"{name}.weight"] = (rows, columns)
        if bias:
            tensors[f"{name}.bias"] = (rows,)
    if spec.qk_norm:
        tensors["self_attn.q_norm.weight"] = (spec.head_dim,)
        tensors["self_attn.k_norm.weight"] = (spec.head_dim,)
    return tensors


def gguf_name(name: str) -> str:
    """The GGUF name of the tensor with the Hugging Face ``name`` of ``expected_tensors``."""
    if name in _GLOBAL:
        return _GLOBAL[name]
    match = _LAYER_NAME.fullmatch(name)
    if match is None or match[2] not in _LAYER:
        raise KeyError(name)
    return f"blk.{match[1]}.{_LAYER[match[2]]}.{match[3]}"


def permuted_heads(spec: ModelSpec, name: str) -> int | None:
    """How many heads of rotary pairs are interleaved in the GGUF form of tensor ``name``; None
    where its rows are in order.

    GGUF files of the architecture "llama" hold query and key rows as (pair, half) within each head;
    Hugging Face has them as (half, pair). Qwen files are not permuted.
    """
    if spec.architecture not in ("llama", "mistral"):
        return None
    if ".q_proj." in name:
        return spec.n_heads
    return spec.n_kv_heads if ".k_proj." in name else None


def harmless(name: str, spec: ModelSpec) -> bool:
    """Whether a tensor that the decoder does not read may be in a checkpoint all the same."""
    return _RECOMPUTED.fullmatch(name) is not None or (spec.tied_embeddings and name == HEAD)


def unexpected(names: Iterable[str], wanted: Iterable[str], spec: ModelSpec) -> list[str]:
    """Those of ``names`` that a decoder of ``spec`` would leave out, though they mean something."""
    known = set(wanted)
    return sorted(name for name in names if name not in known and not harmless(name, spec))
