"""An engine with chosen speeds, and a worker that asks it without a process."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from kvasir.bench.candidate import Answer, Answers, Setup, common_prefix

SETUP = Setup(
    engine="kvasir",
    weights="weights",
    dtype="bfloat16",
    threads=2,
    window=1000,
    client_tokens=100,
    home="home",
)


@dataclass
class FakeCandidate:
    """Reads 1,000 tokens/s, writes 10 a second; a batch costs what its longest member does.

    Answers count up from the prompt's last token. What it was asked is kept in ``log``.
    """

    log: list[tuple[str, int, int, str]] = field(default_factory=list)
    closed: bool = False
    _kept: dict[str, Sequence[int]] = field(default_factory=dict)

    def versions(self) -> dict[str, str]:
        return {"fake": "1"}

    def notes(self) -> list[str]:
        return ["counts up"]

    def answer(self, prompt: Sequence[int], n_tokens: int, topic: str) -> Answer:
        self.log.append(("answer", len(prompt), n_tokens, topic))
        reused = min(common_prefix(self._kept.get(topic, ()), prompt), len(prompt) - 1)
        self._kept[topic] = prompt
        first_s = (len(prompt) - reused) / 1000
        return Answer(
            first_s=first_s,
            total_s=first_s + (n_tokens - 1) / 10,
            tokens=tuple(prompt[-1] + 1 + i for i in range(n_tokens)),
            reused_tokens=reused,
        )

    def answer_all(self, prompts: Sequence[Sequence[int]], n_tokens: int, topic: str) -> Answers:
        self.log.append(("answer_all", len(prompts), n_tokens, topic))
        one = [FakeCandidate().answer(p, n_tokens, topic) for p in prompts]
        return Answers(
            total_s=max(answer.total_s for answer in one),
            tokens=tuple(answer.tokens for answer in one),
        )

    def close(self) -> None:
        self.closed = True


def load(setup: Setup) -> FakeCandidate:
    if setup.engine != "kvasir":
        raise ValueError(f"no {setup.engine} here")
    return FakeCandidate()


PRELUDE = """\
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    op = message["op"]
"""


def script(body: str) -> list[str]:
    """A command that answers every message as the lines of ``body`` do."""
    lines = "\n".join("    " + line for line in body.splitlines())
    return [sys.executable, "-S", "-c", PRELUDE + lines + "\n"]
