"""Wires everything: model files, memory, weights, pool, runner, scheduler, engine, codec.

Invariant: what a ``Built`` holds never changes afterwards; the memory that it takes was reported
before the first weight was read.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from kvasir.core.clock import SystemClock
from kvasir.core.config import Config
from kvasir.core.geometry import KvGeometry, ModelCard
from kvasir.core.plans import Join, Run, StepPlan, Work
from kvasir.core.requests import GREEDY
from kvasir.engine.client import EngineClient
from kvasir.engine.engine import Engine
from kvasir.engine.runner import TorchRunner
from kvasir.engine.storage import open_storage
from kvasir.engine.survey import Choice, Survey, model_cache, survey
from kvasir.kv.cache import KvCache
from kvasir.model.decoder import Decoder
from kvasir.model.files import ModelFiles
from kvasir.model.forward import Forward, TorchForward
from kvasir.model.native_forward import NativeForward
from kvasir.model.source import resolve
from kvasir.sched.limits import Limits
from kvasir.sched.scheduler import Scheduler
from kvasir.text.codec import TextCodec
from kvasir.text.template import ChatTemplate, check_template
from kvasir.text.tokenizer import Tokenizer, tokenizer_from_folder, tokenizer_from_gguf
from kvasir.text.transcript import Transcripts
from kvasir.text.transcript_db import FILE_NAME
from kvasir.text.transcript_file import TranscriptFile
from kvasir.tiers.device import DevicePool

TRANSCRIPT_BYTES = 64 * 2**20
_WARM_UP_SEQ = -1  # no scheduler gives a negative id

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A model that answers: the engine runs on its thread until ``engine.stop``."""

    engine: EngineClient
    card: ModelCard
    geometry: KvGeometry
    codec: TextCodec
    choices: tuple[Choice, ...]


def build(config: Config, report: Report) -> Built:
    """Obtain, check and load the model that ``config`` names, and start its engine.

    ``report`` is told in words what takes time, and the memory needed before anything is loaded.
    Raises ``ModelError`` (``DoesNotFit`` among them) or ``ConfigError``.
    """
    cache = model_cache(config)
    plan = survey(config, resolve(config.model, cache, report), cache)
    codec = _codec(config, plan)
    report(f"{plan.card.name}: {plan.memory}")
    began_s = time.monotonic()
    engine = _engine(config, plan)
    report(f"loaded in {time.monotonic() - began_s:.1f} s")
    return Built(
        engine=engine.start(),
        card=plan.card,
        geometry=plan.geometry,
        codec=codec,
        choices=plan.choices,
    )


def _engine(config: Config, plan: Survey) -> EngineClient:
    # GNU OpenMP counts the threads of all teams: were a second team made here, the engine's would
    # find the machine overbooked, sleep at every barrier and take twice as long for a token.
    torch.set_num_threads(1)
    pool = DevicePool(plan.geometry, plan.device)
    with _made_ready(pool):
        forward = load_forward(plan)
    runner = TorchRunner(forward, pool)
    clock = SystemClock()
    told: list[EngineClient] = []  # whom the mover wakes

    def moves_ended() -> None:
        for client in told:
            client.moves_ended()

    storage = open_storage(
        config,
        plan.card.realm,
        plan.geometry,
        pool,
        plan.host_cap,
        plan.disk_cap,
        moves_ended,
        clock,
    )
    cache = KvCache(
        plan.geometry,
        plan.card.realm,
        stored=storage.stored if storage is not None else None,
        audit_one_in=config.audit_one_in,
    )
    limits = Limits.of(config, plan.card.window, plan.geometry.n_layers)
    sched = Scheduler(cache, limits, clock)

    def prepare() -> None:
        # OpenMP keeps the number per calling thread. Native kernels have threads of their own.
        torch.set_num_threads(plan.threads if plan.computing.isa is None else 1)
        _warm_up(runner, plan.geometry, plan.card.window)

    client = EngineClient(
        Engine(sched, runner, clock),
        clock,
        prepare=prepare,
        close=storage.close if storage is not None else None,
    )
    told.append(client)
    return client


def load_forward(plan: Survey) -> Forward:
    """Read the weights into what computes them, as ``plan`` says."""
    files, device, dtype, computing = plan.files, plan.device, plan.dtype, plan.computing
    if computing.isa is not None:
        return NativeForward(
            files.spec,
            files.tensor,
            isa=computing.isa,
            threads=plan.threads,
            weights=computing.weights,
            int8_kv=computing.kv_dtype == "int8",
        )
    decoder = Decoder(files.spec, lambda name: files.tensor(name, dtype, device), dtype, device)
    return TorchForward(decoder, plan.attention.plan)


@contextlib.contextmanager
def _made_ready(pool: DevicePool) -> Iterator[None]:
    """Have memory of ``pool`` made ready meanwhile, for the first prompt (ADR 4 has the price)."""
    enough = threading.Event()

    def make_ready() -> None:
        while not enough.is_set() and pool.make_ready():
            pass

    thread = threading.Thread(target=make_ready, name="kvasir-ready", daemon=True)
    thread.start()
    try:
        yield
    finally:
        enough.set()
        thread.join()


def _warm_up(runner: TorchRunner, geometry: KvGeometry, window: int) -> None:
    """Run the two shapes of a step once, so that the first request does not pay for what torch
    sets up per thread and shape. Writes into blocks that hold nothing yet."""
    n_tokens = min(geometry.block_tokens, window - 1)
    blocks = (Run(0, geometry.blocks_for(n_tokens + 1)),)
    join = Join(
        seq=_WARM_UP_SEQ,
        choice=0,
        namespace=b"",
        sampling=GREEDY,
        blocks=blocks,
        n_prompt=n_tokens,
    )
    read = Work(
        seq=_WARM_UP_SEQ, start=0, tokens=[0] * n_tokens, keep_blocks=blocks[0].count, sample=True
    )
    answer = Work(
        seq=_WARM_UP_SEQ, start=n_tokens, tokens=[0], keep_blocks=blocks[0].count, sample=True
    )
    runner.run(StepPlan(number=0, joins=(join,), works=(read,)))
    runner.run(StepPlan(number=0, works=(answer,)))
    runner.run(StepPlan(number=0, leaves=(_WARM_UP_SEQ,)))


def _codec(config: Config, plan: Survey) -> TextCodec:
    files = plan.files
    tokenizer = _tokenizer(files)
    template = None
    if files.chat_template is not None:
        check_template(files.chat_template, bos=tokenizer.bos_text, eos=tokenizer.eos_text)
        template = ChatTemplate(files.chat_template, bos=tokenizer.bos_text, eos=tokenizer.eos_text)
    file = None
    if plan.disk_cap.n_bytes:  # where no KV outlives the process, no conversation need do so
        file = TranscriptFile(
            config.home / FILE_NAME,
            plan.card.realm.tokenizer,
            capacity_bytes=TRANSCRIPT_BYTES,
            vocab_size=tokenizer.vocab_size,
        )
    return TextCodec(tokenizer, template, Transcripts(TRANSCRIPT_BYTES, file))


def _tokenizer(files: ModelFiles) -> Tokenizer:
    if files.kind == "gguf":
        return tokenizer_from_gguf(files.metadata)
    return tokenizer_from_folder(files.path)
