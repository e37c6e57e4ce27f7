"""How long the texts of `kvasir bench restore` are, and which token ids they consist of.

Invariant: no two texts of a run share a beginning, so what is to be read cold cannot be reused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from kvasir.bench import workload
from kvasir.core.errors import ConfigError

_ROOM_TOKENS = 64  # of a window, for a question and its answer
N_QUESTIONS = 6  # asked on one text, each another


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreSizes:
    """How long, in tokens, and how many."""

    text: int
    question: int
    window: int
    disk_files: int  # of 16 MiB, with which the disk's own speed is measured
    chat_turns: int
    trace_turns: int  # at most so many requests of a trace
    restart_every: int  # turns

    @property
    def filler(self) -> int:
        """A text for which a pool of one window has to give up all others."""
        return self.window - _ROOM_TOKENS

    @property
    def tokens_needed(self) -> int:
        """Tokens of running text that one repeat takes."""
        return 3 * self.text + 2 * self.filler + N_QUESTIONS * self.question

    def fitted(self, window: int) -> RestoreSizes:
        """What of these fits a model's window. Raises ``ConfigError`` where nothing does."""
        window = min(window, self.window)
        text = min(self.text, window - self.question - _ROOM_TOKENS)
        if text < _ROOM_TOKENS:
            raise ConfigError(f"a window of {window} tokens is too short for this measurement")
        return replace(self, window=window, text=text)


FULL = RestoreSizes(
    text=7500,
    question=16,
    window=8192,
    disk_files=16,
    chat_turns=100,
    trace_turns=1000,
    restart_every=10,
)
QUICK = RestoreSizes(
    text=1000,
    question=16,
    window=2048,
    disk_files=4,
    chat_turns=8,
    trace_turns=8,
    restart_every=3,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """What is read in one repeat, as token ids."""

    warm_up: tuple[int, ...]
    text: tuple[int, ...]
    second: tuple[int, ...]  # read right after ``text``, while that is being saved
    fillers: tuple[tuple[int, ...], tuple[int, ...]]
    questions: tuple[tuple[int, ...], ...]  # [N_QUESTIONS]


def make_texts(tokens: Sequence[int], sizes: RestoreSizes, repeats: int) -> Iterator[Texts]:
    """Cut ``tokens`` into the texts of every repeat.

    Raises ``ConfigError`` if they do not suffice.
    """
    cut = workload.cutter(tokens, repeats * sizes.tokens_needed)
    for _ in range(repeats):
        yield Texts(
            warm_up=cut(sizes.text),
            text=cut(sizes.text),
            second=cut(sizes.text),
            fillers=(cut(sizes.filler), cut(sizes.filler)),
            questions=tuple(cut(sizes.question) for _ in range(N_QUESTIONS)),
        )
