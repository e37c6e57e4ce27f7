"""Every attention kernel against the reference, and the reference against float64 written out, over
random shapes, windows, contexts and block tables. Slots that were never written hold NaN.

Bounds on |difference| / max(1, |output|): reference 1e-12 in float64; kernels 2e-5 in float32, and
0.06 in bfloat16, where scores of up to about 20 are rounded to 8 bits.
"""

from __future__ import annotations

import random

import pytest
import torch
from paged_cases import DEVICES, Pool, scattered, table_of
from torch import Tensor

from kvasir.attention.backend import BACKENDS, Situation
from kvasir.kernels import reference, torch_cpu
from kvasir.kernels.paging import Span

DTYPES = {"float32": (torch.float32, 2e-5), "bfloat16": (torch.bfloat16, 0.06)}
KERNELS = [b for b in BACKENDS if b.name != "reference"]


def build(
    seed: int, dtype: torch.dtype, device: str
) -> tuple[list[Span], Tensor, Pool, int | None]:
    """A random step: single tokens and chunks, short and long contexts, private and shared blocks,
    neighbouring and scattered ones."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    heads, group = rng.choice([(1, 1), (2, 1), (2, 3), (3, 3), (1, 8)])
    dim = rng.choice([16, 32, 64])
    block_tokens = rng.choice([4, 16, 64])
    window = rng.choice([None, None, 1, 9, 70])
    n_blocks = 6000 // block_tokens
    free = list(range(n_blocks))
    pool = Pool(n_blocks, block_tokens, heads, dim, dtype, device)
    spans, row = [], 0
    shared = scattered(rng, free, rng.randrange(3))
    for _ in range(rng.randrange(1, 7)):
        n = rng.choice([1, 1, 1, 2, 17, 130])
        base = len(shared) * block_tokens if rng.random() < 0.5 else 0
        start = base + rng.choice([0, 1, 63, 64, 65, rng.randrange(600)])
        blocks = list(shared) if base else []
        needed = -(-(start + n) // block_tokens) - len(blocks)
        if rng.random() < 0.4 and needed > 0:  # one run
            at = rng.randrange(len(free) - needed)
            own = free[at : at + needed]
            if own[-1] - own[0] == needed - 1:
                del free[at : at + needed]
                blocks += own
                needed = 0
        blocks += scattered(rng, free, needed)
        spans.append(Span(row, n, start, table_of(blocks, block_tokens, device)))
        row += n
    spread = rng.choice([0.3, 1.0, 4.0])  # of the scores: flat to peaked
    for span in spans:
        pool.write(span, spread)
    query = torch.randn(row, heads * group, dim).to(device=device, dtype=dtype)
    return spans, query, pool, window


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda b: b.name)
@pytest.mark.parametrize("seed", range(25))
def test_kernels_agree_with_the_reference(
    kernel, seed: int, dtype: str, device: str, together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_cpu, "_TOGETHER_ROWS", 1)
    monkeypatch.setattr(torch_cpu, "_TOGETHER_TOKENS", 0 if together else 10**9)
    kind, bound = DTYPES[dtype]
    if kernel.against(Situation(device=torch.device(device), dtype=kind)):
        pytest.skip(f"{kernel.name} does not attend {dtype} on {device}")
    spans, query, pool, window = build(seed, kind, device)
    want = reference.plan(spans, window).attend(query, pool.keys, pool.values)
    with torch.inference_mode():
        plan = kernel.plan(spans, window)
        for _ in range(2):  # a plan serves every layer
            got = plan.attend(query, pool.keys, pool.values)
    assert got.shape == query.shape
    assert not got.isnan().any()
    error = (got.double() - want.double()).abs() / want.double().abs().clamp(min=1.0)
    assert error.max() < bound


@pytest.mark.parametrize("seed", range(12))
def test_the_reference_is_float64_attention_row_by_row(seed: int) -> None:
    spans, query, pool, window = build(seed, torch.float64, "cpu")
    got = reference.plan(spans, window).attend(query, pool.keys, pool.values)
    group = query.shape[1] // pool.keys.shape[1]
    for span in spans:
        slots = [span.table.slot(position) for position in range(span.end)]
        for i in sorted({0, span.n // 2, span.n - 1}):
            low = 0 if window is None else max(0, span.start + i + 1 - window)
            seen = slots[low : span.start + i + 1]
            for head in range(query.shape[1]):
                q = query[span.row + i, head]
                scores = [float(q @ pool.keys[s, head // group]) / q.shape[0] ** 0.5 for s in seen]
                weights = [2.718281828459045 ** (s - max(scores)) for s in scores]
                mixed = sum(
                    w * pool.values[s, head // group] for w, s in zip(weights, seen, strict=True)
                )
                want = mixed / sum(weights)
                assert (got[span.row + i, head] - want).abs().max() < 1e-12


@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_of_any_size_are_attended(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores in the thousands, as models with large key biases have: softmax must not overflow,
    and near-ties must be told apart where the dtype of keys and queries tells them apart."""
    monkeypatch.setattr(torch_cpu, "_TOGETHER_ROWS", 1)
    monkeypatch.setattr(torch_cpu, "_TOGETHER_TOKENS", 0)
    kind, bound = DTYPES[dtype]
    for kernel in KERNELS:
        table = table_of(list(range(4)), 64, "cpu")
        torch.manual_seed(0)
        keys = torch.randn(256, 1, 64)
        keys[:, 0, 0] = 64.0
        values = torch.randn(256, 1, 64)
        query = torch.randn(1, 2, 64)
        query[:, :, 0] = 256.0
        q, k, v = (x.to(kind) for x in (query, keys, values))
        spans = [Span(0, 1, 255, table)]
        want = reference.plan(spans, None).attend(q, k, v)
        got = kernel.plan(spans, None).attend(q, k, v)
        assert (got.double() - want.double()).abs().max() < max(bound, 1e-3), kernel.name


@pytest.mark.parametrize("dtype", DTYPES)
def test_blocks_between_those_that_are_attended_do_not_matter(
    dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs that lie close together are one product; NaN lies between them and behind their ends."""
    monkeypatch.setattr(torch_cpu, "_TOGETHER_ROWS", 1)
    monkeypatch.setattr(torch_cpu, "_TOGETHER_TOKENS", 0)
    kind, bound = DTYPES[dtype]
    torch.manual_seed(0)
    pool = Pool(64, 16, 2, 16, kind, "cpu")
    runs = [range(1, 9), range(11, 20), range(20, 24), range(27, 40)]
    spans = [
        Span(row, 1, 16 * len(run) - 5, table_of(list(run), 16, "cpu"))
        for row, run in enumerate(runs)
    ]
    for span in spans:
        pool.write(span, 1.0)
    query = torch.randn(4, 6, 16).to(kind)
    plan = torch_cpu.plan(spans, None)
    assert plan.decodes is not None
    assert len(plan.decodes.segments) == 2  # all runs in one, and the unfilled blocks
    got = plan.decodes.attend(query, pool.keys, pool.values)
    want = reference.plan(spans, None).attend(query, pool.keys, pool.values)
    assert got is not None
    assert (got.double() - want.double()).abs().max() < bound
