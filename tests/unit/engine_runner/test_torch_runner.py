"""The runner against the decoder run plainly, on a tiny random model."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random

import pytest
import torch

from kvasir.attention.backend import Situation, choose
from kvasir.attention.batch import describe
from kvasir.core.geometry import KvGeometry
from kvasir.core.plans import Audit, Copy, Join, Run, StepPlan, StepResult, Work
from kvasir.core.requests import GREEDY, Sampling
from kvasir.engine import runner as runner_module
from kvasir.engine.runner import TorchRunner
from kvasir.kernels import reference
from kvasir.kernels.paging import BlockTable, Span
from kvasir.model.decoder import Decoder
from kvasir.model.forward import TorchForward
from kvasir.model.spec import ModelSpec, RopeSpec
from kvasir.tiers.device import DevicePool

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
SPEC = ModelSpec(
    architecture="llama", n_layers=2, hidden=32, n_heads=4, n_kv_heads=2, head_dim=8,
    intermediate=48, vocab_size=97, window=512, norm_eps=1e-5,
    rope=RopeSpec(kind="default", theta=10_000.0), tied_embeddings=False,
)  # fmt: skip
BLOCK = 8
N_BLOCKS = 40


def geometry(n_blocks: int = N_BLOCKS) -> KvGeometry:
    return KvGeometry(
        n_layers=2, n_kv_heads=2, head_dim=8, dtype="float32", dtype_bytes=4,
        block_tokens=BLOCK, n_blocks=n_blocks,
    )  # fmt: skip


def tensors(name: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(hash_of(name))
    sizes = {
        "embed_tokens": (97, 32), "lm_head": (97, 32), "q_proj": (32, 32), "k_proj": (16, 32),
        "v_proj": (16, 32), "o_proj": (32, 32), "gate_proj": (48, 32), "up_proj": (48, 32),
        "down_proj": (32, 48),
    }  # fmt: skip
    shape = sizes.get(name.split(".")[-2], (32,))
    noise = torch.randn(shape, generator=generator)
    return 1 + 0.2 * noise if len(shape) == 1 else noise * 1.5 * shape[1] ** -0.5


def hash_of(name: str) -> int:
    return sum(ord(c) * 31**i for i, c in enumerate(name)) % 2**31


def runner_on(device: str, **settings: object) -> TorchRunner:
    pool = DevicePool(geometry(), device)
    pool.fill(math.nan)
    decoder = Decoder(SPEC, tensors, torch.float32, device)
    situation = Situation(device=torch.device(device), dtype=torch.float32)
    forward = TorchForward(decoder, choose(situation).backend.plan)
    return TorchRunner(forward, pool, **settings)


def plain_logits(tokens: list[int]) -> torch.Tensor:
    """Logits after every token, computed in one piece with the reference kernel: [n, V]."""
    decoder = Decoder(SPEC, tensors, torch.float32, "cpu")
    n_blocks = -(-len(tokens) // BLOCK)
    table = BlockTable(BLOCK, torch.device("cpu"))
    table.append([(0, n_blocks)])
    span = Span(0, len(tokens), 0, table)
    batch = describe([span], reference.plan, decoder.windows, torch.device("cpu"))
    pool = DevicePool(geometry(n_blocks), "cpu")
    return decoder.logits(decoder.forward(torch.tensor(tokens), batch, pool))


def prompt(n: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(97) for _ in range(n)]


def join(
    seq: int, blocks: tuple[Run, ...], n_prompt: int, sampling: Sampling = GREEDY, **more: object
) -> Join:
    return Join(
        seq=seq, choice=0, namespace=b"", sampling=sampling, blocks=blocks, n_prompt=n_prompt,
        **more,
    )  # fmt: skip


NUMBERS = itertools.count(1)


def plan(*works: Work, **more: object) -> StepPlan:
    return StepPlan(number=next(NUMBERS), works=works, **more)


def outcome(result: StepResult) -> StepResult:
    return dataclasses.replace(result, elapsed_s=0.0)


def test_time_is_that_of_the_injected_clock() -> None:
    ticks = iter([10.0, 12.5])
    result = runner_on("cpu", clock=lambda: next(ticks)).run(plan())
    assert result.elapsed_s == 2.5


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("chunk", [1, 5, 8, 30])
@pytest.mark.parametrize("device", DEVICES)
def test_greedy_text_and_prompt_scores_do_not_depend_on_chunks_or_repetition(
    device: str, chunk: int, twice: bool
) -> None:
    """Blocks come with the work that needs them; a sequence beside it decodes all the while."""
    runner = runner_on(device)
    tokens, other = prompt(30), prompt(9, seed=1)

    def run(one: StepPlan) -> StepResult:
        first = runner.run(one)
        if twice:
            assert outcome(runner.run(one)) == outcome(first)
        assert not first.faults
        return first

    run(plan(Work(seq=2, start=0, tokens=other, keep_blocks=2),
             joins=(join(2, (Run(20, 2),), 9),)))  # fmt: skip
    scores, answer, blocks = [], [], iter([(7, 1), (3, 1), (4, 1), (30, 1), (9, 1)])
    joins = (join(1, (), 30),)
    held = start = 0
    while len(answer) < 6:
        n = min(chunk, len(tokens) - start)
        needed = -(-(start + n) // BLOCK)
        new = tuple(Run(*next(blocks)) for _ in range(needed - held))
        reading = start < 30
        work = Work(
            seq=1, start=start, tokens=tokens[start : start + n], keep_blocks=held, new_blocks=new,
            sample=start + n == len(tokens), score=2 if reading else None,
        )  # fmt: skip
        held, start = needed, start + n
        beside = Work(seq=2, start=8, tokens=other[8:], keep_blocks=2, sample=True)
        result = run(plan(work, beside, joins=joins))
        joins = ()
        for found in result.prompt_scores:
            assert found.start == max(work.start, 1)
            scores += found.scores
        for sampled in result.sampled:
            if sampled.seq == 1:
                answer.append(sampled.score.token)
                tokens = [*tokens, sampled.score.token]
    want = plain_logits(tokens)
    assert answer == want[29:-1].argmax(1).tolist()
    logprobs = want.log_softmax(1)
    assert len(scores) == 29
    for position, found in enumerate(scores, start=1):
        assert found.token == tokens[position]
        row = logprobs[position - 1]
        assert found.logprob == pytest.approx(float(row[tokens[position]]), abs=1e-4)
        assert [p for _, p in found.top] == pytest.approx(row.topk(2).values.tolist(), abs=1e-4)


def test_prompt_scores_are_computed_a_few_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "_SCORE_BYTES", 3 * 97 * 4)
    runner = runner_on("cpu")
    rows = []
    logits = Decoder.logits
    monkeypatch.setattr(Decoder, "logits", lambda d, h: rows.append(len(h)) or logits(d, h))
    work = Work(seq=1, start=0, tokens=prompt(30), keep_blocks=4, score=0)
    found = runner.run(plan(work, joins=(join(1, (Run(0, 4),), 30),)))
    assert max(rows) == 3
    assert len(found.prompt_scores[0].scores) == 29


def test_only_the_prompts_own_tokens_are_scored() -> None:
    """After a preemption a work may run past the prompt into tokens that were generated."""
    runner = runner_on("cpu")
    work = Work(seq=1, start=0, tokens=prompt(20), keep_blocks=3, score=0, sample=True)
    result = runner.run(plan(work, joins=(join(1, (Run(0, 3),), 12),)))
    assert len(result.prompt_scores[0].scores) == 11


def test_a_scored_sequence_whose_beginning_was_reused_is_a_fault() -> None:
    runner = runner_on("cpu")
    work = Work(seq=1, start=8, tokens=prompt(8), keep_blocks=2, score=0)
    result = runner.run(plan(work, joins=(join(1, (Run(0, 2),), 16),)))
    assert "reused" in result.faults[0].message


def test_copies_happen_before_the_works() -> None:
    runner = runner_on("cpu")
    tokens = prompt(14)
    runner.run(plan(Work(seq=1, start=0, tokens=tokens[:13], keep_blocks=2),
                    joins=(join(1, (Run(0, 2),), 13),)))  # fmt: skip
    work = Work(seq=2, start=13, tokens=tokens[13:], keep_blocks=2, sample=True)
    branch = plan(
        work, joins=(join(2, (Run(0, 1), Run(17, 1)), 14),), copies=(Copy(1, 17, 5),), leaves=(1,)
    )
    result = runner.run(branch)
    assert outcome(runner.run(branch)) == outcome(result)
    assert result.sampled[0].score.token == int(plain_logits(tokens)[-1].argmax())


def test_a_sequence_that_rejoins_continues_with_the_same_result() -> None:
    tokens = prompt(20)
    sampling = Sampling(temperature=1.0, repetition_penalty=1.3, frequency_penalty=0.4, seed=5)

    def generate(preempt_at: int | None) -> list[int]:
        runner = runner_on("cpu")
        text, done = list(tokens), 0
        joins = (join(1, (Run(3, 5),), 20, sampling),)
        while len(text) < 36:
            if len(text) == preempt_at:
                text_now = tuple(text)
                reading = Work(seq=1, start=0, tokens=text_now, keep_blocks=5, sample=True)
                joins = (join(1, (Run(20, 5),), 20, sampling),)
                result = runner.run(plan(reading, joins=joins, leaves=(1,)))
            else:
                work = Work(seq=1, start=done, tokens=text[done:], keep_blocks=5, sample=True)
                result = runner.run(plan(work, joins=joins))
            joins, done = (), len(text)
            text.append(result.sampled[0].score.token)
        return text

    assert generate(None) == generate(27) == generate(21)


@pytest.mark.parametrize(
    ("work", "blocks", "word"),
    [
        (Work(seq=1, start=0, tokens=[97], keep_blocks=1), (Run(0, 1),), "vocabulary"),
        (Work(seq=1, start=0, tokens=[-1], keep_blocks=1), (Run(0, 1),), "vocabulary"),
        (Work(seq=1, start=0, tokens=[], keep_blocks=1), (Run(0, 1),), "no tokens"),
        (Work(seq=1, start=7, tokens=[1, 2], keep_blocks=1), (Run(0, 1),), "table"),
        (Work(seq=1, start=0, tokens=[1], keep_blocks=2), (Run(0, 1),), "keep"),
        (Work(seq=1, start=0, tokens=[1], keep_blocks=1), (Run(39, 2),), "outside"),
        (
            Work(seq=1, start=0, tokens=[1], keep_blocks=1, new_blocks=(Run(-1, 1),)),
            (Run(0, 1),),
            "outside",
        ),
        (Work(seq=9, start=0, tokens=[1], keep_blocks=1), (Run(0, 1),), "never joined"),
    ],
)
def test_a_work_that_cannot_be_done_is_a_fault_of_its_own(
    work: Work, blocks: tuple[Run, ...], word: str
) -> None:
    runner = runner_on("cpu")
    tokens = prompt(6)
    good = Work(seq=2, start=0, tokens=tokens, keep_blocks=1, sample=True)
    result = runner.run(plan(work, good, joins=(join(1, blocks, 5), join(2, (Run(5, 1),), 6))))
    assert [fault.seq for fault in result.faults] == [work.seq]
    assert word in result.faults[0].message
    assert result.sampled[0].score.token == int(plain_logits(tokens)[-1].argmax())


def test_an_output_that_is_not_finite_is_a_fault_of_its_own() -> None:
    """The KV of one sequence is damaged; the one beside it does not notice."""
    runner = runner_on("cpu")
    tokens = prompt(10)
    joins = (join(1, (Run(0, 2),), 10), join(2, (Run(2, 2),), 10))
    works = [Work(seq=s, start=0, tokens=tokens[:9], keep_blocks=2) for s in (1, 2)]
    runner.run(plan(*works, joins=joins))
    runner._pool.planes(1)[1][3] = math.nan
    last = [Work(seq=s, start=9, tokens=tokens[9:], keep_blocks=2, sample=True) for s in (1, 2)]
    result = runner.run(plan(*last))
    assert [fault.seq for fault in result.faults] == [1]
    assert "not finite" in result.faults[0].message
    assert [s.seq for s in result.sampled] == [2]
    assert result.sampled[0].score.token == int(plain_logits(tokens)[-1].argmax())


@pytest.mark.parametrize("device", DEVICES)
def test_a_step_is_given_up_where_the_rest_of_it_would_outlast_the_patience(device: str) -> None:
    """Its joins stand; the same work done afterwards gives what it gives undisturbed."""
    tokens = prompt(30)
    joins, work = (join(1, (Run(0, 4),), 30),), Work(seq=1, start=0, tokens=tokens, sample=True,
                                                     keep_blocks=4)  # fmt: skip
    undisturbed = runner_on(device).run(plan(work, joins=joins))
    now_s = itertools.count(0.0, 1.0)  # every look at the clock takes a second
    runner = runner_on(device, clock=lambda: next(now_s))
    left_s = SPEC.n_layers - 1.0  # after the first layer, at a second a layer
    given_up = runner.run(plan(work, joins=joins, patience_s=left_s - 0.1), lambda: True)
    assert given_up.given_up
    assert not given_up.sampled
    kept = runner.run(plan(work, patience_s=left_s), lambda: True)
    assert outcome(kept) == outcome(undisturbed)
    assert not runner.run(plan(work, patience_s=0.0), lambda: False).given_up


@pytest.mark.parametrize("device", DEVICES)
def test_an_audit_tells_what_belongs_there_from_what_does_not(device: str) -> None:
    runner = runner_on(device)
    tokens = prompt(3 * BLOCK)
    blocks = (Run(4, 2), Run(9, 1))  # the runs of the table
    work = Work(seq=1, start=0, tokens=tokens, keep_blocks=3)
    runner.run(plan(work, joins=(join(1, blocks, len(tokens)),)))
    for index, block in enumerate((4, 5, 9)):
        right = Audit(
            before=tuple(Run(b, 1) for b in (4, 5)[:index]),
            start=index * BLOCK,
            tokens=tuple(tokens[index * BLOCK : (index + 1) * BLOCK]),
            block=block,
            scratch=20,
        )
        assert runner.audit(right)
        for wrong in range(BLOCK):
            other = list(right.tokens)
            other[wrong] = (other[wrong] + 1) % 97
            assert not runner.audit(dataclasses.replace(right, tokens=tuple(other)))
    assert not runner.audit(dataclasses.replace(right, block=30))  # nobody wrote it


def test_a_single_wrong_token_in_a_block_is_beyond_the_bound() -> None:
    pool = DevicePool(geometry(), "cpu")
    pool.fill(1.0)
    for plane in pool.planes(1):
        plane[BLOCK + 3] = -1.0
    assert pool.difference(0, 1, BLOCK) == pytest.approx(2 * (1 / BLOCK) ** 0.5)
    assert runner_module.AUDIT_BOUND < 2 * (1 / 1024) ** 0.5  # the largest block_tokens there is
