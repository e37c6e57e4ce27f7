"""A decoder as a native program: the same weights and the same function as ``model.decoder``, in
one call per step on a CPU.

Invariant: greedy output does not depend on batch, chunks, threads or cache, to the last bit.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from kvasir.kernels.native.library import Isa, required
from kvasir.kernels.native.program import LayerParts, ModelParts, Planes, Program
from kvasir.kernels.native.weights import FORMATS, gates_and_ups, pack, padded_vector
from kvasir.kernels.paging import Span
from kvasir.model.forward import AfterLayer, Computed
from kvasir.model.rope import inverse_frequencies
from kvasir.model.spec import ModelSpec
from kvasir.tiers.device import DevicePool

_MOST_WIDTH = 2**17  # of a row: native/generic.inc's kMostWidth
_MOST_HEAD_DIM = 1024
_MOST_GROUP = 64  # of query heads of a KV head: the least of native/kernels_*.cpp's kAttendRows
_LOADERS = 2  # layers in the making at a time: each takes memory, see ``loading_bytes``
_MOST_INT8_INPUTS = 2**16  # sums of more products could leave 32 bits

Tensors = Callable[[str, torch.dtype], Tensor]  # by Hugging Face name, as that dtype


class NativeForward:
    """A loaded model. Used by one thread only."""

    def __init__(
        self,
        spec: ModelSpec,
        tensors: Tensors,
        *,
        isa: Isa,
        threads: int,
        weights: str = "bf16",
        int8_kv: bool = False,
    ) -> None:
        """Pack every weight from ``tensors``, which several threads may call at once, in the format
        ``weights``. Raises ``DoesNotFit``."""
        self._spec = spec
        self._program = Program(_parts(spec, tensors, weights, int8_kv, threads), isa, threads)

    @property
    def spec(self) -> ModelSpec:
        return self._spec

    @property
    def exact(self) -> bool:
        return True

    def close(self) -> None:
        """End the threads."""
        self._program.close()

    def compute(
        self,
        tokens: Tensor,
        spans: Sequence[Span],
        pool: DevicePool,
        asked: Sequence[int] = (),
        after_layer: AfterLayer | None = None,
    ) -> Computed:
        keys, values = pool.all_planes
        planes = Planes(keys=keys, values=values, block_tokens=pool.geometry.block_tokens)
        hidden = self._program.hidden_rows(len(tokens))
        rows = np.array(asked, dtype=np.int64)
        n_layers = self._spec.n_layers
        if after_layer is None:
            layers = range(n_layers)
            return Computed(hidden, self._program.run(tokens, spans, planes, hidden, rows, layers))
        # somebody may end the step between two layers: a call for each
        logits = torch.empty(0)
        for layer in range(n_layers):
            one = range(layer, layer + 1)
            logits = self._program.run(tokens, spans, planes, hidden, rows, one)
            after_layer(layer + 1)
        return Computed(hidden, logits)

    def logits(self, hidden: Tensor) -> Tensor:
        return self._program.logits(hidden)


def against(spec: ModelSpec, weights: str) -> list[str]:
    """Why the native kernels cannot compute ``spec`` with such ``weights``; empty if they can."""
    widest = max(spec.hidden, spec.intermediate, spec.n_heads * spec.head_dim)
    reasons = []
    if widest > _MOST_WIDTH:
        reasons.append(f"a row of {widest} numbers is wider than {_MOST_WIDTH}")
    if spec.head_dim > _MOST_HEAD_DIM:
        reasons.append(f"heads of {spec.head_dim} are wider than {_MOST_HEAD_DIM}")
    group = spec.n_heads // spec.n_kv_heads
    if group > _MOST_GROUP:
        reasons.append(f"{group} query heads of a KV head are more than {_MOST_GROUP}")
    if spec.head_dim % 2:
        reasons.append(f"heads of {spec.head_dim} have no halves to rotate")
    if weights == "int8" and widest > _MOST_INT8_INPUTS:
        reasons.append(f"int8 sums of {widest} products could overflow")
    return reasons


def head_weights(weights: str) -> str:
    """The format of the output layer: four bits there cost more quality than in all other layers
    together, and few bytes are saved."""
    return "int8" if weights == "int4" else weights


def _shares_head(spec: ModelSpec, weights: str) -> bool:
    """Whether rows of the embedding are read out of the packed output layer."""
    return spec.tied_embeddings and head_weights(weights) == "bf16"


def layer_shapes(spec: ModelSpec) -> tuple[tuple[int, int], ...]:
    """Outputs and inputs of a layer's projections, as the kernels join them."""
    queries = spec.n_heads * spec.head_dim
    return (
        (queries + 2 * spec.n_kv_heads * spec.head_dim, spec.hidden),
        (spec.hidden, queries),
        (2 * spec.intermediate, spec.hidden),
        (spec.hidden, spec.intermediate),
    )


