"""What the arrangement of KV in memory costs attention: the micro-benchmark behind ADR 1.

Attention of one layer over 8,192 tokens and of 16 rows over 1,024 tokens each, and of a chunk of
256 rows over 4,096, in two arrangements and with blocks of several sizes, side by side or
scattered. Layers are cycled through so that each is read from memory, not from a cache.

    python -m kvasir.bench.layout

With one thread the time is the thread's own CPU time, which neighbours on the machine disturb
least; with more it is wall time.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from kvasir.kernels import torch_cpu, torch_cpu_decode
from kvasir.kernels.paging import BlockTable, Span

HEADS, GROUP, DIM = 3, 3, 64  # of SmolLM2-135M
CONTEXT = 8192
POOL_TOKENS = 16 * 1024
CHUNK, CHUNK_CONTEXT = 256, 4096
CYCLED_BYTES = 400 * 2**20

Task = Callable[[Tensor, Tensor], Tensor]  # one layer's keys and values -> attention


@dataclass(frozen=True, slots=True)
class Timing:
    """One way of attending one layer."""

    task: str
    arrangement: str
    placement: str
    block_tokens: int
    best_ms: float
    median_ms: float


def main(argv: Sequence[str] = ()) -> int:
    """Print the machine and versions as JSON, then the best times as a table."""
    if argv:
        print("usage: kvasir bench layout (no options)")
        return 2
    result = run_layout_bench()
    print(json.dumps({k: v for k, v in result.items() if k != "timings"}))
    print(as_table(result))
    return 0


def run_layout_bench(
    block_sizes: tuple[int, ...] = (16, 32, 64, 128, 256), *, repeats: int = 7, threads: int = 1
) -> dict[str, object]:
    """Time every arrangement in turn, ``repeats`` times. Returns the versions, the settings and a
    list of ``Timing`` as dictionaries."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        timings = _measure(block_sizes, repeats, time.thread_time if threads == 1 else _wall_s)
    finally:
        torch.set_num_threads(before)
    return {
        "torch": torch.__version__,
        "threads": threads,
        "clock": "thread CPU time" if threads == 1 else "wall",
        "shape": {"kv_heads": HEADS, "query_heads": HEADS * GROUP, "head_dim": DIM},
        "timings": [asdict(timing) for timing in timings],
    }


def _wall_s() -> float:
    return time.perf_counter()


def _measure(
    block_sizes: tuple[int, ...], repeats: int, clock: Callable[[], float]
) -> list[Timing]:
    generator = torch.Generator().manual_seed(0)
    width = HEADS * DIM
    n_layers = max(2, CYCLED_BYTES // (2 * POOL_TOKENS * width * 2))
    shape = (n_layers, 2, POOL_TOKENS, width)
    pool = torch.randn(shape, generator=generator, dtype=torch.bfloat16)
    keys, values = pool.unbind(1)  # [n_layers, POOL_TOKENS, C]; arrangements are views of it
    tasks = {
        (task, arrangement, placement, size): made
        for size in block_sizes
        for placement in ("one run", "scattered")
        for (task, arrangement), made in _tasks(size, placement == "scattered").items()
    }
    seconds: dict[tuple[str, str, str, int], list[float]] = {name: [] for name in tasks}
    with torch.inference_mode():
        for round_number in range(repeats + 1):
            for name, task in tasks.items():
                began = clock()
                for layer in range(n_layers):
                    task(keys[layer], values[layer])
                if round_number:  # the first warms up
                    seconds[name].append((clock() - began) / n_layers)
    return [
        Timing(*name, 1e3 * min(times), 1e3 * statistics.median(times))
        for name, times in seconds.items()
    ]


def _tasks(block_tokens: int, scattered: bool) -> dict[tuple[str, str], Task]:
    n_blocks = POOL_TOKENS // block_tokens
    order = list(range(n_blocks))
    if scattered:
        random.Random(0).shuffle(order)

    def table(first: int, n_tokens: int) -> BlockTable:
        made = BlockTable(block_tokens, torch.device("cpu"))
        start = first // block_tokens
        made.append((b, 1) for b in order[start : start + -(-n_tokens // block_tokens)])
        return made

    long = Span(0, 1, CONTEXT - 1, table(0, CONTEXT))
    many = [Span(i, 1, 1023, table(i * 1024, 1024)) for i in range(16)]
    chunk = Span(0, CHUNK, CHUNK_CONTEXT, table(0, CHUNK_CONTEXT + CHUNK))
    one, rows, block_rows = (
        torch.randn(n, HEADS * GROUP, DIM, dtype=torch.bfloat16) for n in (1, 16, CHUNK)
    )
    many_plan = torch_cpu_decode.plan(many, None)
    ids = torch.tensor(order[: CONTEXT // block_tokens])

    def plane(x: Tensor) -> Tensor:
        return x.view(-1, HEADS, DIM)

    def decode(k: Tensor, v: Tensor) -> Tensor:
        return torch_cpu.attend_single(long, 0, one, plane(k), plane(v))

    def decode_many(k: Tensor, v: Tensor) -> Tensor:
        attended = many_plan.attend(rows, plane(k), plane(v))
        if attended is None:
            raise RuntimeError("the benchmark's scores are too large for the batched kernel")
        return attended

    def read_chunk(k: Tensor, v: Tensor) -> Tensor:
        return torch_cpu.attend_chunk(chunk, block_rows, plane(k), plane(v))

    def decode_head_major(k: Tensor, v: Tensor) -> Tensor:
        return _head_major(one, k, v, ids, block_tokens, in_place=not scattered)

    return {
        ("decode 1 x 8192", "token-major"): decode,
        ("decode 1 x 8192", "head-major"): decode_head_major,
        ("decode 16 x 1024", "token-major"): decode_many,
        ("chunk 256 at 4096", "token-major"): read_chunk,
    }


def _head_major(
    query: Tensor, k: Tensor, v: Tensor, ids: Tensor, block_tokens: int, *, in_place: bool
) -> Tensor:
    """Attention over blocks of [H, block_tokens, d]: blocks are the batch, merged at the end."""
    n = len(ids)
    blocks = [x.view(-1, HEADS, block_tokens, DIM) for x in (k, v)]
    k, v = (x[:n] if in_place else x.index_select(0, ids) for x in blocks)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query.view(1, HEADS, GROUP, DIM).expand(n, -1, -1, -1), k, v
    )
    shares = lse.view(n, HEADS, GROUP, 1).softmax(0)
    merged: Tensor = (out * shares).sum(0)
    return merged


def as_table(report: dict[str, object]) -> str:
    """The best times as a Markdown table: a line per task, arrangement and placement."""
    timings = report["timings"]
    if not isinstance(timings, list):
        raise TypeError("a report holds a list of timings")
    sizes = sorted({t["block_tokens"] for t in timings})
    lines = [
        "| ms per layer, block of | " + " | ".join(str(s) for s in sizes) + " |",
        "|---" * (len(sizes) + 1) + "|",
    ]
    names = dict.fromkeys((t["task"], t["arrangement"], t["placement"]) for t in timings)
    for name in names:
        best = {
            t["block_tokens"]: t["best_ms"]
            for t in timings
            if (t["task"], t["arrangement"], t["placement"]) == name
        }
        lines.append(f"| {', '.join(name)} | " + " | ".join(f"{best[s]:.2f}" for s in sizes) + " |")
    return "\n".join(lines)
