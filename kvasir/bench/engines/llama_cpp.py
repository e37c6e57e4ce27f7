"""llama.cpp as a candidate, through the C functions that ``llama_cpp`` binds.

The package's ``Llama`` class serves one sequence at a time, so the C interface is used throughout:
it is what llama.cpp's own server stands on. Standard library and ``llama_cpp`` (with its numpy)
only, because this module runs in an interpreter that has nothing else of Kvasir's.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from typing import Any

import llama_cpp
import numpy as np
from llama_cpp import llama_cpp as c

from kvasir.bench.candidate import Answer, Answers, Setup, common_prefix

BATCH_TOKENS = 2048
ERROR_LEVEL = 4  # of ggml_log_level; what lies below is chatter


class LlamaContext:
    """A llama.cpp context: KV for ``n_sequences`` sequences, and one batch that is refilled."""

    def __init__(self, model: Any, setup: Setup, *, n_tokens: int, n_sequences: int) -> None:
        """Room for ``n_sequences`` sequences of ``n_tokens`` tokens each."""
        params = c.llama_context_default_params()
        params.n_ctx = n_tokens * n_sequences
        params.n_seq_max = n_sequences
        params.n_batch = BATCH_TOKENS
        params.n_threads = params.n_threads_batch = setup.threads
        params.flash_attn_type = (
            c.LLAMA_FLASH_ATTN_TYPE_ENABLED
            if setup.flash_attention
            else c.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        params.no_perf = True
        self._context = c.llama_init_from_model(model, params)
        if not self._context:
            raise MemoryError(f"llama.cpp made no context of {params.n_ctx} tokens")
        self._n_vocab = c.llama_vocab_n_tokens(c.llama_model_get_vocab(model))
        self._batch = c.llama_batch_init(BATCH_TOKENS, 0, 1)

    def read(self, tokens: Sequence[int], *, start: int, sequence: int = 0) -> int:
        """Compute ``tokens`` at positions ``start`` onwards; the likeliest token after them."""
        for at in range(0, len(tokens), BATCH_TOKENS):
            piece = tokens[at : at + BATCH_TOKENS]
            last = at + len(piece) == len(tokens)
            self._batch.n_tokens = len(piece)
            for row, token in enumerate(piece):
                self._put(row, token, start + at + row, sequence, last and row == len(piece) - 1)
            self._run()
        return self._likeliest(len(piece) - 1)

    def advance(self, tokens: Sequence[int], position: int) -> list[int]:
        """One step of sequences 0, 1, …: ``tokens`` [B] at ``position``; the next tokens [B]."""
        self._batch.n_tokens = len(tokens)
        for row, token in enumerate(tokens):
            self._put(row, token, position, row, logits=True)
        self._run()
        return [self._likeliest(row) for row in range(len(tokens))]

    def cut(self, position: int, *, sequence: int = 0) -> bool:
        """Forget a sequence from ``position`` on; False where that is not possible."""
        memory = c.llama_get_memory(self._context)
        return bool(c.llama_memory_seq_rm(memory, sequence, position, -1))

    def _put(self, row: int, token: int, position: int, sequence: int, logits: bool) -> None:
        self._batch.token[row] = token
        self._batch.pos[row] = position
        self._batch.n_seq_id[row] = 1
        self._batch.seq_id[row][0] = sequence
        self._batch.logits[row] = logits

    def _run(self) -> None:
        code = c.llama_decode(self._context, self._batch)
        if code != 0:
            raise RuntimeError(f"llama_decode gave {code} for {self._batch.n_tokens} tokens")

    def _likeliest(self, row: int) -> int:
        logits = c.llama_get_logits_ith(self._context, row)
        return int(np.argmax(np.ctypeslib.as_array(logits, shape=(self._n_vocab,))))

    @property
    def handle(self) -> Any:
        """The C context, for what is not here."""
        return self._context

    def close(self) -> None:
        c.llama_batch_free(self._batch)
        c.llama_free(self._context)


class LlamaCppCandidate:
    """One context for single answers, which keeps the last one; another one for each batch."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._log = c.llama_log_callback(_errors_only)  # referenced, or it would be collected
        c.llama_log_set(self._log, ctypes.c_void_p(0))
        c.llama_backend_init()
        params = c.llama_model_default_params()
        params.n_gpu_layers = 0
        self._model = c.llama_model_load_from_file(setup.weights.encode(), params)
        if not self._model:
            raise ValueError(f"llama.cpp cannot load {setup.weights}")
        self.context = LlamaContext(self._model, setup, n_tokens=setup.window, n_sequences=1)
        self._topic = ""
        self._cached: list[int] = []

    def versions(self) -> dict[str, str]:
        system = c.llama_print_system_info().decode(errors="replace").strip()
        return {"llama-cpp-python": llama_cpp.__version__, "llama.cpp was built with": system}

    def notes(self) -> list[str]:
        return [
            f"flash attention {'on' if self._setup.flash_attention else 'off'}, f16 KV, "
            f"batches of {BATCH_TOKENS} tokens",
            "second question: the first one's sequence, cut back to the common beginning",
            "concurrent requests: prompts read one after another, then decoded as one batch",
        ]

    def answer(self, prompt: Sequence[int], n_tokens: int, topic: str) -> Answer:
        start_s = time.perf_counter()
        reused = 0
        if topic == self._topic:
            reused = min(common_prefix(self._cached, prompt), len(prompt) - 1)
        if not self.context.cut(reused):
            raise RuntimeError(f"llama.cpp cannot cut a sequence back to {reused} tokens")
        tokens = [self.context.read(prompt[reused:], start=reused)]
        first_s = time.perf_counter() - start_s
        while len(tokens) < n_tokens:
            tokens += self.context.advance(tokens[-1:], len(prompt) + len(tokens) - 1)
        total_s = time.perf_counter() - start_s
        self._topic, self._cached = topic, [*prompt, *tokens[:-1]]
        return Answer(first_s=first_s, total_s=total_s, tokens=tuple(tokens), reused_tokens=reused)

    def answer_all(self, prompts: Sequence[Sequence[int]], n_tokens: int, topic: str) -> Answers:
        del topic  # a batch starts from nothing
        context = LlamaContext(
            self._model,
            self._setup,
            n_tokens=self._setup.client_tokens,
            n_sequences=len(prompts),
        )
        try:
            start_s = time.perf_counter()
            step = [context.read(p, start=0, sequence=i) for i, p in enumerate(prompts)]
            steps = [step]
            while len(steps) < n_tokens:
                step = context.advance(step, len(prompts[0]) + len(steps) - 1)
                steps.append(step)
            total_s = time.perf_counter() - start_s
        finally:
            context.close()
        return Answers(total_s=total_s, tokens=tuple(zip(*steps, strict=True)))

    def close(self) -> None:
        self.context.close()
        c.llama_model_free(self._model)


def _errors_only(level: int, text: bytes, data: object) -> None:
    del data
    if level == ERROR_LEVEL:
        print(text.decode(errors="replace"), end="")


def load(setup: Setup) -> LlamaCppCandidate:
    """Load the GGUF file ``setup.weights``."""
    return LlamaCppCandidate(setup)
