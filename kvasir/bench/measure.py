"""From a workload to samples: what is asked of an engine, in which order, and what is timed.

Invariant: every engine is asked the same things in the same order through the same interface, and
a sample's ``facts`` hold what its value was computed from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from kvasir.bench.candidate import Answer, Answers
from kvasir.bench.results import Better, Figure, Sample
from kvasir.bench.workload import Sizes, Workload

MIB = 2**20


class Asked(Protocol):
    """Something that takes a worker's commands; ``process.Worker`` is the real one."""

    def ask(self, op: str, **fields: Any) -> Any: ...


def figures(sizes: Sizes) -> tuple[Figure, ...]:
    """The rows of the table, in order."""
    high, low = Better.HIGHER, Better.LOWER
    n, crowd = sizes.shared, f"{sizes.clients} x {sizes.client_prompt:,} in"
    return (
        *(Figure(f"prefill@{c}", f"prefill, {c:,} tokens", "tok/s", high) for c in sizes.read),
        *(Figure(f"decode@{c}", f"decode after {c:,}", "tok/s", high) for c in sizes.decode),
        Figure("first_question", f"first token, {n:,} tokens + question", "s", low),
        Figure("second_question", "first token, second question on them", "s", low),
        Figure("second_faster", "second question faster by", "x", high),
        Figure("serial", f"{crowd}, {sizes.client_answer} out, one by one", "out tok/s", high),
        Figure("concurrent", "the same at once", "out tok/s", high),
        Figure("concurrency_gain", "at once faster by", "x", high),
        Figure("start", "process start to first token", "s", low),
        Figure("memory_single", "peak memory, one sequence", "MiB", low),
        Figure("memory_all", "peak memory, with the crowd", "MiB", low),
        Figure("in_process", f"first token, {sizes.served:,} tokens, in process", "s", low),
        Figure("http", "the same over HTTP", "s", low),
        Figure("decode_in_process", f"decode after {sizes.served:,}, in process", "tok/s", high),
        Figure("decode_http", "the same over HTTP, streamed", "tok/s", high),
    )


def measure(
    worker: Asked, workload: Workload, *, arm: str, repeat: int, per_shape: bool
) -> Iterator[Sample]:
    """Ask a loaded ``worker`` everything; yields samples as they come.

    ``per_shape``: whether the engine makes kernels per tensor shape, and so has to see every
    length once, untimed, before it runs at its speed.
    """

    def sample(figure: str, value: float, **facts: Any) -> Sample:
        return Sample(arm=arm, repeat=repeat, figure=figure, value=value, facts=facts)

    def answer(prompt: tuple[int, ...], n_tokens: int, topic: str) -> Answer:
        reply = worker.ask("answer", prompt=prompt, n_tokens=n_tokens, topic=topic)
        return Answer(**{**reply, "tokens": tuple(reply["tokens"])})

    yield from _contexts(answer, sample, workload, per_shape)
    yield from _questions(answer, sample, workload)
    yield sample("memory_single", worker.ask("memory") / MIB)
    yield from _crowd(worker, answer, sample, workload)
    yield sample("memory_all", worker.ask("memory") / MIB)


_Ask = Callable[[tuple[int, ...], int, str], Answer]
_MakeSample = Callable[..., Sample]


def _contexts(
    answer: _Ask, sample: _MakeSample, workload: Workload, per_shape: bool
) -> Iterator[Sample]:
    sizes = workload.sizes
    for n in sizes.contexts if per_shape else sizes.contexts[:1]:
        answer(workload.warm_up[n], 4, f"warm-up {n}")
    for n in sizes.contexts:
        n_tokens = sizes.decode_tokens if n in sizes.decode else 1
        got = answer(workload.contexts[n], n_tokens, f"context {n}")
        if n in sizes.read:
            yield sample(
                f"prefill@{n}",
                n / got.first_s,
                first_s=got.first_s,
                prompt_tokens=n,
                reused_tokens=got.reused_tokens,
            )
        if n in sizes.decode:
            decode_s = got.total_s - got.first_s
            yield sample(
                f"decode@{n}", (n_tokens - 1) / decode_s, decode_s=decode_s, tokens=got.tokens
            )
    if per_shape and sizes.served not in sizes.contexts:
        answer(workload.served_warm_up, 1, "served warm-up")
    got = answer(workload.served, sizes.decode_tokens, "served")
    yield sample("in_process", got.first_s, prompt_tokens=sizes.served)
    decode_s = got.total_s - got.first_s
    yield sample("decode_in_process", (sizes.decode_tokens - 1) / decode_s, decode_s=decode_s)


def _questions(answer: _Ask, sample: _MakeSample, workload: Workload) -> Iterator[Sample]:
    n_tokens = workload.sizes.shared_answer
    first, second = (
        answer(workload.shared + question, n_tokens, "shared") for question in workload.questions
    )
    for name, got, question in (
        ("first_question", first, workload.questions[0]),
        ("second_question", second, workload.questions[1]),
    ):
        yield sample(
            name,
            got.first_s,
            prompt_tokens=len(workload.shared) + len(question),
            reused_tokens=got.reused_tokens,
        )
    yield sample("second_faster", first.first_s / second.first_s)


def _crowd(
    worker: Asked, answer: _Ask, sample: _MakeSample, workload: Workload
) -> Iterator[Sample]:
    n_tokens = workload.sizes.client_answer
    answers = [answer(p, n_tokens, f"alone {i}") for i, p in enumerate(workload.clients)]
    serial_s = sum(got.total_s for got in answers)
    output_tokens = sum(len(got.tokens) for got in answers)
    serial = output_tokens / serial_s
    yield sample("serial", serial, total_s=serial_s, output_tokens=output_tokens)

    reply: Mapping[str, Any] = worker.ask(
        "answer_all", prompts=workload.clients, n_tokens=n_tokens, topic="crowd"
    )
    together = Answers(**{**reply, "tokens": tuple(map(tuple, reply["tokens"]))})
    output_tokens = sum(map(len, together.tokens))
    concurrent = output_tokens / together.total_s
    same = sum(one.tokens == other for one, other in zip(answers, together.tokens, strict=True))
    yield sample(
        "concurrent",
        concurrent,
        total_s=together.total_s,
        output_tokens=output_tokens,
        reused_tokens=together.reused_tokens,
        same_as_alone=same,
    )
    yield sample("concurrency_gain", concurrent / serial)
