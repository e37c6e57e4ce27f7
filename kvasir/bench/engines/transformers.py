"""The transformers library as a candidate: eager model calls in a greedy loop, SDPA attention.

The loop is the library's own forward pass over its own ``DynamicCache``. It gives what
``generate`` gives with greedy search; measured here, it is as fast for one sequence and somewhat
faster for a batch, so the peer is not charged for more than it must do.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
import transformers
from transformers import AutoModelForCausalLM, DynamicCache

from kvasir.bench.candidate import Answer, Answers, Setup, common_prefix


class TransformersCandidate:
    """Keeps the cache of the last single answer, and nothing else, for reuse."""

    def __init__(self, setup: Setup) -> None:
        torch.set_num_threads(setup.threads)
        self._model = AutoModelForCausalLM.from_pretrained(
            setup.weights, dtype=getattr(torch, setup.dtype), attn_implementation="sdpa"
        )  # in evaluation mode by default
        self._topic = ""
        self._cached: list[int] = []  # the tokens whose KV ``_cache`` holds
        self._cache = self._empty()
        # A sliding layer drops what it no longer sees, so its cache cannot be cut back.
        self._croppable = not any(getattr(layer, "is_sliding", False) for layer in self._layers())

    def _empty(self) -> DynamicCache:
        return DynamicCache(config=self._model.config)

    def _layers(self) -> list[object]:
        return list(self._cache.layers)

    def versions(self) -> dict[str, str]:
        return {"transformers": transformers.__version__, "torch": torch.__version__}

    def notes(self) -> list[str]:
        return [
            "greedy loop over the model's forward pass with DynamicCache, sdpa, eager",
            "second question: the first one's cache, cut back to the common beginning",
            "concurrent requests: one static batch of equally long prompts",
        ]

    @torch.inference_mode()
    def answer(self, prompt: Sequence[int], n_tokens: int, topic: str) -> Answer:
        start_s = time.perf_counter()
        reused = 0
        if topic == self._topic and self._croppable:
            reused = min(common_prefix(self._cached, prompt), len(prompt) - 1)
        surplus = len(self._cached) - reused
        if not reused:
            self._cache = self._empty()
        elif surplus:
            self._cache.crop(-surplus)
        token = self._next(torch.tensor([prompt[reused:]]), self._cache)
        tokens = [int(token)]
        first_s = time.perf_counter() - start_s
        while len(tokens) < n_tokens:
            token = self._next(token, self._cache)
            tokens.append(int(token))
        total_s = time.perf_counter() - start_s
        self._topic, self._cached = topic, [*prompt, *tokens[:-1]]
        return Answer(first_s=first_s, total_s=total_s, tokens=tuple(tokens), reused_tokens=reused)

    @torch.inference_mode()
    def answer_all(self, prompts: Sequence[Sequence[int]], n_tokens: int, topic: str) -> Answers:
        del topic  # a batch starts from nothing
        start_s = time.perf_counter()
        cache = self._empty()
        token = self._next(torch.tensor([list(p) for p in prompts]), cache)
        steps = [token]
        while len(steps) < n_tokens:
            token = self._next(token, cache)
            steps.append(token)
        rows = torch.cat(steps, dim=1).tolist()
        total_s = time.perf_counter() - start_s
        return Answers(total_s=total_s, tokens=tuple(tuple(row) for row in rows))

    def _next(self, tokens: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
        """The likeliest next token of each row. [B, T] -> [B, 1]"""
        output = self._model(
            input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        best: torch.Tensor = output.logits[:, -1:].argmax(-1)
        return best

    def close(self) -> None:
        """Nothing to let go of: the process ends."""


def load(setup: Setup) -> TransformersCandidate:
    """Load the checkpoint folder ``setup.weights``."""
    return TransformersCandidate(setup)
