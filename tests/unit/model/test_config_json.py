"""Specs from config.json: each family, its defaults, its RoPE kinds, and refusals by name."""

from __future__ import annotations

import pytest
from synthetic_models import FAMILIES, SIZES, config_of

from kvasir.core.errors import CorruptWeights, ModelError, UnsupportedModel
from kvasir.model.config_json import spec_from_config
from kvasir.model.spec import RopeSpec

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
BARE = {key: SIZES[key] for key in ("vocab_size", "hidden_size", "intermediate_size")} | {
    "num_hidden_layers": 30,
    "num_attention_heads": 32,
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("changes", [{}, {"use_sliding_window": True}])
def test_absent_keys_take_the_defaults_of_transformers(family: str, changes: dict) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = BARE | {"hidden_size": 256}
    theirs = transformers.AutoConfig.for_model(family, **sizes, **changes)
    ours = spec_from_config({"model_type": family, **sizes, **changes})
    assert ours.n_kv_heads == theirs.num_key_value_heads
    assert ours.head_dim == getattr(theirs, "head_dim", None) or 8
    assert ours.window == theirs.max_position_embeddings
    assert ours.norm_eps == theirs.rms_norm_eps
    assert ours.tied_embeddings == theirs.tie_word_embeddings
    assert ours.rope == RopeSpec(kind="default", theta=theirs.rope_parameters["rope_theta"])
    sliding = getattr(theirs, "sliding_window", None)
    kinds = getattr(theirs, "layer_types", None) or ["sliding_attention"] * 30
    for layer, kind in enumerate(kinds):
        expected = sliding if kind == "sliding_attention" else None
        assert ours.window_of(layer) == expected, layer


def test_biases_and_norms_are_those_of_the_family() -> None:
    def flags(family: str, **changes: object) -> tuple[bool, bool, bool, bool]:
        spec = spec_from_config(config_of(family, **changes))
        return spec.qkv_bias, spec.output_bias, spec.mlp_bias, spec.qk_norm

    assert flags("llama") == (False, False, False, False)
    assert flags("llama", attention_bias=True, mlp_bias=True) == (True, True, True, False)
    assert flags("mistral", attention_bias=True) == (False, False, False, False)
    assert flags("qwen2") == (True, False, False, False)
    assert flags("qwen3") == (False, False, False, True)
    assert flags("qwen3", attention_bias=True) == (True, True, False, True)


def test_head_size_is_explicit_or_hidden_by_heads() -> None:
    config = config_of("llama")
    del config["head_dim"]
    assert spec_from_config(config).head_dim == 8
    assert spec_from_config(config_of("llama", head_dim=16)).head_dim == 16
    assert spec_from_config(config_of("llama", head_dim=None)).head_dim == 8


def test_sliding_windows_per_layer() -> None:
    def layers(family: str, **changes: object) -> tuple[int | None, ...]:
        return spec_from_config(config_of(family, **changes)).sliding_window

    full, sliding = "full_attention", "sliding_attention"
    assert layers("mistral", sliding_window=16) == (16, 16)
    assert layers("mistral", sliding_window=None) == ()
    assert layers("mistral", sliding_window=256) == ()  # as much as the model's window
    assert layers("llama", sliding_window=16) == ()
    assert layers("qwen2", sliding_window=16) == ()  # not in use
    assert layers("qwen2", sliding_window=16, use_sliding_window=True) == ()  # from layer 28 on
    assert layers("qwen3", sliding_window=16, use_sliding_window=True, max_window_layers=1) == (
        None,
        16,
    )
    assert layers(
        "qwen3", sliding_window=16, use_sliding_window=True, layer_types=[sliding, full]
    ) == (16, None)
    with pytest.raises(CorruptWeights, match="no sliding window in use"):
        layers("qwen3", sliding_window=16, layer_types=[sliding, full])
    with pytest.raises(UnsupportedModel, match="mixes layer types"):
        layers("mistral", sliding_window=16, layer_types=[sliding, full])
    with pytest.raises(UnsupportedModel, match="linear_attention"):
        layers("qwen3", layer_types=["linear_attention", full])
    with pytest.raises(CorruptWeights, match="2 layers"):
        layers("qwen3", layer_types=[full])


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("kind_key", ["type", "rope_type"])
def test_rope_kinds_in_both_forms(key: str, kind_key: str) -> None:
    def rope(entry: dict, **changes: object) -> RopeSpec:
        entry = {kind_key if k == "rope_type" else k: v for k, v in entry.items()}
        return spec_from_config(config_of("llama", **{key: entry}, **changes)).rope

    assert rope({"rope_type": "linear", "factor": 2}, rope_theta=5e5) == RopeSpec(
        kind="linear", theta=5e5, factor=2.0
    )
    assert rope({**LLAMA3, "rope_theta": 5e5}, rope_theta=1e4) == RopeSpec(
        kind="llama3",
        theta=5e5,
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_window=64,
    )
    assert rope({**YARN, "beta_fast": 16, "truncate": False, "attention_factor": 1.5}) == RopeSpec(
        kind="yarn",
        theta=1e4,
        factor=4.0,
        original_window=64,
        attention_factor=1.5,
        beta_fast=16.0,
        truncate=False,
    )
    assert rope({"rope_type": "default"}) == RopeSpec(kind="default", theta=1e4)


def test_window_after_scaling() -> None:
    def window(**changes: object) -> int:
        return spec_from_config(config_of("llama", **changes)).window

    assert window() == 256
    assert window(rope_scaling=YARN | {"original_max_position_embeddings": 256}) == 1024
    assert window(rope_scaling=YARN) == 256  # 64 × 4, which the config's 256 had counted already
    assert window(rope_scaling={"type": "yarn", "factor": 4.0}) == 1024
    assert window(rope_scaling=LLAMA3) == 256
    linear = {"type": "linear", "factor": 4.0}
    assert window(rope_scaling=linear) == 256
    assert window(rope_scaling=linear, original_max_position_embeddings=256) == 1024
    with pytest.raises(CorruptWeights, match="window"):
        window(rope_scaling={"type": "yarn", "factor": 1e5}, max_position_embeddings=2**20)


@pytest.mark.parametrize("kind", ["dynamic", "longrope", "su", "mrope", "proportional", ""])
def test_other_rope_kinds_are_refused_by_name(kind: str) -> None:
    with pytest.raises(UnsupportedModel, match=repr(kind)):
        spec_from_config(config_of("llama", rope_scaling={"rope_type": kind, "factor": 2}))


def test_rope_of_a_part_of_the_head_or_per_layer_type_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="part of each head"):
        spec_from_config(config_of("llama", partial_rotary_factor=0.5))
    with pytest.raises(UnsupportedModel, match="per layer type"):
        spec_from_config(config_of("qwen3", rope_parameters={"full_attention": {}}))


