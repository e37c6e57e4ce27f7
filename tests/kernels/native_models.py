"""Made models for the native kernels, pools for them, and what they should compute, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kvasir.core.geometry import KvGeometry
from kvasir.kernels.native.library import Isa, isas
from kvasir.kernels.paging import BlockTable, Span
from kvasir.kernels.quantise import to_int4, to_int8
from kvasir.model.names import expected_tensors
from kvasir.model.native_forward import NativeForward, head_weights
from kvasir.model.rope import inverse_frequencies
from kvasir.model.spec import ModelSpec, RopeSpec
from kvasir.tiers.device import DevicePool

ISAS = [isa for isa in isas() if not isa.against]
NAMES = [isa.name for isa in ISAS]
WEIGHTS = ("bf16", "int8", "int4")


def spec_of(
    *,
    head_dim: int = 64,
    n_kv_heads: int = 2,
    group: int = 2,
    hidden: int = 96,
    intermediate: int = 112,
    n_layers: int = 2,
    window: int | None = None,
    qk_norm: bool = False,
    bias: bool = False,
    tied: bool = True,
    vocab_size: int = 131,
) -> ModelSpec:
    return ModelSpec(
        architecture="llama",
        n_layers=n_layers,
        hidden=hidden,
        n_heads=n_kv_heads * group,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        intermediate=intermediate,
        vocab_size=vocab_size,
        window=32_768,
        norm_eps=1e-5,
        rope=RopeSpec(kind="default", theta=10_000.0),
        tied_embeddings=tied,
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=bias,
        qk_norm=qk_norm,
        sliding_window=(window,) * n_layers if window else (),
    )


def tensors_of(spec: ModelSpec, seed: int) -> dict[str, Tensor]:
    """Random weights that bfloat16 holds exactly, so that only computing differs."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, shape in expected_tensors(spec).items():
        noise = torch.randn(shape, generator=generator)
        if name.endswith("norm.weight"):
            value = 1 + 0.2 * noise
        elif name.endswith("bias"):
            value = 0.3 * noise
        elif "embed" in name:
            value = noise
        else:
            value = noise * 1.3 * shape[-1] ** -0.5
        made[name] = value.to(torch.bfloat16).float()
    return made


def forward_of(
    spec: ModelSpec,
    tensors: dict[str, Tensor],
    isa: Isa,
    *,
    threads: int = 1,
    weights: str = "bf16",
    int8_kv: bool = False,
) -> NativeForward:
    return NativeForward(
        spec,
        lambda name, dtype: tensors[name].to(dtype),
        isa=isa,
        threads=threads,
        weights=weights,
        int8_kv=int8_kv,
    )


def pool_of(spec: ModelSpec, n_blocks: int, block_tokens: int, int8_kv: bool) -> DevicePool:
    """A pool in which every slot holds what is no number, until it is written."""
    pool = DevicePool(
        KvGeometry(
            n_layers=spec.n_layers,
            n_kv_heads=spec.n_kv_heads,
            head_dim=spec.head_dim,
            dtype="int8" if int8_kv else "bfloat16",
            dtype_bytes=1 if int8_kv else 2,
            block_tokens=block_tokens,
            n_blocks=n_blocks,
        ),
        "cpu",
    )
    for plane in pool.all_planes:
        plane.view(torch.uint8).fill_(255)  # a NaN in bfloat16, also as a scale
    return pool


def table_of(blocks: Sequence[int], block_tokens: int) -> BlockTable:
    table = BlockTable(block_tokens, torch.device("cpu"))
    table.append((block, 1) for block in blocks)
    return table


def whole(n: int, block_tokens: int = 16) -> Span:
    """One sequence from its beginning, in the first blocks of a pool."""
    return Span(0, n, 0, table_of(range(-(-n // block_tokens)), block_tokens))


def computed(forward: NativeForward, tokens: Tensor, pool: DevicePool) -> Tensor:
    """Logits after every one of ``tokens``, in one step: [n, V]."""
    n = len(tokens)
    return forward.compute(
        tokens, [whole(n, pool.geometry.block_tokens)], pool, range(n)
    ).logits.clone()


# --- what it should be ----------------------------------------------------------------------------


def kept_weights(tensors: dict[str, Tensor], weights: str) -> dict[str, Tensor]:
    """What the kernels hold of ``tensors`` in the format ``weights``, in float64."""
    change: dict[str, Callable[[Tensor], Tensor]] = {
        "bf16": lambda w: w,
        "int8": lambda w: to_int8(w).dequantised(),
        "int4": lambda w: to_int4(w).dequantised(),
    }
    kept = {}
    for name, tensor in tensors.items():
        plain = tensor.dim() == 1 or "embed" in name
        kept[name] = (tensor if plain else change[weights](tensor)).double()
    tied = "lm_head.weight" not in tensors
    head = tensors["model.embed_tokens.weight" if tied else "lm_head.weight"]
    kept["lm_head.weight"] = change[head_weights(weights)](head).double()
    return kept


def oracle(
    spec: ModelSpec, kept: dict[str, Tensor], tokens: Tensor, last: int | None = None
) -> Tensor:
    """Logits after every one of ``tokens`` in float64, written to be read: [n, V]. ``last``: after
    so many of the last ones, for a model of one layer, where the others' hidden states do not
    matter."""

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + spec.norm_eps).sqrt() * weight

    def project(x: Tensor, name: str) -> Tensor:
        y = x @ kept[f"{name}.weight"].T
        return y + kept[f"{name}.bias"] if f"{name}.bias" in kept else y

    n, dim = len(tokens), spec.head_dim
    frequencies, magnitude = inverse_frequencies(spec.rope, dim)
    angles = (torch.arange(n)[:, None].float() * frequencies).double()
    cos, sin = angles.cos()[:, None] * magnitude, angles.sin()[:, None] * magnitude

    def rotate(x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    hidden = kept["model.embed_tokens.weight"][tokens]
    rows = torch.arange(n)[-last if last else None :]
    ahead = torch.arange(n)[None] > rows[:, None]
    for i in range(spec.n_layers):
        at = f"model.layers.{i}."
        x = norm(hidden, kept[f"{at}input_layernorm.weight"])
        q, k, v = (
            project(x, f"{at}self_attn.{name}_proj").view(n, -1, dim) for name in ("q", "k", "v")
        )
        if spec.qk_norm:
            q = norm(q, kept[f"{at}self_attn.q_norm.weight"])
            k = norm(k, kept[f"{at}self_attn.k_norm.weight"])
        q, k = rotate(q)[rows], rotate(k)
        hidden = hidden[rows]
        group = spec.n_heads // spec.n_kv_heads
        k, v = (x.repeat_interleave(group, 1) for x in (k, v))
        scores = torch.einsum("nhd,thd->hnt", q, k) / math.sqrt(dim)
        unseen = ahead.clone()
        window = spec.window_of(i)
        if window is not None:
            unseen |= torch.arange(n)[None] <= rows[:, None] - window
        mixed = scores.masked_fill(unseen, -torch.inf).softmax(-1)
        attended = torch.einsum("hnt,thd->nhd", mixed, v).flatten(1)
        hidden = hidden + project(attended, f"{at}self_attn.o_proj")
        x = norm(hidden, kept[f"{at}post_attention_layernorm.weight"])
        gate = torch.nn.functional.silu(project(x, f"{at}mlp.gate_proj"))
        hidden = hidden + project(gate * project(x, f"{at}mlp.up_proj"), f"{at}mlp.down_proj")
    return norm(hidden, kept["model.norm.weight"]) @ kept["lm_head.weight"].T
