"""The same answer always: a text's logits are the same bits in every schedule, and in none do they
depend on the texts beside it, on the blocks it lies in, on the number of threads or on what is
reused."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
import torch
from native_models import (
    ISAS,
    NAMES,
    WEIGHTS,
    computed,
    forward_of,
    pool_of,
    spec_of,
    table_of,
    tensors_of,
)
from torch import Tensor

from kvasir.kernels.native.library import missing
from kvasir.kernels.paging import BlockTable, Span
from kvasir.model.native_forward import NativeForward
from kvasir.model.spec import ModelSpec
from kvasir.tiers.device import DevicePool

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"native kernels: {missing()}")

# in all: this many per instruction set, format of weights and codec of KV
SCHEDULES = 1000 // (len(ISAS) * len(WEIGHTS) * 2 or 1) + 1
BLOCK = 16
LONGEST = 1300  # tokens: three pieces
N_TEXTS = 4


@dataclass(slots=True)
class Text:
    """A text on its way through a schedule."""

    tokens: Tensor
    want: Tensor  # logits after every token, computed alone in one step
    table: BlockTable
    done: int = 0


def texts_of(spec: ModelSpec, forward: NativeForward, int8_kv: bool) -> list[tuple[Tensor, Tensor]]:
    """Texts of which some share a beginning, and what they give alone."""
    generator = torch.Generator().manual_seed(17)
    longest = torch.randint(spec.vocab_size, (LONGEST,), generator=generator)
    texts = [longest, longest[:650].clone(), longest[:80].clone()]
    texts[1][530:] = torch.randint(spec.vocab_size, (120,), generator=generator)
    texts.append(torch.randint(spec.vocab_size, (33,), generator=generator))
    pool = pool_of(spec, -(-LONGEST // BLOCK), BLOCK, int8_kv)
    return [(text, computed(forward, text, pool)) for text in texts]


def run_schedule(
    rng: random.Random, forward: NativeForward, texts: list[Text], pool: DevicePool
) -> None:
    """Bring all texts to their ends in random steps, comparing every row's bits."""
    while behind := [text for text in texts if text.done < len(text.tokens)]:
        spans, parts, wants, row = [], [], [], 0
        for text in rng.sample(behind, rng.randint(1, len(behind))):
            left = len(text.tokens) - text.done
            n = min(left, rng.choice([1, 1, 2, 7, 64, 129, 511, 513, left]))
            spans.append(Span(row, n, text.done, text.table))
            parts.append(text.tokens[text.done : text.done + n])
            wants.append(text.want[text.done : text.done + n])
            text.done += n
            row += n
        watched = (lambda _: None) if rng.random() < 0.2 else None  # a call for each layer
        got = forward.compute(torch.cat(parts), spans, pool, range(row), watched)
        assert torch.equal(got.logits, torch.cat(wants))
        again = rng.sample(range(row), min(row, 3))
        assert torch.equal(forward.logits(got.hidden[again]), got.logits[again])


@pytest.mark.parametrize("int8_kv", [False, True], ids=["kv16", "kv8"])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("isa", ISAS, ids=NAMES)
def test_random_schedules_give_the_same_bits(isa, weights: str, int8_kv: bool) -> None:
    spec = spec_of(hidden=64, intermediate=80, n_layers=2, group=3, head_dim=32, vocab_size=67)
    tensors = tensors_of(spec, 23)
    forwards = [
        forward_of(spec, tensors, isa, threads=n, weights=weights, int8_kv=int8_kv)
        for n in (1, 2, 3)
    ]
    made = texts_of(spec, forwards[0], int8_kv)
    n_blocks = N_TEXTS * -(-LONGEST // BLOCK)
    pool = pool_of(spec, n_blocks, BLOCK, int8_kv)
    for seed in range(SCHEDULES):
        rng = random.Random(seed)
        blocks = rng.sample(range(n_blocks), n_blocks)
        texts = []
        for tokens, want in rng.sample(made, rng.randint(1, N_TEXTS)):
            own = [blocks.pop() for _ in range(-(-len(tokens) // BLOCK))]
            texts.append(Text(tokens, want, table_of(own, BLOCK)))
        run_schedule(rng, rng.choice(forwards), texts, pool)
        reuse = [text for text in texts if len(text.tokens) > 650]
        if reuse:  # another text goes on from what this one left in the pool
            tokens, want = made[1]
            own = [blocks.pop() for _ in range(-(-len(tokens) // BLOCK))]
            shared = 528 // BLOCK
            table = BlockTable(BLOCK, torch.device("cpu"))
            table.append(
                (int(block), 1) for block in [*reuse[0].table.blocks(0, 528)[0][:shared], *own]
            )
            text = Text(tokens, want, table, done=shared * BLOCK)
            run_schedule(rng, rng.choice(forwards), [text], pool)


@pytest.mark.parametrize("isa", ISAS, ids=NAMES)
@pytest.mark.parametrize("window", [5, 600])
def test_windows_give_the_same_bits(isa, window: int) -> None:
    spec = spec_of(hidden=64, intermediate=80, n_layers=2, group=3, head_dim=32, window=window)
    forward = forward_of(spec, tensors_of(spec, 29), isa, threads=2)
    made = texts_of(spec, forward, False)
    pool = pool_of(spec, N_TEXTS * -(-LONGEST // BLOCK), BLOCK, False)
    for seed in range(4):
        rng = random.Random(seed)
        texts = [
            Text(tokens, want, table_of(range(i * 82, i * 82 + 82), BLOCK))
            for i, (tokens, want) in enumerate(made)
        ]
        run_schedule(rng, forward, texts, pool)
