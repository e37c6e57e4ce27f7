"""What figures of the workload cannot do without: bytes that must be read, products to be made."""

from __future__ import annotations

from kvasir.bench.machine_limits import Demand
from kvasir.bench.workload import Sizes
from kvasir.core.geometry import KvGeometry
from kvasir.model.native_forward import layer_shapes, packed_bytes
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
    seen = sum(_seen(spec, layer, at) for layer in range(spec.n_layers) for at in range(n))
    per_key = 4 * spec.n_heads * spec.head_dim  # a product of scores, one of values
    return Demand(
        weights=weights,
        kv=kv,
        read_bytes=packed_bytes(spec, weights) / n,
        linear_operations=2.0 * (parameters + head / n),
        attention_operations=per_key * seen / n,
    )


def _decode(spec: ModelSpec, n: int, sizes: Sizes, weights: str, kv: str) -> Demand:
    token_bytes = KvGeometry(
        n_layers=1,
        n_kv_heads=spec.n_kv_heads,
        head_dim=spec.head_dim,
        dtype="int8" if kv == "int8" else "bfloat16",
        dtype_bytes=1 if kv == "int8" else 2,
        block_tokens=64,
        n_blocks=1,
    ).token_bytes
    middle = n + sizes.decode_tokens // 2
    seen = sum(_seen(spec, layer, middle) for layer in range(spec.n_layers))
    return Demand(
        weights=weights,
        kv=kv,
        read_bytes=packed_bytes(spec, weights) + seen * token_bytes,
    )


def _seen(spec: ModelSpec, layer: int, position: int) -> int:
    """Tokens that the one at ``position`` attends to."""
    window = spec.window_of(layer)
    return min(position + 1, window) if window else position + 1
