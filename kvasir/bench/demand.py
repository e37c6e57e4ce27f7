"""What figures of the workload cannot do without: bytes that must be read, products to be made."""

from __future__ import annotations

from kvasir.bench.machine_limits import Demand
from kvasir.bench.made_program import layer_bytes, layer_shapes
from kvasir.bench.workload import Sizes
from kvasir.core.geometry import KvGeometry
from kvasir.kernels.native.library import required
from kvasir.kernels.native.weights import FORMATS
from kvasir.model.spec import ModelSpec


def demands(spec: ModelSpec, sizes: Sizes, weights: str, kv: str) -> dict[str, Demand]:
    """By the keys of ``measure.figures``, where memory or products are the limit."""
    return {
        **{f"prefill@{n}": _prefill(spec, n, weights, kv) for n in sizes.read},
        **{f"decode@{n}": _decode(spec, n, sizes, weights, kv) for n in sizes.decode},
    }


def _prefill(spec: ModelSpec, n: int, weights: str, kv: str) -> Demand:
    parameters = spec.n_layers * sum(n_out * n_in for n_out, n_in in layer_shapes(spec))
    head = spec.vocab_size * spec.hidden  # of the last row only
    per_key = 4 * spec.n_layers * spec.n_heads * spec.head_dim  # a product of scores, one of values
    return Demand(
        weights=weights,
        kv=kv,
        linear_operations=2.0 * (parameters + head / n),
        attention_operations=per_key * (n + 1) / 2,
    )


def _decode(spec: ModelSpec, n: int, sizes: Sizes, weights: str, kv: str) -> Demand:
    # beside int4 weights the output layer is kept in int8
    head = FORMATS["int8" if weights == "int4" else weights]
    head_bytes = required().kvasir_packed_bytes(head, spec.vocab_size, spec.hidden)
    token_bytes = KvGeometry(
        n_layers=spec.n_layers,
        n_kv_heads=spec.n_kv_heads,
        head_dim=spec.head_dim,
        dtype="int8" if kv == "int8" else "bfloat16",
        dtype_bytes=1 if kv == "int8" else 2,
        block_tokens=64,
        n_blocks=1,
    ).token_bytes
    context = n + sizes.decode_tokens / 2
    return Demand(
        weights=weights,
        kv=kv,
        read_bytes=spec.n_layers * layer_bytes(spec, weights) + head_bytes + context * token_bytes,
    )
