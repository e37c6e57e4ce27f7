"""Every instruction set's kernels against the same model in float64, over shapes that Hypothesis
draws. Slots that were never written hold NaN.

Bounds on the root mean square of the difference over that of the logits: weights count as they are
kept, so what is left is rounding. bfloat16 keeps 8 bits and a step rounds some ten times a layer:
3e-2 of two layers; 6e-2 where KV is int8, which adds a rounding of 7 bits to every key and value.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_models import (
    ISAS,
    NAMES,
    WEIGHTS,
    computed,
    forward_of,
    kept_weights,
    oracle,
    pool_of,
    spec_of,
    table_of,
    tensors_of,
    whole,
)

from kvasir.kernels.native.library import best, missing
from kvasir.kernels.paging import Span

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"native kernels: {missing()}")

BOUND, BOUND_INT8_KV = 3e-2, 6e-2


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.double() - want).norm() / want.norm())


shapes = st.fixed_dictionaries({
    "head_dim": st.sampled_from([8, 32, 48, 64, 80, 96, 128, 256]),
    "n_kv_heads": st.integers(1, 3),
    "group": st.sampled_from([1, 2, 3, 4, 7, 8, 16]),
    "hidden": st.sampled_from([32, 80, 96, 160]),
    "intermediate": st.sampled_from([16, 56, 112, 192]),
    "window": st.sampled_from([None, None, None, 1, 9, 70]),
    "qk_norm": st.booleans(),
    "bias": st.booleans(),
    "tied": st.booleans(),
})  # fmt: skip


@pytest.mark.parametrize("isa", ISAS, ids=NAMES)
@settings(max_examples=40, deadline=None)
@given(
    shape=shapes,
    weights=st.sampled_from(WEIGHTS),
    int8_kv=st.booleans(),
    n=st.sampled_from([1, 2, 15, 33, 130, 600]),
    block_tokens=st.sampled_from([1, 4, 16, 64]),
    seed=st.integers(0, 2**16),
)
def test_a_step_is_the_model(isa, shape, weights, int8_kv, n, block_tokens, seed) -> None:
    spec = spec_of(**shape)
    tensors = tensors_of(spec, seed)
    forward = forward_of(spec, tensors, isa, threads=2, weights=weights, int8_kv=int8_kv)
    tokens = torch.randint(spec.vocab_size, (n,), generator=torch.Generator().manual_seed(seed))
    pool = pool_of(spec, -(-n // block_tokens), block_tokens, int8_kv)
    got = computed(forward, tokens, pool)
    want = oracle(spec, kept_weights(tensors, weights), tokens)
    assert relative(got, want) < (BOUND_INT8_KV if int8_kv else BOUND)


@pytest.mark.parametrize("isa", ISAS, ids=NAMES)
@pytest.mark.parametrize("int8_kv", [False, True])
def test_a_long_text_is_the_model(isa, int8_kv: bool) -> None:
    """20,000 positions, of which the last rows are compared."""
    n = 20_000 if isa == best() else 3_000
    spec = spec_of(n_layers=1, hidden=64, intermediate=64, n_kv_heads=1, group=2)
    tensors = tensors_of(spec, 5)
    forward = forward_of(spec, tensors, isa, threads=2, int8_kv=int8_kv)
    tokens = torch.randint(spec.vocab_size, (n,), generator=torch.Generator().manual_seed(1))
    pool = pool_of(spec, -(-n // 64), 64, int8_kv)
    rows = range(n - 50, n)
    got = forward.compute(tokens, [whole(n, 64)], pool, rows).logits
    want = oracle(spec, kept_weights(tensors, "bf16"), tokens, last=50)
    assert relative(got, want) < (BOUND_INT8_KV if int8_kv else BOUND)


@pytest.mark.parametrize("isa", ISAS, ids=NAMES)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_numbers_that_are_none_show(isa, weights: str) -> None:
    """A NaN or an infinity in one text's embedding makes its logits no numbers, and those of the
    text beside it stay as they are."""
    spec = spec_of(hidden=64, intermediate=64)
    tensors = tensors_of(spec, 3)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    good = torch.arange(20) + 7
    for bad in (torch.nan, torch.inf):
        tensors["model.embed_tokens.weight"][5, 3] = bad
        untied = spec_of(hidden=64, intermediate=64, tied=False)
        forward = forward_of(untied, tensors, isa, weights=weights)
        alone = computed(forward, good, pool_of(untied, 2, 16, False))
        pool = pool_of(untied, 4, 16, False)
        spans = [Span(0, 20, 0, table_of([2, 0], 16)), Span(20, 20, 0, table_of([1, 3], 16))]
        broken = torch.full((20,), 5)
        both = forward.compute(torch.cat([broken, good]), spans, pool, range(40)).logits
        assert not both[:20].isfinite().any(1).any()
        assert torch.equal(both[20:], alone)


@pytest.mark.parametrize("isa", ISAS, ids=NAMES)
@pytest.mark.parametrize("int8_kv", [False, True])
def test_scores_of_any_size_are_attended(isa, int8_kv: bool) -> None:
    """Keys and queries a thousand times as large as usual: the softmax is all but one-hot, and must
    neither overflow nor lose the key that leads."""
    spec = spec_of(n_layers=1, bias=False, hidden=64, intermediate=64)
    tensors = tensors_of(spec, 11)
    for name in ("q_proj", "k_proj"):
        tensors[f"model.layers.0.self_attn.{name}.weight"] *= 512
    forward = forward_of(spec, tensors, isa, int8_kv=int8_kv)
    tokens = torch.randint(spec.vocab_size, (700,), generator=torch.Generator().manual_seed(2))
    got = computed(forward, tokens, pool_of(spec, 44, 16, int8_kv))
    assert got.isfinite().all()
    want = oracle(spec, kept_weights(tensors, "bf16"), tokens)
    # where two keys lead by less than rounding, the other one may be taken: most rows agree
    error = (got.double() - want).norm(dim=1) / want.norm(dim=1)
    assert error.median() < BOUND_INT8_KV
