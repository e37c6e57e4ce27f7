"""vLLM as a candidate: its engine in this process, stepped here, so that every token has its time.

Nothing that another topic left may be reused: the topic is the salt of the prompt's cached blocks.
Standard library and ``vllm`` only, because this module runs in an interpreter that has nothing else
of Kvasir's. What the process needs in its environment is in ``vllm_env``.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import vllm  # as a rule absent where types are checked
from vllm import EngineArgs, LLMEngine, SamplingParams, TokensPrompt

from kvasir.bench.candidate import Answer, Answers, Setup


@dataclass(slots=True)
class _Progress:
    """One request's answer so far; seconds are since its prompts were handed over."""

    first_s: float = 0.0
    last_s: float = 0.0
    tokens: tuple[int, ...] = ()
    reused_tokens: int = 0


class VllmCandidate:
    """An engine with prefix caching, default settings but for what the workload fixes."""

    def __init__(self, setup: Setup) -> None:
        pool_bytes = int(setup.kv_gib * 2**30)
        args = EngineArgs(
            model=setup.weights,
            dtype=setup.dtype,
            max_model_len=setup.window,
            enable_prefix_caching=True,
            skip_tokenizer_init=True,
            # None: vLLM's own share of the memory
            kv_cache_memory_bytes=pool_bytes or None,
        )
        self._engine = LLMEngine.from_engine_args(args)
        self._ids = itertools.count()

    def versions(self) -> dict[str, str]:
        return {"vllm": vllm.__version__, "torch": torch.__version__}

    def notes(self) -> list[str]:
        config = self._engine.vllm_config
        preloaded = " and ".join(
            Path(path).name for path in os.environ.get("LD_PRELOAD", "").split(":") if path
        )
        return [
            f"the engine in process and no other: compilation "
            f"{config.compilation_config.mode.name}, "
            f"steps of up to {config.scheduler_config.max_num_batched_tokens} tokens, "
            f"{preloaded or 'nothing'} preloaded",
            "second question: prefix caching, in whole blocks of "
            f"{config.cache_config.block_size} tokens; a topic is a cache salt",
            "what vLLM compiles is kept: a machine's first start takes far longer than later ones",
        ]

    def answer(self, prompt: Sequence[int], n_tokens: int, topic: str) -> Answer:
        (done,) = self._run([prompt], n_tokens, topic)
        return Answer(
            first_s=done.first_s,
            total_s=done.last_s,
            tokens=done.tokens,
            reused_tokens=done.reused_tokens,
        )

    def answer_all(self, prompts: Sequence[Sequence[int]], n_tokens: int, topic: str) -> Answers:
        done = self._run(prompts, n_tokens, topic)
        return Answers(
            total_s=max(one.last_s for one in done),
            tokens=tuple(one.tokens for one in done),
            reused_tokens=sum(one.reused_tokens for one in done),
        )

    def _run(
        self, prompts: Sequence[Sequence[int]], n_tokens: int, topic: str
    ) -> tuple[_Progress, ...]:
        """Submit all prompts, then step until every answer is there."""
        params = SamplingParams(
            temperature=0.0, max_tokens=n_tokens, ignore_eos=True, detokenize=False
        )
        progress: dict[str, _Progress] = {}
        start_s = time.perf_counter()
        for prompt in prompts:
            name = f"bench-{next(self._ids)}"
            progress[name] = _Progress()
            tokens = TokensPrompt(prompt_token_ids=list(prompt), cache_salt=topic)
            self._engine.add_request(name, tokens, params)
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                _note(progress[output.request_id], output, time.perf_counter() - start_s)
        for one in progress.values():
            if len(one.tokens) != n_tokens:
                raise RuntimeError(f"vLLM gave {len(one.tokens)} tokens instead of {n_tokens}")
        return tuple(progress.values())

    def close(self) -> None:
        self._engine.engine_core.shutdown()


def _note(progress: _Progress, output: Any, now_s: float) -> None:
    """Take over what a step told about a request; its tokens are all those so far."""
    tokens = tuple(output.outputs[0].token_ids)
    if tokens and not progress.tokens:
        progress.first_s = now_s
    progress.last_s = now_s
    progress.tokens = tokens
    progress.reused_tokens = output.num_cached_tokens or 0


def load(setup: Setup) -> VllmCandidate:
    """Load the checkpoint folder ``setup.weights``."""
    return VllmCandidate(setup)