@pytest.mark.parametrize("family", ["gemma3", "qwen3_moe", "phi3", "gpt2", "Llama", ""])
def test_other_model_types_are_refused_by_name(family: str) -> None:
    with pytest.raises(UnsupportedModel, match=repr(family)):
        spec_from_config(config_of(family))


def test_other_activations_and_quantised_weights_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedModel, match="gelu"):
        spec_from_config(config_of("llama", hidden_act="gelu"))
    for method in ("gptq", "awq", "fp8", "bitsandbytes"):
        with pytest.raises(UnsupportedModel, match=method):
            spec_from_config(config_of("llama", quantization_config={"quant_method": method}))


NUMBERS = [key for key, value in SIZES.items() if isinstance(value, int)]
ABSURD = [-1, 0, 10**9, 2**31, 2**63, 10**400, float("nan"), float("inf"), 1.5, "4", True, [4], {}]


@pytest.mark.parametrize("key", NUMBERS)
@pytest.mark.parametrize("value", ABSURD, ids=lambda value: str(value)[:20])
def test_absurd_sizes_are_refused_naming_the_key(key: str, value: object) -> None:
    with pytest.raises(CorruptWeights, match=key):
        spec_from_config(config_of("llama", **{key: value}))


@pytest.mark.parametrize("value", [*ABSURD[6:], -1, 0, 1e-30, 0.5], ids=str)
def test_absurd_norm_eps_is_refused(value: object) -> None:
    with pytest.raises(CorruptWeights, match="rms_norm_eps"):
        spec_from_config(config_of("llama", rms_norm_eps=value))


@pytest.mark.parametrize("key", ["factor", "rope_theta", "beta_fast", "attention_factor"])
@pytest.mark.parametrize("value", [-1, 2**63, float("nan"), float("inf"), 10**400, "x", True])
def test_absurd_rope_numbers_are_refused(key: str, value: object) -> None:
    with pytest.raises(CorruptWeights, match=key):
        spec_from_config(config_of("llama", rope_scaling=YARN | {key: value}))


def test_heads_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(CorruptWeights, match="evenly"):
        spec_from_config(config_of("llama", num_key_value_heads=3))
    with pytest.raises(CorruptWeights, match="head size 7"):
        spec_from_config(config_of("llama", head_dim=7))


@pytest.mark.parametrize("key", ["model_type", "hidden_size", "vocab_size", "num_hidden_layers"])
def test_what_cannot_be_guessed_must_be_there(key: str) -> None:
    config = config_of("llama")
    del config[key]
    with pytest.raises(ModelError, match=key):
        spec_from_config(config)
