from __future__ import annotations

import dataclasses
import math
import random
from collections import Counter

import numpy as np
import pytest
import torch

from kvasir.core.requests import GREEDY, Sampling
from kvasir.engine.sampler import Past, Row, sample
from kvasir.kernels import sampling as arithmetic

CPU = torch.device("cpu")


def row(sampling: Sampling, *, seq: int = 0, position: int = 5, past: Past | None = None) -> Row:
    return Row(seq=seq, choice=0, position=position, sampling=sampling, past=past)


def pick(logits: torch.Tensor, sampling: Sampling, position: int = 5) -> int:
    return sample(logits[None], [row(sampling, position=position)])[0].score.token


def oracle(logits: torch.Tensor, s: Sampling) -> np.ndarray:
    """The distribution to draw from, with everything sorted and written out: [V]."""
    x = logits.double().numpy() / s.temperature
    p = np.exp(x - x.max())
    p /= p.sum()
    order = np.lexsort((np.arange(len(p)), -p))
    keep = np.ones(len(p), dtype=bool)
    ranked = p[order]
    keep[ranked < s.min_p * ranked[0]] = False
    if s.top_k:
        keep[s.top_k :] = False
    kept = np.where(keep, ranked, 0.0)
    before = np.cumsum(kept) / kept.sum() - kept / kept.sum()
    keep &= before < s.top_p
    keep[0] = True
    result = np.zeros(len(p))
    result[order] = np.where(keep, ranked, 0.0)
    return result / result.sum()


SETTINGS = [
    Sampling(temperature=1.0),
    Sampling(temperature=0.5),
    Sampling(temperature=1.7, top_k=5),
    Sampling(temperature=1.0, top_p=0.8),
    Sampling(temperature=1.3, min_p=0.05),
    Sampling(temperature=1.2, top_k=12, top_p=0.7, min_p=0.02),
]


