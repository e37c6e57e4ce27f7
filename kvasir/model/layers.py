"""One decoder layer's weights and what they compute, apart from attention itself.

Query, key and value projections are one matrix. Gate and up are two, so that the activation, the
product and the residual can be applied by the projections while their results are in registers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kvasir.kernels.linear import Projection, projection
from kvasir.model.rope import rotate_
from kvasir.model.spec import ModelSpec

Tensors = Callable[[str], Tensor]


@dataclass(frozen=True, slots=True)
class RmsNorm:
    """Root-mean-square normalisation (arXiv:1910.07467) over the last dimension."""

    weight: Tensor  # [D] float32
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """``x`` normalised in float32 and weighted, in ``x``'s dtype."""
        wide = x.float()
        norm: Tensor = torch.linalg.vector_norm(wide, 2, -1, keepdim=True)
        scale = (norm * norm).mul_(1.0 / x.shape[-1]).add_(self.eps).rsqrt_()
        # In place where that is a copy already: a fresh tensor costs more than the arithmetic.
        scaled = wide * scale if x.dtype == torch.float32 else wide.mul_(scale)
        return scaled.mul_(self.weight).to(x.dtype)


@dataclass(frozen=True, slots=True)
class Layer:
    """Weights of one pre-norm layer."""

    attention_norm: RmsNorm
    qkv: Projection  # [hidden] -> [(n_heads + 2 n_kv_heads) head_dim]
    query_norm: RmsNorm | None  # over head_dim
    key_norm: RmsNorm | None
    output: Projection
    feed_forward_norm: RmsNorm
    gate: Projection  # [hidden] -> [intermediate]
    up: Projection
    down: Projection
    n_heads: int
    n_kv_heads: int
    head_dim: int
    window: int | None

    def queries_keys_values(
        self, hidden: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries [N, Hq, d] and keys [N, H, d], and values [N, H, d], of ``hidden``
        [N, D]: views of one tensor."""
        qkv = self.qkv(self.attention_norm(hidden)).view(len(hidden), -1, self.head_dim)
        rotated = self.n_heads + self.n_kv_heads
        queries, keys = qkv[:, : self.n_heads], qkv[:, self.n_heads : rotated]
        if self.query_norm is not None:
            queries.copy_(self.query_norm(queries))
        if self.key_norm is not None:
            keys.copy_(self.key_norm(keys))
        rotate_(qkv[:, :rotated], cos, sin)
        return queries, keys, qkv[:, rotated:]

    def after_attention(self, hidden: Tensor, attended: Tensor) -> Tensor:
        """Add the attention's output projection [N, Hq, d] and the feed-forward to ``hidden``."""
        hidden = self.output.add_to(hidden, attended.flatten(1))
        normed = self.feed_forward_norm(hidden)
        return self.down.add_to(hidden, self.up.times(self.gate.silu(normed), normed))


def load_layer(spec: ModelSpec, index: int, tensors: Tensors) -> Layer:
    """Layer ``index`` from ``tensors``, which gives each tensor under its Hugging Face name."""
    prefix = f"model.layers.{index}."

    def norm(name: str) -> RmsNorm:
        return RmsNorm(tensors(f"{prefix}{name}.weight").float(), spec.norm_eps)

    def fused(*names: str, bias: bool) -> Projection:
        weights = [tensors(f"{prefix}{name}.weight") for name in names]
        biases = [tensors(f"{prefix}{name}.bias") for name in names] if bias else []
        return projection(torch.cat(weights), torch.cat(biases) if biases else None)

    return Layer(
        attention_norm=norm("input_layernorm"),
        qkv=fused("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", bias=spec.qkv_bias),
        query_norm=norm("self_attn.q_norm") if spec.qk_norm else None,
        key_norm=norm("self_attn.k_norm") if spec.qk_norm else None,
        output=fused("self_attn.o_proj", bias=spec.output_bias),
        feed_forward_norm=norm("post_attention_layernorm"),
        gate=fused("mlp.gate_proj", bias=spec.mlp_bias),
        up=fused("mlp.up_proj", bias=spec.mlp_bias),
        down=fused("mlp.down_proj", bias=spec.mlp_bias),
        n_heads=spec.n_heads,
        n_kv_heads=spec.n_kv_heads,
        head_dim=spec.head_dim,
        window=spec.window_of(index),
    )
