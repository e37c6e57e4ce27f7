"""A ``ModelSpec`` from a GGUF file's metadata and tensor list. Torch-free.

Architectures "llama" (which Mistral files call themselves too), "qwen2" and "qwen3". Anything that
would change the arithmetic and is not run is refused by its name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from kvasir.core.errors import CorruptWeights, UnsupportedModel
from kvasir.model import limits
from kvasir.model.config_json import check_heads, per_layer
from kvasir.model.dequantize import rows_of
from kvasir.model.fields import Fields
from kvasir.model.gguf_file import GgufFile
from kvasir.model.rope_config import window_of
from kvasir.model.spec import ModelSpec, RopeSpec

ARCHITECTURES = ("llama", "qwen2", "qwen3")
ROPE_FACTORS = "rope_freqs.weight"
# keys that change the arithmetic, with the one value that means "as usual"
_NEUTRAL: tuple[tuple[str, float], ...] = (
    ("expert_count", 0),
    ("logit_scale", 1),
    ("embedding_scale", 1),
    ("residual_scale", 1),
    ("attention.clamp_kqv", 0),
    ("attention.max_alibi_bias", 0),
    ("rope.scaling.yarn_log_multiplier", 0),
    ("rope.scaling.yarn_ext_factor", 1),
    ("rope.scale_linear", 1),
)
_REFUSED = ("attention.sliding_window_pattern", "rope.dimension_sections", "attention.scale")


def spec_from_gguf(file: GgufFile) -> ModelSpec:
    """The spec of the model in ``file``.

    Raises ``UnsupportedModel`` for what is not run, naming it, and ``CorruptWeights`` for metadata
    that is missing, out of bounds or contradicts the tensors.
    """
    source = f"the metadata of {file.path.name}"
    general = Fields(file.metadata, source)
    arch = general.text("general.architecture")
    if arch not in ARCHITECTURES:
        raise UnsupportedModel(
            f"GGUF architecture {arch!r} is not supported; those that are: "
            + ", ".join(ARCHITECTURES)
        )
    if general.integer("split.count", 0, 65_535, 0) > 1:
        raise UnsupportedModel(f"{file.path.name} is one part of a split GGUF; merge the parts")
    prefix = arch + "."
    own = {k.removeprefix(prefix): v for k, v in file.metadata.items() if k.startswith(prefix)}
    meta = Fields(own, f"{source} ({arch}.*)")
    _refuse_variants(meta)
    hidden = meta.integer("embedding_length", 1, limits.MAX_HIDDEN)
    n_layers = meta.integer("block_count", 1, limits.MAX_LAYERS)
    n_heads = meta.integer("attention.head_count", 1, limits.MAX_HEADS)
    n_kv_heads = meta.integer("attention.head_count_kv", 1, limits.MAX_HEADS, n_heads)
    head_dim = _head_dim(meta, hidden, n_heads)
    check_heads(meta.source, n_heads, n_kv_heads, head_dim)
    context = meta.integer("context_length", 1, limits.MAX_WINDOW)
    rope = _rope(file, meta, head_dim, context)
    window = window_of(rope, meta, context)
    seen = meta.integer("attention.sliding_window", 0, limits.MAX_WINDOW, 0)
    return ModelSpec(
        architecture=arch,
        n_layers=n_layers,
        hidden=hidden,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        intermediate=meta.integer("feed_forward_length", 1, limits.MAX_INTERMEDIATE),
        vocab_size=_vocab_size(file),
        window=window,
        norm_eps=meta.number("attention.layer_norm_rms_epsilon", limits.MIN_EPS, limits.MAX_EPS),
        rope=rope,
        tied_embeddings="output.weight" not in file.tensors,
        qkv_bias="blk.0.attn_q.bias" in file.tensors,
        output_bias="blk.0.attn_output.bias" in file.tensors,
        mlp_bias="blk.0.ffn_down.bias" in file.tensors,
        qk_norm=arch == "qwen3",
        sliding_window=per_layer([seen] * n_layers, window) if seen else (),
    )


def _refuse_variants(meta: Fields) -> None:
    for key, neutral in _NEUTRAL:
        value = meta.number(key, -1e9, 1e9, neutral)
        if value != neutral:
            raise UnsupportedModel(f"{meta.source}: {key} = {value:g} is not supported")
    for key in _REFUSED:
        if meta.has(key):
            raise UnsupportedModel(f"{meta.source}: {key} is not supported")
    if not meta.flag("attention.causal", True):
        raise UnsupportedModel(f"{meta.source}: attention that is not causal is not supported")


def _head_dim(meta: Fields, hidden: int, n_heads: int) -> int:
    keys = meta.integer("attention.key_length", 1, limits.MAX_HEAD_DIM, max(1, hidden // n_heads))
    values = meta.integer("attention.value_length", 1, limits.MAX_HEAD_DIM, keys)
    rotated = meta.integer("rope.dimension_count", 1, limits.MAX_HEAD_DIM, keys)
    if values != keys:
        raise UnsupportedModel(
            f"{meta.source}: keys of {keys} and values of {values} per head are not supported"
        )
    if rotated != keys:
        raise UnsupportedModel(
            f"{meta.source}: RoPE over {rotated} of {keys} dimensions of a head is not supported"
        )
    return keys


def _vocab_size(file: GgufFile) -> int:
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise CorruptWeights(f"{file.path.name} has no token_embd.weight matrix")
    if embedding.shape[0] > limits.MAX_VOCAB:
        raise CorruptWeights(f"{file.path.name}: a vocabulary of {embedding.shape[0]} is too large")
    return embedding.shape[0]


def _rope(file: GgufFile, meta: Fields, head_dim: int, context: int) -> RopeSpec:
    theta = meta.number("rope.freq_base", 1, limits.MAX_THETA, 10_000.0)
    kind = meta.text("rope.scaling.type", "none")
    if kind not in ("none", "linear", "yarn"):
        raise UnsupportedModel(
            f"RoPE kind {kind!r} of {meta.source} is not supported; those that are: none, linear, "
            "yarn, and llama3 by its frequency factors"
        )
    if ROPE_FACTORS in file.tensors:
        factors = _rope_factors(file, head_dim)
        if any(factor != 1 for factor in factors):
            if kind != "none":
                raise UnsupportedModel(f"{meta.source}: RoPE kind {kind!r} with frequency factors")
            return llama3_from_factors(factors, theta)
    if kind == "none":
        return RopeSpec(kind="default", theta=theta)
    factor = meta.number("rope.scaling.factor", 1, limits.MAX_ROPE_FACTOR)
    if kind == "linear":
        return RopeSpec(kind="linear", theta=theta, factor=factor)
    if theta <= 1:  # the correction range divides by log(theta)
        raise CorruptWeights(f"{meta.source}: yarn needs a rope.freq_base above 1, not {theta:g}")
    attention = meta.optional_number("rope.scaling.attn_factor", 0, 1e3)
    return RopeSpec(
        kind="yarn",
        theta=theta,
        factor=factor,
        original_window=meta.integer(
            "rope.scaling.original_context_length", 1, limits.MAX_WINDOW, context
        ),
        # ggml multiplies its attn_factor with the paper's 0.1 ln s + 1; Hugging Face replaces it
        attention_factor=None if attention is None else attention * (0.1 * math.log(factor) + 1),
        beta_fast=meta.optional_number("rope.scaling.yarn_beta_fast", 0, 1e6) or None,
        beta_slow=meta.optional_number("rope.scaling.yarn_beta_slow", 0, 1e6) or None,
    )


def _rope_factors(file: GgufFile, head_dim: int) -> list[float]:
    tensor = file.tensors[ROPE_FACTORS]
    if tensor.shape != (head_dim // 2,):
        raise CorruptWeights(
            f"{file.path.name}: {ROPE_FACTORS} is {list(tensor.shape)}, expected [{head_dim // 2}]"
        )
    return [float(value) for _, rows in rows_of(file.path, tensor) for value in rows.ravel()]


def llama3_from_factors(factors: Sequence[float], theta: float) -> RopeSpec:
    """The llama3 RoPE that divides the frequencies by ``factors``.

    GGUF files keep Llama 3's scaling as these factors and not as its four numbers. All published
    Llama 3.1, 3.2 and 3.3 models share low 1, high 4 and an original window of 8,192; the largest
    factor is the fourth number. The factors are computed back from those and compared, so what is
    accepted is exact; others are refused (``UnsupportedModel``).
    """
    rope = RopeSpec(
        kind="llama3",
        theta=theta,
        factor=round(max(factors), 6),
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_window=8192,
    )
    computed = _llama3_factors(rope, 2 * len(factors))
    if not all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(computed, factors, strict=True)):
        raise UnsupportedModel(
            f"the RoPE frequency factors in {ROPE_FACTORS} are not those of Llama 3.1 to 3.3"
        )
    return rope


def _llama3_factors(rope: RopeSpec, head_dim: int) -> list[float]:
    scale, original = rope.factor or 1.0, rope.original_window or 1
    low, high = rope.low_freq_factor or 1.0, rope.high_freq_factor or 4.0
    factors = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * math.pi * rope.theta ** (i / head_dim)
        smooth = min(1.0, max(0.0, (original / wavelength - low) / (high - low)))
        factors.append(1 / ((1 - smooth) / scale + smooth))
    return factors
