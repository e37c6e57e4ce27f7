"""Folders and GGUF files opened: tensors, row order, dtypes, checks against the spec, extras."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize
from synthetic_models import (
    F32,
    FAMILIES,
    STRING,
    U32,
    config_of,
    gguf_bytes,
    gguf_meta,
    gguf_tensors,
    random_weights,
    safetensors_bytes,
    tensor_head,
    write_folder,
)

from kvasir.core.errors import CorruptWeights, ModelNotFound, UnsupportedModel
from kvasir.model import dequantize as dequantize_module
from kvasir.model.config_json import spec_from_config
from kvasir.model.files import open_model
from kvasir.model.gguf_file import GgufTensor
from kvasir.model.gguf_spec import llama3_from_factors
from kvasir.model.names import gguf_name
from kvasir.model.spec import ModelSpec

GGUF_FAMILIES = ("llama", "qwen2", "qwen3")


def spec_of(family: str, **changes: object) -> ModelSpec:
    return spec_from_config(config_of(family, **changes))


def write_gguf(path: Path, spec: ModelSpec, weights: dict, **changes: object) -> Path:
    meta = gguf_meta(spec.architecture, spec, **changes.pop("meta", {}))  # type: ignore[arg-type]
    path.write_bytes(gguf_bytes(meta, gguf_tensors(spec, weights), **changes))  # type: ignore[arg-type]
    return path


# --- folders --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_a_folder_gives_its_tensors(tmp_path: Path, family: str, tied: bool) -> None:
    config = config_of(family, tie_word_embeddings=tied)
    weights = random_weights(spec_from_config(config))
    model = open_model(write_folder(tmp_path, config, weights))
    assert model.kind == "folder"
    assert set(model.tensor_names) == set(weights)
    assert ("lm_head.weight" in weights) is not tied
    for name, expected in weights.items():
        assert torch.equal(model.tensor(name, torch.float32), torch.from_numpy(expected))
        half = model.tensor(name, torch.bfloat16)
        assert torch.equal(half, torch.from_numpy(expected).to(torch.bfloat16))
    n_values = sum(array.size for array in weights.values())
    assert model.parameter_bytes(torch.bfloat16) == 2 * n_values


def test_loaded_tensors_do_not_change_with_the_file(tmp_path: Path) -> None:
    config = config_of("llama")
    model = open_model(write_folder(tmp_path, config))
    loaded = model.tensor("model.norm.weight", torch.float32)
    before = loaded.clone()
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.seek(-64 * 1024, 2)
        file.write(b"\0" * 64 * 1024)
    assert torch.equal(loaded, before)


def test_shards_by_index(tmp_path: Path) -> None:
    config = config_of("qwen2")
    weights = random_weights(spec_from_config(config))
    names = list(weights)
    parts = {"model-1.safetensors": names[:5], "model-2.safetensors": names[5:]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for file, held in parts.items():
        (tmp_path / file).write_bytes(safetensors_bytes({n: weights[n] for n in held}))
    index = {"weight_map": {n: file for file, held in parts.items() for n in held}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    model = open_model(tmp_path)
    assert [path.name for path in model.weight_files()] == list(parts)
    for name, expected in weights.items():
        assert torch.equal(model.tensor(name, torch.float32), torch.from_numpy(expected))


def test_wrong_missing_and_surplus_tensors_are_named(tmp_path: Path) -> None:
    config = config_of("llama")
    sound = random_weights(spec_from_config(config))
    name = "model.layers.1.self_attn.k_proj.weight"

    wrong = sound | {name: np.zeros((16, 31), np.float32)}
    with pytest.raises(CorruptWeights, match=rf"{name}.*\[16, 31\].*\[16, 32\]"):
        open_model(write_folder(tmp_path / "wrong", config, wrong))

    missing = {n: array for n, array in sound.items() if n != name}
    with pytest.raises(CorruptWeights, match=name):
        open_model(write_folder(tmp_path / "missing", config, missing))

    surplus = sound | {"model.layers.0.self_attn.q_norm.weight": np.ones(8, np.float32)}
    with pytest.raises(UnsupportedModel, match="q_norm"):
        open_model(write_folder(tmp_path / "surplus", config, surplus))

    harmless = sound | {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}
    open_model(write_folder(tmp_path / "harmless", config, harmless))

    integers = sound | {name: np.zeros((16, 32), np.int32)}
    with pytest.raises(UnsupportedModel, match="I32"):
        open_model(write_folder(tmp_path / "integers", config, integers))


def test_folders_that_are_no_models_say_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"no config\.json"):
        open_model(tmp_path)
    with pytest.raises(ModelNotFound, match="there is no model"):
        open_model(tmp_path / "nothing")
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(UnsupportedModel, match=r"neither a \.gguf file"):
        open_model(tmp_path / "model.bin")
    (tmp_path / "model.bin").rename(tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps(config_of("llama")))
    with pytest.raises(UnsupportedModel, match=r"only as pytorch_model.bin, a pickle"):
        open_model(tmp_path)
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(ModelNotFound, match=r"neither model\.safetensors"):
        open_model(tmp_path)


def test_templates_and_end_ids_of_a_folder(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, config_of("llama", eos_token_id=7, bos_token_id=1))
    model = open_model(folder)
    assert (model.chat_template, model.eos_ids, model.extras.bos_id) == (None, {7}, 1)

    generation = {"eos_token_id": [7, 9], "temperature": 0.6, "max_length": 3, "top_k": None}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    model = open_model(folder)
    assert (model.chat_template, model.eos_ids) == ("D", {7, 9})
    assert dict(model.extras.generation) == {"temperature": 0.6}

    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "S"}))
    assert open_model(folder).chat_template == "S"
    (folder / "chat_template.jinja").write_text("J")
    assert open_model(folder).chat_template == "J"

    for bad in (-1, 2**40, "x", [[1]], True):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": bad}))
        with pytest.raises(CorruptWeights, match="eos_token_id"):
            open_model(folder)


# --- GGUF -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", GGUF_FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_a_gguf_file_is_the_same_model_as_the_folder(
    tmp_path: Path, family: str, tied: bool
) -> None:
    changes: dict[str, object] = {"tie_word_embeddings": tied}
    if family == "llama":
        changes |= {"attention_bias": True, "mlp_bias": True}
    spec = spec_of(family, **changes)
    weights = random_weights(spec)
    model = open_model(write_gguf(tmp_path / "m.gguf", spec, weights))
    assert model.kind == "gguf"
    assert model.spec == spec_with_float32_numbers(spec)
    assert model.eos_ids == {2}
    for name, expected in weights.items():
        assert torch.equal(model.tensor(name, torch.float32), torch.from_numpy(expected)), name


def spec_with_float32_numbers(spec: ModelSpec) -> ModelSpec:
    """GGUF keeps the epsilon in float32."""
    return dataclasses.replace(spec, norm_eps=float(np.float32(spec.norm_eps)))


@pytest.mark.parametrize("kind", sorted(dequantize_module.KINDS))
def test_every_quantisation_is_read_in_chunks(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = GGMLQuantizationType[kind]
    block, block_bytes = GGML_QUANT_SIZES[number]
    raw = np.random.default_rng(0).integers(0, 256, (64, 256 // block * block_bytes), np.uint8)
    (tmp_path / "tensor").write_bytes(b"before" + raw.tobytes() + b"after")
    tensor = GgufTensor("t", (64, 256), kind, 6, raw.nbytes)
    monkeypatch.setattr(dequantize_module, "CHUNK_VALUES", 256 * 5)
    with np.errstate(all="ignore"):  # random bytes have infinities and NaNs among the scales
        expected = dequantize(raw, number)
        chunks = list(dequantize_module.rows_of(tmp_path / "tensor", tensor))
    assert [first for first, _ in chunks] == list(range(0, 64, 5))
    assert all(rows.dtype == np.float32 for _, rows in chunks)
    assert np.array_equal(np.concatenate([rows for _, rows in chunks]), expected, equal_nan=True)


def test_quantised_weights_load_in_other_dtypes(tmp_path: Path) -> None:
    spec = spec_of("qwen2")
    weights = random_weights(spec)
    name = "model.layers.0.mlp.gate_proj.weight"
    model = open_model(
        write_gguf(tmp_path / "m.gguf", spec, weights, kinds={gguf_name(name): "Q8_0"})
    )
    expected = dequantize(
        quantize(weights[name], GGMLQuantizationType.Q8_0), GGMLQuantizationType.Q8_0
    )
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert torch.equal(model.tensor(name, dtype), torch.from_numpy(expected).to(dtype))


def test_a_file_cut_short_after_opening_is_noticed(tmp_path: Path) -> None:
    spec = spec_of("llama")
    path = write_gguf(tmp_path / "m.gguf", spec, random_weights(spec))
    model = open_model(path)
    os.truncate(path, path.stat().st_size - 32 * 1024)
    with pytest.raises(CorruptWeights, match="became shorter"):
        model.tensor(model.tensor_names[-1], torch.float32)  # tensors lie in this order


def test_types_that_cannot_be_dequantised_are_refused_by_name(tmp_path: Path) -> None:
    spec = spec_of("qwen2")
    path = write_gguf(tmp_path / "m.gguf", spec, random_weights(spec))
    shape = (spec.hidden, spec.vocab_size)  # of the first tensor, whose offset is 0
    sound = tensor_head("token_embd.weight", shape, GGMLQuantizationType.F32, 0)
    integers = tensor_head("token_embd.weight", shape, GGMLQuantizationType.I32, 0)
    path.write_bytes(path.read_bytes().replace(sound, integers))
    with pytest.raises(UnsupportedModel, match="I32"):
        open_model(path)


def gguf_with(tmp_path: Path, key: str, kind: int, value: object) -> Path:
    spec = spec_of("llama")
    entry = (key if key.startswith(("general", "split")) else "llama." + key, kind, value)
    return write_gguf(tmp_path / "m.gguf", spec, random_weights(spec), meta={"x": entry})


@pytest.mark.parametrize(
    ("key", "kind", "value", "said"),
    [
        ("rope.dimension_count", U32, 4, "RoPE over 4 of 8"),
        ("attention.value_length", U32, 4, "keys of 8 and values of 4"),
        ("rope.scaling.type", STRING, "longrope", "longrope"),
        ("rope.scaling.type", STRING, "", "''"),
        ("expert_count", U32, 8, "expert_count"),
        ("attention.sliding_window_pattern", U32, 6, "sliding_window_pattern"),
        ("attention.causal", 7, 0, "not causal"),
        ("logit_scale", F32, 2.0, "logit_scale"),
        ("split.count", U32, 3, "split GGUF"),
    ],
)
def test_gguf_variants_are_refused_by_name(
    tmp_path: Path, key: str, kind: int, value: object, said: str
) -> None:
    with pytest.raises(UnsupportedModel, match=said):
        open_model(gguf_with(tmp_path, key, kind, value))


@pytest.mark.parametrize("architecture", ["qwen2moe", "gemma3", "phi3", "mistral3"])
def test_other_gguf_architectures_are_refused_by_name(tmp_path: Path, architecture: str) -> None:
    meta = gguf_meta(architecture, spec_of("llama"))
    (tmp_path / "m.gguf").write_bytes(gguf_bytes(meta, {}))
    with pytest.raises(UnsupportedModel, match=architecture):
        open_model(tmp_path / "m.gguf")


def test_gguf_sliding_window_and_template(tmp_path: Path) -> None:
    assert open_model(
        gguf_with(tmp_path, "attention.sliding_window", U32, 16)
    ).spec.sliding_window == (16, 16)
    spec = spec_of("llama")
    template = ("tokenizer.chat_template", STRING, "T")
    path = write_gguf(tmp_path / "t.gguf", spec, random_weights(spec), meta={"t": template})
    assert open_model(path).chat_template == "T"


def test_gguf_linear_and_yarn(tmp_path: Path) -> None:
    def rope(**keys: tuple[int, object]) -> ModelSpec:
        spec = spec_of("qwen2")
        meta = {k: ("qwen2.rope.scaling." + k, *v) for k, v in keys.items()}
        return open_model(
            write_gguf(tmp_path / "m.gguf", spec, random_weights(spec), meta=meta)
        ).spec

    linear = rope(type=(STRING, "linear"), factor=(F32, 4.0))
    assert (linear.rope.kind, linear.rope.factor, linear.window) == ("linear", 4.0, 256)
    yarn = rope(type=(STRING, "yarn"), factor=(F32, 4.0), original_context_length=(U32, 256))
    assert (yarn.rope.kind, yarn.rope.original_window, yarn.window) == ("yarn", 256, 1024)
    assert yarn.rope.attention_factor is None
    factor = rope(type=(STRING, "yarn"), factor=(F32, 4.0), attn_factor=(F32, 2.0))
    assert factor.rope.attention_factor == pytest.approx(2 * (0.1 * np.log(4) + 1))


def llama3_factors(scale: float, theta: float, head_dim: int, low: float = 1.0) -> list[float]:
    """What transformers does to each frequency, as a quotient."""
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    entry = {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": scale,
        "low_freq_factor": low,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    sizes = {"hidden_size": head_dim, "num_attention_heads": 1, "head_dim": head_dim}
    config = transformers.LlamaConfig(**sizes, rope_parameters=entry)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config)
    plain = 1.0 / theta ** (torch.arange(0, head_dim, 2) / head_dim)
    return (plain / scaled).tolist()


@pytest.mark.parametrize(("scale", "head_dim"), [(8.0, 128), (32.0, 64)])
def test_llama3_factors_of_a_gguf_are_recognised(scale: float, head_dim: int) -> None:
    rope = llama3_from_factors(llama3_factors(scale, 5e5, head_dim), 5e5)
    assert (rope.kind, rope.low_freq_factor, rope.high_freq_factor) == ("llama3", 1.0, 4.0)
    assert rope.factor == pytest.approx(scale)
    assert rope.original_window == 8192


def test_other_frequency_factors_are_refused() -> None:
    with pytest.raises(UnsupportedModel, match="frequency factors"):
        llama3_from_factors(llama3_factors(8.0, 5e5, 128, low=2.0), 5e5)
    with pytest.raises(UnsupportedModel, match="frequency factors"):
        llama3_from_factors([1.0, float("nan"), 8.0, 8.0], 5e5)


def test_the_embedded_model_equals_what_transformers_makes_of_it(embedded_gguf: Path) -> None:
    gguf_utils = pytest.importorskip("transformers.modeling_gguf_pytorch_utils")
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3}
    processor = gguf_utils.LlamaTensorProcessor(config=heads)
    model = open_model(embedded_gguf)
    names = {gguf_name(name): name for name in model.tensor_names}
    theirs = {tensor.name: tensor for tensor in GGUFReader(embedded_gguf).tensors}
    assert set(names) == set(theirs)
    for name in [
        n for n in theirs if not n.startswith("blk") or n.startswith(("blk.0.", "blk.29."))
    ]:
        raw = dequantize(theirs[name].data, theirs[name].tensor_type)
        expected = processor.process(weights=raw, name=name).weights
        loaded = model.tensor(names[name], torch.float32)
        assert torch.equal(loaded, torch.from_numpy(np.array(expected))), name
    spec = model.spec
    assert (spec.window, spec.n_layers, spec.rope.theta) == (8192, 30, 100_000.0)
    assert spec.tied_embeddings
    assert model.chat_template is not None
    assert "<|im_start|>" in model.chat_template
    assert model.eos_ids == {2}
