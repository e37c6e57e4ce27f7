"""The decoder's logits equal those of the transformers library, for each family and RoPE kind, on
small random models whose attention is peaked; and each of many small mistakes would be seen.

Bound: 1e-4 absolute in float32, on logits of magnitude about 1 to 10.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import transformers
from paged_cases import DEVICES, scattered, table_of
from torch import Tensor

from kvasir.attention.backend import BACKENDS, Situation
from kvasir.attention.batch import describe
from kvasir.core.geometry import KvGeometry
from kvasir.kernels.paging import Span
from kvasir.model.decoder import Decoder
from kvasir.model.spec import ModelSpec, RopeSpec
from kvasir.tiers.device import DevicePool

TOLERANCE = 1e-4
N_TOKENS = 150
WINDOW = 48
VOCAB = 211
PEAKED_NATS = 1.0  # the median entropy of attention rows; uniform ones would have up to 5.0

ROPES: dict[str, dict[str, object]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    "yarn-attention-factor": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "attention_factor": 1.4,
        "beta_fast": 2.0,
        "beta_slow": 0.5,
    },
    "yarn-mscale": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "mscale": 1.0,
        "mscale_all_dim": 0.7,
        "truncate": False,
    },
}
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 96,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "attn_implementation": "eager",
}
FAMILIES: dict[str, Callable[..., transformers.PreTrainedModel]] = {
    "llama": lambda **rope: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**SIZES, **rope)
    ),
    "llama-biased": lambda **rope: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            **SIZES, head_dim=32, attention_bias=True, mlp_bias=True, tie_word_embeddings=True,
            **rope,
        )
    ),
    "mistral": lambda **rope: transformers.MistralForCausalLM(
        transformers.MistralConfig(**SIZES, head_dim=32, sliding_window=WINDOW, **rope)
    ),
    "qwen2": lambda **rope: transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(
            **SIZES,
            use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1, **rope,
        )
    ),
    "qwen3": lambda **rope: transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(**SIZES, head_dim=32, tie_word_embeddings=True, **rope)
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A random model, what transformers says of it, and how peaked its attention is."""

    spec: ModelSpec
    tensors: dict[str, Tensor]
    tokens: Tensor  # [N_TOKENS]
    logits: Tensor  # [N_TOKENS, VOCAB]
    median_entropy: float  # nats, over rows with at least 16 visible keys


def spec_of(config: transformers.PretrainedConfig) -> ModelSpec:
    rope = dict(config.rope_parameters)
    layers = getattr(config, "layer_types", None) or ["sliding_attention"] * 3
    window = getattr(config, "sliding_window", None)
    windows = tuple(window if kind == "sliding_attention" else None for kind in layers)
    return ModelSpec(
        architecture=config.model_type,
        n_layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        n_heads=config.num_attention_heads,
        n_kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None)
        or config.hidden_size // config.num_attention_heads,
        intermediate=config.intermediate_size,
        vocab_size=config.vocab_size,
        window=config.max_position_embeddings,
        norm_eps=config.rms_norm_eps,
        rope=RopeSpec(
            kind=rope["rope_type"],
            theta=rope["rope_theta"],
            original_window=rope.get("original_max_position_embeddings"),
            truncate=rope.get("truncate", True),
            **{
                name: rope.get(name)
                for name in (
                    "factor", "low_freq_factor", "high_freq_factor", "attention_factor",
                    "beta_fast", "beta_slow", "mscale", "mscale_all_dim",
                )
            },
        ),
        tied_embeddings=config.tie_word_embeddings,
        qkv_bias=config.model_type == "qwen2" or getattr(config, "attention_bias", False),
        output_bias=config.model_type == "llama" and config.attention_bias,
        mlp_bias=getattr(config, "mlp_bias", False),
        qk_norm=config.model_type == "qwen3",
        sliding_window=windows if any(windows) else (),
    )  # fmt: skip


def randomise(model: transformers.PreTrainedModel, sharpen: float) -> None:
    """Weights of a scale at which every part matters: norms and biases too, which are initialised
    to ones and zeros. Queries and keys are scaled by ``sharpen`` (their norms, where normed)."""
    generator = torch.Generator().manual_seed(5)
    normed = model.config.model_type == "qwen3"
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            noise = torch.randn(p.shape, generator=generator)
            if name.endswith("norm.weight"):
                p.copy_(1.0 + 0.3 * noise)
                if normed and ("q_norm" in name or "k_norm" in name):
                    p.mul_(sharpen)
            elif name.endswith("bias"):
                p.copy_(0.5 * noise)
            else:
                p.copy_(noise * p.shape[-1] ** -0.5)
                if not normed and ("q_proj" in name or "k_proj" in name):
                    p.mul_(sharpen)


