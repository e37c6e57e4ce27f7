"""What a question costs at least: the model's own steps, without server, scheduler or cache.

A process of its own that reads ``Floor`` as JSON from stdin and answers with one line of JSON.
The steps attend to as many tokens as a text has; what these say plays no part in the time, so the
pool is filled with a number instead of being computed.
"""

from __future__ import annotations

import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from kvasir.core.config import load as load_config
from kvasir.core.plans import Join, Run, StepPlan, Work
from kvasir.core.requests import GREEDY
from kvasir.engine.build import load_forward
from kvasir.engine.runner import TorchRunner
from kvasir.engine.survey import survey
from kvasir.tiers.device import DevicePool

_SEQ = 1
_SPREAD = 0.01  # what the pool holds: keys and values that no kernel treats as a special case


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """Which steps, of which model. ``settings`` are those of ``core.config``."""

    settings: dict[str, str]
    context: int  # tokens before the question
    question: int  # tokens
    times: int


def main() -> None:
    """Answer the request on stdin."""
    wanted = Floor(**json.load(sys.stdin))
    question_s, decode_s = measure_floor(wanted)
    print(json.dumps({"question_s": question_s, "decode_s": decode_s}))


def measure_floor(wanted: Floor) -> tuple[float, float]:
    """Median seconds of a step over the question's tokens, and of one that decodes a token."""
    config = load_config(wanted.settings, env={})
    plan = survey(config, Path(config.model), config.home / "models")
    torch.set_num_threads(plan.threads)
    pool = DevicePool(plan.geometry, plan.device)
    pool.fill(_SPREAD)  # memory that was never written would be one page of zeros, read from cache
    runner = TorchRunner(load_forward(plan), pool)
    n_blocks = plan.geometry.blocks_for(wanted.context + wanted.question + 1)
    join = Join(
        seq=_SEQ,
        choice=0,
        namespace=b"",
        sampling=GREEDY,
        blocks=(Run(0, n_blocks),),
        n_prompt=wanted.context + wanted.question,
    )
    runner.run(StepPlan(number=0, joins=(join,)))

    def step_s(start: int, n_tokens: int) -> float:
        work = Work(seq=_SEQ, start=start, tokens=[1] * n_tokens, keep_blocks=n_blocks, sample=True)
        result = runner.run(StepPlan(number=0, works=(work,)))
        if result.faults:
            raise RuntimeError(result.faults[0].message)
        return result.elapsed_s

    end = wanted.context + wanted.question
    took_s = [
        (step_s(wanted.context, wanted.question), step_s(end, 1)) for _ in range(wanted.times + 1)
    ][1:]  # the first makes kernels for the shapes
    questions_s, decodes_s = zip(*took_s, strict=True)
    return statistics.median(questions_s), statistics.median(decodes_s)


if __name__ == "__main__":
    main()
