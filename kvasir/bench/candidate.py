"""What an engine must do to take part, and the values that cross the pipe to its process.

Standard library only (see the package). An engine is a module of ``kvasir.bench.engines`` with a
function ``load(setup) -> Candidate``. All of them choose greedily, ignore end-of-text tokens and
are handed token ids, so that tokenisers play no part.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

ENGINES = ("kvasir", "transformers", "llama_cpp", "vllm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """How a worker is to load its engine."""

    engine: str  # one of ENGINES
    weights: str  # absolute path of a checkpoint folder or of a GGUF file
    dtype: str  # "bfloat16", "float16", "float32"; a GGUF file has its own
    threads: int
    window: int  # tokens of the longest prompt with its answer
    client_tokens: int  # of a prompt with its answer, where several are answered at once
    home: str  # a folder for what the engine wants to keep
    flash_attention: bool = False  # llama.cpp's switch; the others have none
    kv_gib: float = 0.0  # the KV pool of an engine that has one; 0 = what it takes by itself
    # Kvasir's own settings of these names; the others have the weights and KV of their kind
    weights_format: str = "auto"
    kv_dtype: str = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One prompt answered: seconds from handing it over to the first and to the last token."""

    first_s: float
    total_s: float
    tokens: tuple[int, ...]
    reused_tokens: int = 0  # of the prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """Prompts answered at once: seconds from handing them over to the last token of all."""

    total_s: float
    tokens: tuple[tuple[int, ...], ...]  # per prompt
    reused_tokens: int = 0


class Candidate(Protocol):
    """A loaded engine."""

    def versions(self) -> dict[str, str]:
        """Of the libraries that do the work."""
        ...

    def notes(self) -> list[str]:
        """How the engine is used here, for the reader of the table."""
        ...

    def answer(self, prompt: Sequence[int], n_tokens: int, topic: str) -> Answer:
        """Answer with exactly ``n_tokens`` tokens.

        What was computed for an earlier prompt of the same ``topic`` may be reused as far as the
        two begin alike; what belongs to other topics may not.
        """
        ...

    def answer_all(self, prompts: Sequence[Sequence[int]], n_tokens: int, topic: str) -> Answers:
        """Answer all prompts, which are equally long, at once with ``n_tokens`` tokens each."""
        ...

    def close(self) -> None:
        """Let go of threads and memory."""
        ...


def load(setup: Setup) -> Candidate:
    """Load the engine that ``setup`` names. Raises ``ValueError`` for an unknown one."""
    if setup.engine not in ENGINES:
        raise ValueError(f"unknown engine {setup.engine!r}; there are {', '.join(ENGINES)}")
    module = importlib.import_module(f"kvasir.bench.engines.{setup.engine}")
    return cast("Candidate", module.load(setup))


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens the two have in common from the beginning."""
    for index, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return index
    return min(len(one), len(other))