def layer_bytes(spec: ModelSpec, weights: str) -> int:
    """What one layer's packed projections take."""
    library = required()
    return sum(library.kvasir_packed_bytes(FORMATS[weights], *s) for s in layer_shapes(spec))


def packed_bytes(spec: ModelSpec, weights: str) -> int:
    """What all packed projections take, the output layer's too: a token's share of memory reads."""
    number = FORMATS[head_weights(weights)]
    head: int = required().kvasir_packed_bytes(number, spec.vocab_size, spec.hidden)
    return spec.n_layers * layer_bytes(spec, weights) + head


def weight_bytes(spec: ModelSpec, weights: str) -> int:
    """Memory that the packed weights take, and the embedding where it is apart."""
    embedding = 0 if _shares_head(spec, weights) else 2 * spec.vocab_size * spec.hidden
    return packed_bytes(spec, weights) + embedding


def loading_bytes(spec: ModelSpec, weights: str) -> int:
    """Memory beside the packed weights while they are made, at most: the output layer, or as many
    layers' feed-forwards as are in the making, with what is joined and quantised of them."""
    number_bytes = 2 if weights == "bf16" else 4
    copies = 4 if weights == "bf16" else 6  # read, joined, turned, to be packed; quantised
    output = spec.vocab_size * spec.hidden * number_bytes * (1 if weights == "bf16" else 3)
    joined = 2 * spec.intermediate * spec.hidden * number_bytes
    return max(output, _LOADERS * copies * joined)


def _parts(
    spec: ModelSpec, tensors: Tensors, weights: str, int8_kv: bool, threads: int
) -> ModelParts:
    library = required()
    # of weights that are quantised here, every bit of the file counts
    dtype = torch.bfloat16 if weights == "bf16" else torch.float32
    frequencies, magnitude = inverse_frequencies(spec.rope, spec.head_dim)
    embedding = tensors("model.embed_tokens.weight", torch.bfloat16).contiguous()
    shared = _shares_head(spec, weights)
    if shared:
        head = embedding
    else:
        tied = "model.embed_tokens.weight" if spec.tied_embeddings else "lm_head.weight"
        head = tensors(tied, dtype)

    def layer(index: int) -> LayerParts:
        return _layer(library, spec, index, tensors, dtype, weights)

    packed_head = pack(library, head, None, head_weights(weights))
    del head  # before layers take their memory
    # reading and packing let go of the interpreter
    with ThreadPoolExecutor(min(threads, _LOADERS)) as pool:
        layers = tuple(pool.map(layer, range(spec.n_layers)))
    return ModelParts(
        hidden=spec.hidden,
        n_heads=spec.n_heads,
        n_kv_heads=spec.n_kv_heads,
        head_dim=spec.head_dim,
        intermediate=spec.intermediate,
        vocab_size=spec.vocab_size,
        norm_eps=spec.norm_eps,
        rope_magnitude=magnitude,
        frequencies=frequencies.contiguous(),
        embedding=None if shared else embedding,
        final_norm=padded_vector(tensors("model.norm.weight", torch.float32)),
        head=packed_head,
        layers=layers,
        int8_kv=int8_kv,
    )


def _layer(
    library: ctypes.CDLL,
    spec: ModelSpec,
    index: int,
    tensors: Tensors,
    dtype: torch.dtype,
    weights: str,
) -> LayerParts:
    prefix = f"model.layers.{index}."

    def take(name: str) -> Tensor:
        return tensors(prefix + name, dtype)

    def norm(name: str) -> Tensor:
        return padded_vector(tensors(f"{prefix}{name}.weight", torch.float32))

    def joined(names: Sequence[str], kind: str) -> Tensor:
        return torch.cat([take(f"{name}.{kind}") for name in names])

    attention = [f"self_attn.{name}_proj" for name in "qkv"]
    biases = [spec.qkv_bias, spec.output_bias, spec.mlp_bias]
    qkv_bias, output_bias, mlp_bias = biases
    gate_up = (take("mlp.gate_proj.weight"), take("mlp.up_proj.weight"))
    gate_up_bias = (
        gates_and_ups(take("mlp.gate_proj.bias"), take("mlp.up_proj.bias")) if mlp_bias else None
    )
    return LayerParts(
        attention_norm=norm("input_layernorm"),
        query_norm=norm("self_attn.q_norm") if spec.qk_norm else None,
        key_norm=norm("self_attn.k_norm") if spec.qk_norm else None,
        feed_forward_norm=norm("post_attention_layernorm"),
        qkv=pack(
            library,
            joined(attention, "weight"),
            joined(attention, "bias") if qkv_bias else None,
            weights,
        ),
        output=pack(
            library,
            take("self_attn.o_proj.weight"),
            take("self_attn.o_proj.bias") if output_bias else None,
            weights,
        ),
        gate_up=pack(library, gates_and_ups(*gate_up), gate_up_bias, weights),
        down=pack(
            library,
            take("mlp.down_proj.weight"),
            take("mlp.down_proj.bias") if mlp_bias else None,
            weights,
        ),
        window=spec.window_of(index),
    )
