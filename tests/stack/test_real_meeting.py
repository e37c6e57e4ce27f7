"""Loading from the back meets computing from the front: real files, threads and time, tagged KV."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

import pytest
from virtual_server import PRINTABLE, make_engine

from kvasir.core.config import Config
from kvasir.core.events import Event, Finished, Token
from kvasir.core.plans import StepPlan
from kvasir.core.requests import Request
from kvasir.core.tiers import Tier
from kvasir.engine.client import EngineClient
from kvasir.sched.virtual import expected_answer
from kvasir.tiers import folder
from kvasir.tiers.mover import ThreadedMover
from kvasir.tiers.rates import Rate

NAMESPACE = b"reader"
DISK_BYTES_PER_S = 40_000.0
TOKEN_S = 2e-4


def answer(client: EngineClient, tokens: list[int]) -> tuple[list[int], Finished]:
    said: list[int] = []
    ended: list[Finished] = []
    done = threading.Event()

    def deliver(event: Event) -> None:
        if isinstance(event, Token):
            said.append(event.token)
        elif isinstance(event, Finished):
            ended.append(event)
            done.set()

    client.submit(Request(id="r", namespace=NAMESPACE, tokens=tokens, max_tokens=3), deliver)
    assert done.wait(30)
    return said, ended[0]


def test_a_slow_disk_and_the_engine_share_a_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(1)
    book = [rng.randrange(PRINTABLE) for _ in range(3_200)]
    config = Config(home=tmp_path, disk_gib=1.0)
    first, cache, _, _ = make_engine(stored=config)
    cache._saver.run_blocks = 20  # ten records
    answer(first, book)
    first.stop()

    read = folder._RealReading.read

    def slow_read(file: folder._RealReading, offset: int, into: memoryview) -> int:
        time.sleep(into.nbytes / DISK_BYTES_PER_S)
        return read(file, offset, into)

    def compute(plan: StepPlan) -> None:
        time.sleep(sum(len(work.tokens) for work in plan.works) * TOKEN_S)

    second, cache, runner, _ = make_engine(stored=config)
    mover = cache.stored.mover
    assert isinstance(mover, ThreadedMover)
    mover._read_rates[Tier.DISK] = Rate(DISK_BYTES_PER_S)  # as if it had been measured
    runner.before = compute
    monkeypatch.setattr(folder._RealReading, "read", slow_read)
    question = [*book, 1, 2, 3, 4]
    said, finished = answer(second, question)
    second.stop()
    assert said == expected_answer(NAMESPACE, question, 3, vocab_size=PRINTABLE)
    loaded = finished.usage.reused_by_tier[Tier.DISK]
    assert 300 < loaded < 2_900  # the rest of the book was computed meanwhile
    assert finished.usage.computed_tokens == len(question) - loaded
