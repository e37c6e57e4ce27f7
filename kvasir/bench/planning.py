"""What a step costs to plan and commit, over sequences of very different lengths.

Everything is the real scheduler and cache; only the computing is left out. A plan carries what
changed since the plan before, so the time must not depend on how long a sequence is.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence

from kvasir.bench.machine import describe
from kvasir.core.clock import VirtualClock
from kvasir.core.geometry import KvGeometry
from kvasir.core.realm import Realm
from kvasir.core.requests import Request
from kvasir.kv.cache import KvCache
from kvasir.sched.limits import Limits
from kvasir.sched.scheduler import Scheduler, Submit
from kvasir.sched.virtual import VirtualRunner

LENGTHS = (2_000, 20_000, 200_000)
N_SEQUENCES = 8
N_STEPS = 300


def main(argv: Sequence[str] = ()) -> int:
    """Print microseconds per step for each length, and the machine, as JSON."""
    if argv:
        print("usage: kvasir bench planning (no options)")
        return 2
    machine = describe()
    result = {
        "what": f"plan and commit of one step with {N_SEQUENCES} running answers",
        "cpu": machine.cpu,
        "python": machine.python,
        "load_average": machine.load_average,
        "median_us_by_context_tokens": {n: round(measure_us(n), 1) for n in LENGTHS},
    }
    print(json.dumps(result, indent=2))
    return 0


def measure_us(n_tokens: int) -> float:
    """Median microseconds of plan and commit while answers run on ``n_tokens`` of context each."""
    geometry = KvGeometry(
        n_layers=1,
        n_kv_heads=1,
        head_dim=1,
        dtype="float32",
        dtype_bytes=4,
        block_tokens=64,
        n_blocks=N_SEQUENCES * (n_tokens // 64 + 32),
    )
    clock = VirtualClock()
    cache = KvCache(
        geometry, Realm(weights="", numerics="planning", tokenizer="", layout=geometry.layout_id)
    )
    sched = Scheduler(cache, Limits(window=n_tokens + 2 * N_STEPS), clock)
    runner = VirtualRunner(clock=clock)
    sched.take(_submit(cache, n_tokens, i) for i in range(N_SEQUENCES))
    while sched.counts["generated_tokens"] < 2 * N_SEQUENCES:
        plan = sched.plan()
        sched.commit(plan, runner.run(plan))
    samples = []
    for _ in range(N_STEPS):
        began_s = time.perf_counter()
        plan = sched.plan()
        planned_s = time.perf_counter()
        result = runner.run(plan)
        ran_s = time.perf_counter()
        sched.commit(plan, result)
        samples.append(planned_s - began_s + time.perf_counter() - ran_s)
    return statistics.median(samples) * 1e6


def _submit(cache: KvCache, n_tokens: int, number: int) -> Submit:
    tokens = [number, *(i % 50_000 for i in range(n_tokens - 1))]
    request = Request(id=str(number), namespace=b"bench", tokens=tokens, max_tokens=2 * N_STEPS - 1)
    keys: list[bytes] = []
    cache.chain(b"bench").extend(keys, tokens, cache.geometry.block_tokens)
    return Submit(request, tuple(keys), 0.0)
