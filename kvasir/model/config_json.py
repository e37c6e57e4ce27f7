"""A ``ModelSpec`` from a Hugging Face ``config.json``. Torch-free.

Keys that a file leaves out take the default of their own family's configuration class in
transformers 5. A model type, activation, quantisation or RoPE kind that is not run is refused by
its name, and numbers are bounded before anything is sized by them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kvasir.core.errors import CorruptWeights, UnsupportedModel
from kvasir.model import limits
from kvasir.model.fields import Fields, shorten
from kvasir.model.rope_config import LAYER_KINDS, rope_from_config, window_of
from kvasir.model.spec import ModelSpec

SlidingWindow = tuple[int | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family:
    """What transformers assumes for keys that a family's config leaves out. ``n_kv_heads`` None
    means one per query head, ``head_dim`` None means hidden / heads."""

    n_kv_heads: int | None
    head_dim: int | None
    max_positions: int
    sliding_window: int | None = None  # Mistral has one unless the file says null


FAMILIES: Mapping[str, _Family] = {
    "llama": _Family(n_kv_heads=None, head_dim=None, max_positions=2048),
    "mistral": _Family(n_kv_heads=8, head_dim=None, max_positions=131_072, sliding_window=4096),
    "qwen2": _Family(n_kv_heads=32, head_dim=None, max_positions=32_768),
    "qwen3": _Family(n_kv_heads=32, head_dim=128, max_positions=32_768),
}


def spec_from_config(values: Mapping[str, object], source: str = "config.json") -> ModelSpec:
    """The spec that the parsed ``config.json`` in ``values`` describes.

    Raises ``UnsupportedModel`` for what is not run, naming it, and ``CorruptWeights`` for values of
    a wrong type, out of bounds or contradicting each other.
    """
    config = Fields(values, source)
    name = config.text("model_type")
    family = FAMILIES.get(name)
    if family is None:
        raise UnsupportedModel(
            f"model type {name!r} is not supported; those that are: {', '.join(FAMILIES)}"
        )
    _refuse_variants(config)
    n_layers = config.integer("num_hidden_layers", 1, limits.MAX_LAYERS)
    hidden = config.integer("hidden_size", 1, limits.MAX_HIDDEN)
    n_heads, n_kv_heads, head_dim = _heads(config, family, hidden)
    max_positions = config.integer(
        "max_position_embeddings", 1, limits.MAX_WINDOW, family.max_positions
    )
    rope = rope_from_config(config, max_positions)
    window = window_of(rope, config, max_positions)
    own_bias = name in ("llama", "qwen3") and config.flag("attention_bias", False)
    return ModelSpec(
        architecture=name,
        n_layers=n_layers,
        hidden=hidden,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        intermediate=config.integer("intermediate_size", 1, limits.MAX_INTERMEDIATE),
        vocab_size=config.integer("vocab_size", 1, limits.MAX_VOCAB),
        window=window,
        norm_eps=config.number("rms_norm_eps", limits.MIN_EPS, limits.MAX_EPS, 1e-6),
        rope=rope,
        tied_embeddings=config.flag("tie_word_embeddings", False),
        qkv_bias=name == "qwen2" or own_bias,
        output_bias=own_bias,
        mlp_bias=name == "llama" and config.flag("mlp_bias", False),
        qk_norm=name == "qwen3",
        sliding_window=_sliding_window(config, name, family, n_layers, window),
    )


def _refuse_variants(config: Fields) -> None:
    act = config.text("hidden_act", "silu")
    if act != "silu":
        raise UnsupportedModel(f"activation {act!r} is not supported; only 'silu' is")
    for key in ("quantization_config", "compression_config"):
        quantised = config.table(key)
        if quantised is not None:
            method = quantised.values.get("quant_method", "of an unnamed method")
            raise UnsupportedModel(
                f"the weights are quantised ({shorten(method)}); Kvasir reads unquantised "
                "safetensors and GGUF files"
            )


def _heads(config: Fields, family: _Family, hidden: int) -> tuple[int, int, int]:
    n_heads = config.integer("num_attention_heads", 1, limits.MAX_HEADS)
    absent = "num_key_value_heads" not in config.values
    n_kv_heads = config.integer(
        "num_key_value_heads",
        1,
        limits.MAX_HEADS,
        family.n_kv_heads if absent and family.n_kv_heads else n_heads,
    )
    head_dim = config.integer(
        "head_dim", 2, limits.MAX_HEAD_DIM, family.head_dim or max(1, hidden // n_heads)
    )
    check_heads(config.source, n_heads, n_kv_heads, head_dim)
    return n_heads, n_kv_heads, head_dim


def check_heads(source: str, n_heads: int, n_kv_heads: int, head_dim: int) -> None:
    """Refuse head counts and sizes that no grouped-query attention with RoPE can have."""
    if n_heads % n_kv_heads:
        raise CorruptWeights(
            f"{source}: {n_heads} query heads cannot share {n_kv_heads} key-value heads evenly"
        )
    if head_dim % 2 or not 2 <= head_dim <= limits.MAX_HEAD_DIM:
        raise CorruptWeights(
            f"{source}: head size {head_dim} does not do; RoPE needs an even one from 2 to "
            f"{limits.MAX_HEAD_DIM}"
        )


def _sliding_window(
    config: Fields, name: str, family: _Family, n_layers: int, window: int
) -> SlidingWindow:
    if name == "llama":  # transformers runs every llama with full attention, whatever the file says
        return ()
    if name == "mistral":
        _refuse_mixed_mistral(config)
        absent = "sliding_window" not in config.values
        if not absent and not config.has("sliding_window"):
            return ()
        seen = config.integer("sliding_window", 1, limits.MAX_WINDOW, family.sliding_window)
        return per_layer([seen] * n_layers, window)
    seen_qwen: int | None = None
    if config.flag("use_sliding_window", False):
        absent = "sliding_window" not in config.values
        if absent or config.has("sliding_window"):
            seen_qwen = config.integer("sliding_window", 1, limits.MAX_WINDOW, 4096)
    kinds = _layer_kinds(config, n_layers)
    if kinds is None:
        first = config.integer("max_window_layers", 0, 2**31, 28)
        kinds = [LAYER_KINDS[layer >= first and seen_qwen is not None] for layer in range(n_layers)]
    if seen_qwen is None and LAYER_KINDS[1] in kinds:
        raise CorruptWeights(
            f"{config.source} has sliding_attention layers but no sliding window in use"
        )
    return per_layer([seen_qwen if kind == LAYER_KINDS[1] else None for kind in kinds], window)


def per_layer(seen: list[int | None] | list[int], window: int) -> SlidingWindow:
    """``seen`` as a spec keeps it: a layer that sees the whole window is a full one, and where all
    are full nothing is kept."""
    layers = tuple(None if n is None or n >= window else n for n in seen)
    return layers if any(n is not None for n in layers) else ()


def _layer_kinds(config: Fields, n_layers: int) -> list[str] | None:
    kinds = config.values.get("layer_types")
    if kinds is None:
        return None
    if not isinstance(kinds, list) or len(kinds) != n_layers:
        raise CorruptWeights(f"{config.source}: layer_types must list {n_layers} layers")
    for kind in kinds:
        if kind not in LAYER_KINDS:
            raise UnsupportedModel(
                f"layer type {shorten(kind)} is not supported; those that are: "
                + ", ".join(LAYER_KINDS)
            )
    return kinds


def _refuse_mixed_mistral(config: Fields) -> None:
    """Mistral's own class slides in all layers or in none; a file that mixes them is a Ministral
    under a wrong name."""
    kinds = config.values.get("layer_types")
    if isinstance(kinds, list) and len({str(k) for k in kinds}) > 1:
        raise UnsupportedModel(
            f"{config.source} is of type 'mistral' but mixes layer types; not supported"
        )