@pytest.mark.parametrize("setting", SETTINGS)
def test_draws_follow_the_distribution(setting: Sampling) -> None:
    """Chi-square over 4,000 positions; the seeds are fixed, so this never fails by chance."""
    torch.manual_seed(1)
    logits = torch.randn(40) * 1.5
    want = oracle(logits, setting)
    n = 4000
    drawn = Counter(pick(logits, setting, position) for position in range(n))
    assert all(want[token] > 0 for token in drawn)
    likely = want * n >= 5
    expected = np.append(want[likely], want[~likely].sum()) * n
    observed = np.array([drawn[i] for i in np.flatnonzero(likely)] + [0.0])
    observed[-1] = n - observed.sum()
    expected, observed = expected[expected > 0], observed[expected > 0]
    statistic = float(((observed - expected) ** 2 / expected).sum())
    freedom = max(1, len(expected) - 1)
    assert statistic < freedom + 4 * math.sqrt(2 * freedom) + 4


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("seed", range(30))
def test_the_kept_tokens_are_the_oracles_also_in_large_vocabularies(seed: int, flat: bool) -> None:
    """Peaked rows are decided by the likeliest candidates, flat ones need the whole vocabulary."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    logits = (torch.randn(3000) * (0.1 if flat else 5.0)).bfloat16().float()  # with many ties
    setting = Sampling(
        temperature=rng.choice([0.3, 1.0, 2.0]),
        top_k=rng.choice([0, 1, 7, 300, 5000]),
        top_p=rng.choice([1.0, 0.9, 0.3, 1e-9]),
        min_p=rng.choice([0.0, 0.1, 0.9]),
    )
    want = oracle(logits, setting)
    cumulative = np.cumsum(want)
    for u in (0.0, 0.25, 0.7, 1 - 2**-53):
        got = arithmetic.choose(
            logits, temperature=setting.temperature, top_k=setting.top_k,
            top_p=setting.top_p, min_p=setting.min_p, u=u,
        )  # fmt: skip
        assert want[got] > 0
        assert cumulative[got] - want[got] - 1e-9 <= u <= cumulative[got] + 1e-9


def test_random_numbers_depend_on_seed_choice_and_position_alone() -> None:
    numbers = {
        arithmetic.uniform(seed, choice, position)
        for seed in (0, 1, 2**63 - 1)
        for choice in range(3)
        for position in range(50)
    }
    assert len(numbers) == 450
    assert all(0.0 <= u < 1.0 for u in numbers)
    assert arithmetic.uniform(7, 1, 9) == arithmetic.uniform(7, 1, 9)


def test_the_batch_does_not_change_a_row() -> None:
    torch.manual_seed(3)
    logits = torch.randn(12, 500) * 3
    settings = [
        dataclasses.replace(SETTINGS[i % 6], seed=i, top_logprobs=[None, 0, 3][i % 3])
        for i in range(10)
    ] + [GREEDY, dataclasses.replace(GREEDY, logit_bias={3: 100.0})]
    rows = [row(s, seq=i, position=40 + i) for i, s in enumerate(settings)]
    together = sample(logits, rows)
    for i, one in enumerate(rows):
        assert sample(logits[i : i + 1], [one]) == [together[i]]
    backwards = sample(logits.flip(0), rows[::-1])
    assert backwards[::-1] == together


@pytest.mark.parametrize(
    "setting",
    [
        Sampling(temperature=1e-9),
        Sampling(temperature=1e-300),
        Sampling(top_p=1e-9),
        Sampling(min_p=1.0),
        Sampling(top_k=1),
        Sampling(temperature=0.0, top_p=0.1, top_k=3),
    ],
)
def test_extremes_choose_the_likeliest(setting: Sampling) -> None:
    logits = torch.tensor([0.0, 3.0, 1.0, 2.999, -50.0])
    assert pick(logits, setting) == 1


def test_ties_go_to_the_lowest_id() -> None:
    logits = torch.zeros(600)
    logits[[17, 400]] = 2.0
    assert pick(logits, GREEDY) == 17
    assert pick(logits, Sampling(top_p=1e-9)) == 17
    first_three = {pick(logits, Sampling(top_k=3, temperature=5), p) for p in range(200)}
    assert first_three == {0, 17, 400}


def test_bias_and_infinite_logits_never_make_nan() -> None:
    logits = torch.tensor([1.0, 2.0, -math.inf, 0.5])
    banned = Sampling(logit_bias={1: -100.0, 99: 5.0})
    assert {pick(logits, banned, p) for p in range(300)} == {0, 3}
    assert pick(logits, Sampling(logit_bias={3: 100.0})) == 3
    assert pick(logits, Sampling(logit_bias={0: math.inf, 3: math.inf})) == 0
    assert pick(logits, Sampling(temperature=1e-9, top_p=1e-9, logit_bias={3: 100.0})) == 3
    alone = Sampling(logit_bias=dict.fromkeys((0, 1, 3), -math.inf))
    assert pick(logits, alone) in range(4)


def test_penalties_count_what_they_should() -> None:
    past = Past([1, 1, 2], n_prompt=3, vocab_size=6, device=CPU)
    past.extend(3, [3, 3, 4])
    logits = torch.tensor([1.0, 1.0, -1.0, 1.0, 1.0, 1.0])
    repeated = logits.clone()
    past.penalise_(repeated, Sampling(repetition_penalty=2.0))
    assert repeated.tolist() == [1.0, 0.5, -2.0, 0.5, 0.5, 1.0]
    answered = logits.clone()
    past.penalise_(answered, Sampling(presence_penalty=0.5, frequency_penalty=0.25))
    assert answered.tolist() == [1.0, 1.0, -1.0, 0.0, 0.25, 1.0]


def test_a_past_rolls_back_when_a_step_is_run_again() -> None:
    rng = random.Random(0)
    tokens = [rng.randrange(9) for _ in range(60)]
    past = Past(tokens[:10], n_prompt=25, vocab_size=9, device=CPU)
    at = 10
    while at < 60:
        n = min(rng.randrange(1, 8), 60 - at)
        past.extend(at, [8] * n)  # an attempt that is repeated
        past.extend(at, tokens[at : at + n])
        at += n
    for counts, some in ((past._seen, tokens), (past._answered, tokens[25:])):
        assert counts.tolist() == [some.count(i) for i in range(9)]
    with pytest.raises(ValueError):
        past.extend(61, [1])


def test_scores_are_those_of_the_model_before_any_setting() -> None:
    torch.manual_seed(0)
    logits = torch.randn(50)
    setting = Sampling(temperature=0.3, top_k=2, logit_bias={7: 100.0}, top_logprobs=4)
    found = sample(logits[None], [row(setting)])[0]
    want = logits.log_softmax(0)
    assert found.scored
    assert found.score.token == 7
    assert found.score.logprob == pytest.approx(float(want[7]), abs=1e-6)
    best = want.topk(4)
    assert [i for i, _ in found.score.top] == best.indices.tolist()
    assert [p for _, p in found.score.top] == pytest.approx(best.values.tolist(), abs=1e-6)


def test_the_likeliest_are_in_order_with_ties_by_id() -> None:
    torch.manual_seed(2)
    logits = torch.randint(0, 6, (30, 80)).float()
    for n in (0, 1, 5, 20, 200):
        ids, values = arithmetic.likeliest(logits, n)
        for got, got_values, one in zip(ids, values, logits, strict=True):
            want = sorted(range(80), key=lambda i, one=one: (-float(one[i]), i))[:n]
            assert got.tolist() == want
            assert got_values.tolist() == one[want].tolist()
