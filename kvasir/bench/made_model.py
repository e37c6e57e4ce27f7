"""Models that are made for a measurement: a shape in numbers, and weights from a seed.

Invariant: a tensor depends on its name, its shape and the seed alone, whatever is made before it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from kvasir.model.names import expected_tensors
from kvasir.model.spec import ModelSpec, RopeSpec

Tensors = Callable[[str, torch.dtype], Tensor]

_QWEN = ModelSpec(
    architecture="qwen2",
    n_layers=24,
    hidden=896,
    n_heads=14,
    n_kv_heads=2,
    head_dim=64,
    intermediate=4864,
    vocab_size=151_936,
    window=32_768,
    norm_eps=1e-6,
    rope=RopeSpec(kind="default", theta=1_000_000.0),
    tied_embeddings=True,
    qkv_bias=True,
)
SHAPES = {
    "SmolLM2-135M": ModelSpec(
        architecture="llama",
        n_layers=30,
        hidden=576,
        n_heads=9,
        n_kv_heads=3,
        head_dim=64,
        intermediate=1536,
        vocab_size=49_152,
        window=8192,
        norm_eps=1e-5,
        rope=RopeSpec(kind="default", theta=100_000.0),
        tied_embeddings=True,
    ),
    "Qwen2.5-0.5B": _QWEN,
    "Llama-3.1-8B": ModelSpec(
        architecture="llama",
        n_layers=32,
        hidden=4096,
        n_heads=32,
        n_kv_heads=8,
        head_dim=128,
        intermediate=14_336,
        vocab_size=128_256,
        window=131_072,
        norm_eps=1e-5,
        rope=RopeSpec(kind="default", theta=500_000.0),
        tied_embeddings=False,
    ),
}


def small_qwen(window: int) -> ModelSpec:
    """Qwen2.5-0.5B with few layers and a short vocabulary."""
    return replace(_QWEN, n_layers=6, vocab_size=16_384, window=window)


def random_tensors(spec: ModelSpec, seed: int) -> Tensors:
    """Tensors of ``spec`` by name: normal, scaled by one over the root of a row's length, so that
    what a layer passes on is about as large as what it got; norms are 1."""
    shapes = expected_tensors(spec)

    def take(name: str, dtype: torch.dtype) -> Tensor:
        shape = shapes[name]
        if name.endswith("norm.weight"):
            return torch.ones(shape, dtype=dtype)
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{name}".encode()))
        n_in = shape[1] if len(shape) > 1 else spec.hidden
        made: Tensor = torch.randn(shape, generator=generator) / n_in**0.5
        return made.to(dtype)

    return take
