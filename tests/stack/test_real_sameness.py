"""The same prompt gives the same greedy tokens however it is read, on the real model.

Whole or in chunks of any size, alone or in a batch, fresh or from reused blocks and tails, before
or after a preemption. From native kernels every token is the same. In torch, here in float32, sums
are rounded differently in different shapes, so where the two likeliest tokens lie within rounding
of each other the choice may differ: such places are counted, and must be at most one in two hundred
tokens. Greedy text in float32 also equals the transformers library's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from realms import realm

from kvasir.attention import backend
from kvasir.bench.checkpoint import config_of
from kvasir.core.clock import SystemClock
from kvasir.core.costs import CostFit
from kvasir.core.events import Event, Finished, Token, Usage
from kvasir.core.geometry import KvGeometry
from kvasir.core.requests import Request, Sampling
from kvasir.engine.engine import Engine
from kvasir.engine.runner import TorchRunner
from kvasir.kernels.native.library import best
from kvasir.kv.cache import KvCache
from kvasir.model.decoder import Decoder
from kvasir.model.files import ModelFiles, open_model
from kvasir.model.forward import Forward, TorchForward
from kvasir.model.native_forward import NativeForward
from kvasir.sched.limits import Limits
from kvasir.sched.scheduler import Scheduler, Submit
from kvasir.text.tokenizer import Tokenizer, tokenizer_from_gguf
from kvasir.tiers.device import DevicePool

ROUNDING = 2e-3  # nats between the two likeliest tokens that rounding may turn round
N_ANSWER = 14

TEXTS = (
    "The cat sat on the mat, and the dog lay beside the door. In the evening",
    "Once upon a time there was a miller who left no more riches to the three sons he had than "
    "his mill, his ass, and his cat. The division was soon made. " * 2,
    "def fibonacci(n):\n    if n < 2:\n        return n\n",
    "Water boils at one hundred degrees Celsius at sea level; on a mountain it boils sooner, "
    "because the air presses less. " * 3,
    "1, 2, 3, 5, 8, 13, 21,",
    "Dear Sir, thank you for your letter of the third of May. We have considered your proposal "
    "with care and should like to ask the following questions. First, ",
    "The capital of France is",
    "A b c d e f g h i j k l m n o p q r s t u v w x y z. " * 3,
)


class FixedCosts(CostFit):
    """A cost model that never learns, so that a test chooses the size of chunks."""

    def __init__(self, chunk_tokens: int) -> None:
        super().__init__((0.0, 1.0 / chunk_tokens, 0.0, 1e-9, 0.0))

    def observe(self, shape: object, seconds: float) -> None:
        pass


@dataclass
class Told:
    """What was said about one request."""

    tokens: list[int] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)  # between the two likeliest tokens, nats
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class Model:
    """The real model in something that computes it."""

    forward: Forward
    dtype: str
    rounding: float  # nats between the two likeliest tokens that rounding may turn round


class Real:
    """The real model behind a fresh pool and scheduler."""

    def __init__(
        self,
        model: Model,
        *,
        chunk_tokens: int = 4096,
        n_blocks: int = 96,
        block_tokens: int = 16,
    ) -> None:
        spec = model.forward.spec
        self.geometry = KvGeometry(
            n_layers=spec.n_layers,
            n_kv_heads=spec.n_kv_heads,
            head_dim=spec.head_dim,
            dtype=model.dtype,
            dtype_bytes=getattr(torch, model.dtype).itemsize,
            block_tokens=block_tokens,
            n_blocks=n_blocks,
        )
        pool = DevicePool(self.geometry, "cpu")
        for layer in range(spec.n_layers):  # whoever reads what nobody wrote, reads nonsense
            for plane in pool.planes(layer):
                plane.fill_(float("nan"))
        clock = SystemClock()
        self.cache = KvCache(self.geometry, realm(self.geometry), fit=FixedCosts(chunk_tokens))
        limits = Limits(window=2048, step_budget_s=1.0, answer_room_tokens=0)
        self.sched = Scheduler(self.cache, limits, clock)
        runner = TorchRunner(model.forward, pool)
        self.engine = Engine(self.sched, runner, clock, check_every_s=0)
        self.told: dict[str, Told] = {}

    def submit(self, name: str, tokens: list[int], max_tokens: int = N_ANSWER) -> Submit:
        sampling = Sampling(temperature=0.0, top_logprobs=2)
        request = Request(
            id=name, namespace=b"t", tokens=tokens, max_tokens=max_tokens, sampling=sampling
        )
        keys: list[bytes] = []
        self.cache.chain(b"t").extend(keys, tokens, self.geometry.block_tokens)
        self.told[name] = Told()
        return Submit(request, tuple(keys), 0.0)

    def run(self, *submits: Submit) -> None:
        events = self.engine.step(submits)
        while events or not self.engine.idle:
            for event in events:
                self._note(event)
            events = self.engine.step()

    def ask(self, tokens: list[int], max_tokens: int = N_ANSWER) -> Told:
        name = f"r{len(self.told)}"
        self.run(self.submit(name, tokens, max_tokens))
        return self.told[name]

    def _note(self, event: Event) -> None:
        if isinstance(event, Token):
            told = self.told[event.request_id]
            told.tokens.append(event.token)
            assert event.score is not None
            told.gaps.append(event.score.top[0][1] - event.score.top[1][1])
        elif isinstance(event, Finished):
            assert not event.message
            self.told[event.request_id].usage = event.usage


class Tally:
    """Compares answers with the first ones and counts the places that rounding decided."""

    def __init__(self, rounding: float) -> None:
        self.rounding = rounding
        self.compared = 0
        self.ties = 0

    def same(self, expected: Told, tokens: list[int]) -> None:
        assert len(tokens) == len(expected.tokens)
        for right, token, gap in zip(expected.tokens, tokens, expected.gaps, strict=True):
            self.compared += 1
            if token != right:
                assert gap < self.rounding, f"{token} instead of {right}, which leads by {gap} nats"
                self.ties += 1
                return  # what follows answers another text


@pytest.fixture(scope="module")
def files(embedded_gguf: Path) -> ModelFiles:
    return open_model(embedded_gguf)


@pytest.fixture(scope="module", params=["native", "torch"])
def model(request: pytest.FixtureRequest, files: ModelFiles) -> Model:
    torch.set_num_threads(2)
    if request.param == "native":
        isa = best()
        if isa is None:
            pytest.skip("there are no native kernels here")
        return Model(NativeForward(files.spec, files.tensor, isa=isa, threads=2), "bfloat16", 0.0)
    device, dtype = torch.device("cpu"), torch.float32
    decoder = Decoder(files.spec, lambda name: files.tensor(name, dtype, device), dtype, device)
    kernel = backend.choose(backend.Situation(device=device, dtype=dtype)).backend
    return Model(TorchForward(decoder, kernel.plan), "float32", ROUNDING)


@pytest.fixture(scope="module")
def tokenizer(files: ModelFiles) -> Tokenizer:
    return tokenizer_from_gguf(files.metadata)


@pytest.fixture(scope="module")
def prompts(tokenizer: Tokenizer) -> list[list[int]]:
    return [tokenizer.encode(text) for text in TEXTS]


@pytest.fixture(scope="module")
def alone(model: Model, prompts: list[list[int]]) -> list[Told]:
    """Each prompt by itself, read whole, in a fresh pool: what all else is compared with."""
    return [Real(model).ask(prompt) for prompt in prompts]


@pytest.fixture(scope="module")
def tally(model: Model) -> Iterator[Tally]:
    made = Tally(model.rounding)
    yield made
    assert made.compared > 300
    assert made.ties <= made.compared * 0.005, f"{made.ties} ties in {made.compared} tokens"


@pytest.mark.parametrize("chunk_tokens", [1, 7, 16, 50])
def test_in_chunks(
    model: Model, prompts: list[list[int]], alone: list[Told], tally: Tally, chunk_tokens: int
) -> None:
    chosen = range(len(prompts)) if chunk_tokens > 1 else (0, 4)
    real = Real(model, chunk_tokens=chunk_tokens, n_blocks=256)
    for i in chosen:
        tally.same(alone[i], real.ask(prompts[i]).tokens)


def test_in_one_batch(
    model: Model, prompts: list[list[int]], alone: list[Told], tally: Tally
) -> None:
    real = Real(model, chunk_tokens=60, n_blocks=256)
    real.run(*(real.submit(str(i), prompt) for i, prompt in enumerate(prompts)))
    for i, expected in enumerate(alone):
        tally.same(expected, real.told[str(i)].tokens)


def test_from_reused_blocks_and_tails(
    model: Model, prompts: list[list[int]], alone: list[Told], tally: Tally
) -> None:
    real = Real(model, n_blocks=256)
    for i, prompt in enumerate(prompts):
        real.ask(prompt, max_tokens=0)
        told = real.ask(prompt)
        tally.same(alone[i], told.tokens)
        assert told.usage is not None
        assert told.usage.reused_tokens == len(prompt) - 1


def test_a_follow_up_continues_the_answer(
    model: Model, prompts: list[list[int]], alone: list[Told], tally: Tally
) -> None:
    real = Real(model, n_blocks=256)
    for i, prompt in enumerate(prompts):
        first = real.ask(prompt, max_tokens=6)
        second = real.ask(prompt + first.tokens, max_tokens=N_ANSWER - 6)
        tally.same(alone[i], first.tokens + second.tokens)
        assert second.usage is not None
        assert second.usage.reused_tokens == len(prompt) + 5


def test_before_and_after_preemptions(
    model: Model, prompts: list[list[int]], alone: list[Told], tally: Tally
) -> None:
    short = [i for i, prompt in enumerate(prompts) if len(prompt) < 40]
    real = Real(model, n_blocks=6, block_tokens=8)
    real.run(*(real.submit(str(i), prompts[i]) for i in short))
    assert real.sched.counts["preemptions"] > 0
    for i in short:
        tally.same(alone[i], real.told[str(i)].tokens)


def test_greedy_text_equals_the_transformers_librarys(
    files: ModelFiles,
    model: Model,
    prompts: list[list[int]],
    alone: list[Told],
    tally: Tally,
) -> None:
    if model.dtype != "float32":
        pytest.skip("the library's own rounding is comparable in float32 alone")
    transformers = pytest.importorskip("transformers")
    theirs = _transformers_model(transformers, files)
    for prompt, expected in zip(prompts, alone, strict=True):
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            whole = theirs.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                min_new_tokens=N_ANSWER,
                max_new_tokens=N_ANSWER,
                eos_token_id=None,
            )
        tally.same(expected, whole[0, len(prompt) :].tolist())


def _transformers_model(transformers: Any, files: ModelFiles) -> Any:
    """The library's own model with the file's weights; it cannot read GGUF without more of it."""
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config_of(files.spec, files)))
    weights = {
        name: files.tensor(name, torch.float32, torch.device("cpu")) for name in files.tensor_names
    }
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}  # tied
    return model.float().eval()
