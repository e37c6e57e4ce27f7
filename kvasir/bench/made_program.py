"""Native programs of a shape's layers, without a model: as many layers as are wanted, at once.

Invariant: every layer has memory of its own, as in a real model. What lies in it is a few rows of
random weights over and over, since packing real ones would take longer than measuring them.
"""

from __future__ import annotations

import torch

from kvasir.core.geometry import KvGeometry
from kvasir.kernels.native import abi
from kvasir.kernels.native.library import Isa, required
from kvasir.kernels.native.program import LayerParts, ModelParts, Program
from kvasir.kernels.native.weights import FORMATS, PackedLinear, aligned_bytes, pack, padded_vector
from kvasir.model.native_forward import layer_shapes
from kvasir.model.rope import inverse_frequencies
from kvasir.model.spec import ModelSpec
from kvasir.tiers.device import DevicePool

_SAMPLE_ROWS = 4 * abi.PANEL
_VOCABULARY = abi.PANEL  # no logits are asked for


def made_parts(spec: ModelSpec, weights: str, n_layers: int) -> ModelParts:
    """``n_layers`` layers of ``spec``, their weights in the format ``weights``. Raises
    ``DoesNotFit``."""
    frequencies, magnitude = inverse_frequencies(spec.rope, spec.head_dim)
    ones = padded_vector(torch.ones(spec.hidden))
    generator = torch.Generator().manual_seed(0)
    samples = [_sample(generator, n_in, weights) for _, n_in in layer_shapes(spec)]
    outputs = [n_out for n_out, _ in layer_shapes(spec)]

    def layer() -> LayerParts:
        made = [_repeated(s, n, weights) for s, n in zip(samples, outputs, strict=True)]
        return LayerParts(
            attention_norm=ones,
            query_norm=None,
            key_norm=None,
            feed_forward_norm=ones,
            qkv=made[0],
            output=made[1],
            gate_up=made[2],
            down=made[3],
            window=None,
        )

    return ModelParts(
        hidden=spec.hidden,
        n_heads=spec.n_heads,
        n_kv_heads=spec.n_kv_heads,
        head_dim=spec.head_dim,
        intermediate=spec.intermediate,
        vocab_size=_VOCABULARY,
        norm_eps=spec.norm_eps,
        rope_magnitude=magnitude,
        frequencies=frequencies.contiguous(),
        embedding=torch.randn(_VOCABULARY, spec.hidden, generator=generator).bfloat16(),
        final_norm=ones,
        head=_repeated(_sample(generator, spec.hidden, weights), _VOCABULARY, weights),
        layers=tuple(layer() for _ in range(n_layers)),
    )


def open_program(parts: ModelParts, isa: Isa, threads: int) -> Program:
    """A program over ``parts``."""
    return Program(parts, isa, threads)


def filled_pool(geometry: KvGeometry) -> DevicePool:
    """A pool whose every slot is written: memory that nobody wrote would be read from one page."""
    pool = DevicePool(geometry, "cpu")
    generator = torch.Generator().manual_seed(0)
    for planes in pool.all_planes:
        rows = planes.flatten(2)  # [n_layers, n_slots, C]
        shape = (geometry.block_tokens, rows.shape[2])
        if geometry.dtype == "int8":
            block = torch.randint(-127, 128, shape, generator=generator, dtype=torch.int8)
            scales = torch.full((shape[0], geometry.n_kv_heads), 0.01, dtype=torch.bfloat16)
            block[:, -2 * geometry.n_kv_heads :] = scales.view(torch.int8)
        else:
            block = torch.randn(shape, generator=generator).to(rows.dtype)
        rows.view(len(rows), -1, *shape).copy_(block)
    return pool


def _sample(generator: torch.Generator, n_in: int, weights: str) -> PackedLinear:
    weight = torch.randn(_SAMPLE_ROWS, n_in, generator=generator) / n_in**0.5
    return pack(required(), weight, None, weights)


def _repeated(sample: PackedLinear, n_out: int, weights: str) -> PackedLinear:
    """A projection of ``n_out`` outputs with the panels of ``sample`` over and over."""
    n_in = sample.struct.n_in
    weight = aligned_bytes(required().kvasir_packed_bytes(FORMATS[weights], n_out, n_in))
    for at in range(0, len(weight), len(sample.weight)):
        part = weight[at : at + len(sample.weight)]
        part.copy_(sample.weight[: len(part)])
    scale = None
    if sample.scale is not None:
        n_columns = -(-n_out // abi.PANEL) * abi.PANEL
        scale = sample.scale.repeat(-(-n_columns // _SAMPLE_ROWS))[:n_columns].contiguous()
    struct = abi.Linear(
        weight=weight.data_ptr(),
        scale=scale.data_ptr() if scale is not None else None,
        bias=None,
        n_out=n_out,
        n_in=n_in,
        format=FORMATS[weights],
    )
    return PackedLinear(struct, weight, scale, None)
