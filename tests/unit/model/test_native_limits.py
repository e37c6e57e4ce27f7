"""What the native kernels refuse, and what loading takes beside the weights."""

from __future__ import annotations

from dataclasses import replace

from kvasir.bench.made_model import SHAPES
from kvasir.model.native_forward import against, loading_bytes

SPEC = SHAPES["Llama-3.1-8B"]


def test_more_query_heads_than_a_task_holds_are_refused() -> None:
    fits = replace(SPEC, n_heads=64, n_kv_heads=1, head_dim=64)
    assert not against(fits, "bf16")
    assert "128 query heads" in against(replace(fits, n_heads=128), "bf16")[0]


def test_loading_is_counted_with_what_is_joined_and_quantised() -> None:
    gate_and_up = 2 * SPEC.intermediate * SPEC.hidden
    output = SPEC.vocab_size * SPEC.hidden
    assert loading_bytes(SPEC, "bf16") == 2 * 4 * gate_and_up * 2
    assert loading_bytes(SPEC, "int4") == max(2 * 6 * gate_and_up * 4, 3 * output * 4)