@functools.cache
def case(family: str, rope: str) -> Case:
    torch.manual_seed(7)
    parameters = {"rope_theta": 10_000.0, **ROPES[rope]}
    model = FAMILIES[family](rope_parameters=parameters).eval()
    tokens = torch.randint(0, VOCAB, (N_TOKENS,))
    sharpen, entropy = 1.0, math.inf
    while entropy > PEAKED_NATS:
        randomise(model, sharpen)
        with torch.no_grad():
            out = model(tokens[None], output_attentions=True)
        weights = torch.cat(out.attentions)[:, :, 16:]  # [layers, Hq, rows, T]
        entropy = float(torch.special.entr(weights).sum(-1).median())
        sharpen *= 1.08
    tensors = {name: p.clone() for name, p in model.state_dict().items()}
    return Case(spec_of(model.config), tensors, tokens, out.logits[0].clone(), entropy)


def compute(decoder: Decoder, tokens: Tensor, *, chunk: int, backend: str, seed: int = 0) -> Tensor:
    """Logits of every position, read ``chunk`` tokens at a time through a scattered table."""
    spec, device = decoder.spec, str(decoder.device)
    planner = next(b.plan for b in BACKENDS if b.name == backend)
    geometry = geometry_of(spec, 16, 40)
    pool = DevicePool(geometry, device)
    pool.fill(math.nan)
    blocks = scattered(random.Random(seed), list(range(40)), geometry.blocks_for(len(tokens)))
    table = table_of(blocks, 16, device)
    rows = []
    for start in range(0, len(tokens), chunk):
        n = min(chunk, len(tokens) - start)
        batch = describe([Span(0, n, start, table)], planner, decoder.windows, decoder.device)
        hidden = decoder.forward(tokens[start : start + n].to(device), batch, pool)
        rows.append(decoder.logits(hidden).cpu())
    return torch.cat(rows)


def geometry_of(spec: ModelSpec, block_tokens: int, n_blocks: int) -> KvGeometry:
    return KvGeometry(
        n_layers=spec.n_layers,
        n_kv_heads=spec.n_kv_heads,
        head_dim=spec.head_dim,
        dtype="float32",
        dtype_bytes=4,
        block_tokens=block_tokens,
        n_blocks=n_blocks,
    )


def decoder_of(made: Case, device: str, spec: ModelSpec | None = None) -> Decoder:
    return Decoder(spec or made.spec, made.tensors.__getitem__, torch.float32, device)


def backends_on(device: str) -> list[str]:
    situation = Situation(device=torch.device(device), dtype=torch.float32)
    return [b.name for b in BACKENDS if not b.against(situation)]


PLACES = [(device, backend) for device in DEVICES for backend in backends_on(device)]


@pytest.mark.parametrize(("device", "backend"), PLACES)
@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_transformers(family: str, rope: str, device: str, backend: str) -> None:
    made = case(family, rope)
    assert made.median_entropy < PEAKED_NATS
    assert made.logits.std() > 0.5
    found = compute(decoder_of(made, device), made.tokens, chunk=N_TOKENS, backend=backend)
    assert (found - made.logits).abs().max() < TOLERANCE


@pytest.mark.parametrize(("device", "backend"), PLACES)
@pytest.mark.parametrize("chunk", [1, 7, 16, 47, 64])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_any_chunking_gives_the_same_logits(
    family: str, chunk: int, device: str, backend: str
) -> None:
    made = case(family, "default")
    found = compute(decoder_of(made, device), made.tokens, chunk=chunk, backend=backend, seed=chunk)
    assert (found - made.logits).abs().max() < TOLERANCE


@pytest.mark.parametrize(("device", "backend"), PLACES)
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
def test_a_mixed_batch_over_shared_blocks_gives_the_same_logits(
    family: str, device: str, backend: str
) -> None:
    """Three sequences begin with the same two blocks; each step mixes chunks and single tokens."""
    made = case(family, "llama3")
    decoder = decoder_of(made, device)
    planner = next(b.plan for b in BACKENDS if b.name == backend)
    pool = DevicePool(geometry_of(made.spec, 16, 60), device)
    pool.fill(math.nan)
    rng = random.Random(3)
    free = list(range(60))
    shared = scattered(rng, free, 2)
    tables = [table_of(shared + scattered(rng, free, 8), 16, device) for _ in range(3)]
    done = [0, 32, 32]  # the first sequence reads the shared blocks, the others find them
    found = [torch.full((N_TOKENS, VOCAB), torch.nan) for _ in tables]
    while min(done) < N_TOKENS:
        spans, tokens, row = [], [], 0
        for i, table in enumerate(tables):
            if i > 0 and done[0] < 32:
                continue
            n = min(rng.choice([1, 1, 5, 33]), N_TOKENS - done[i])
            if n == 0:
                continue
            spans.append(Span(row, n, done[i], table))
            tokens.append(made.tokens[done[i] : done[i] + n])
            row += n
        batch = describe(spans, planner, decoder.windows, decoder.device)
        hidden = decoder.forward(torch.cat(tokens).to(device), batch, pool)
        logits = decoder.logits(hidden).cpu()
        for span in spans:
            i = tables.index(span.table)
            found[i][span.start : span.end] = logits[span.row : span.row + span.n]
            done[i] = span.end
    for i, rows in enumerate(found):
        first = 32 if i else 0
        assert (rows[first:] - made.logits[first:]).abs().max() < TOLERANCE


def _other_rope(kind: str) -> Callable[[ModelSpec], ModelSpec]:
    def change(spec: ModelSpec) -> ModelSpec:
        parameters = dict.fromkeys(("factor", "low_freq_factor", "high_freq_factor"), None)
        rope = dataclasses.replace(spec.rope, **{**parameters, **_ROPE_PARAMETERS[kind]}, kind=kind)
        return dataclasses.replace(spec, rope=rope)

    return change


_ROPE_PARAMETERS: dict[str, dict[str, float]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "llama3": {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_window": 64
    },
    "yarn": {"factor": 4.0, "original_window": 64},
}  # fmt: skip


@pytest.mark.parametrize(
    ("right", "wrong"),
    [(right, wrong) for right in _ROPE_PARAMETERS for wrong in _ROPE_PARAMETERS if right != wrong],
)
def test_a_wrong_rope_kind_is_seen(right: str, wrong: str) -> None:
    made = case("llama", right)
    spec = _other_rope(wrong)(made.spec)
    assert _difference(made, spec) > 100 * TOLERANCE


def _difference(
    made: Case, spec: ModelSpec | None = None, renamed: dict[str, str] | None = None
) -> float:
    def take(name: str) -> Tensor:
        for a, b in (renamed or {}).items():
            if a in name:
                return made.tensors[name.replace(a, b)]
            if b in name:
                return made.tensors[name.replace(b, a)]
        return made.tensors[name]

    decoder = Decoder(spec or made.spec, take, torch.float32, "cpu")
    found = compute(decoder, made.tokens, chunk=N_TOKENS, backend="torch-sdpa")
    return float((found - made.logits).abs().max())


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("qwen2", {"qkv_bias": False}),
        ("llama-biased", {"qkv_bias": False}),
        ("llama-biased", {"output_bias": False}),
        ("llama-biased", {"mlp_bias": False}),
        ("qwen3", {"qk_norm": False}),
        ("qwen2", {"sliding_window": ()}),
        ("mistral", {"sliding_window": (WINDOW + 1,) * 3}),
        ("mistral", {"sliding_window": (WINDOW - 1,) * 3}),
        ("llama", {"norm_eps": 1e-2}),
    ],
)
def test_a_wrong_spec_is_seen(family: str, change: dict[str, object]) -> None:
    made = case(family, "default")
    assert _difference(made) < TOLERANCE
    assert _difference(made, dataclasses.replace(made.spec, **change)) > 10 * TOLERANCE


@pytest.mark.parametrize(
    ("family", "swapped"),
    [
        ("llama", {"input_layernorm": "post_attention_layernorm"}),
        ("qwen3", {"q_norm": "k_norm"}),
        ("qwen2", {"gate_proj": "up_proj"}),
    ],
)
def test_a_swapped_weight_is_seen(family: str, swapped: dict[str, str]) -> None:
    assert _difference(case(family, "default"), renamed=swapped) > 100 * TOLERANCE


@pytest.mark.parametrize("ignored", ["attention_factor", "mscale", "truncate", "beta_fast"])
def test_an_ignored_yarn_parameter_is_seen(ignored: str) -> None:
    made = case("llama", "yarn-mscale" if ignored in ("mscale", "truncate") else list(ROPES)[4])
    rope = dataclasses.replace(made.spec.rope, **{ignored: True if ignored == "truncate" else None})
    assert _difference(made, dataclasses.replace(made.spec, rope=rope)) > 10 * TOLERANCE
