"""What every engine is asked: prompts as token ids, cut from one text, none overlapping another.

Invariant: two prompts of a workload share no text unless they are meant to, so that no engine can
reuse what it computed for another figure; the same text and sizes always give the same prompts.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kvasir.core.errors import ConfigError

QUESTIONS = (
    "\n\nQuestion: Who speaks first in this text, and about what?\nAnswer:",
    "\n\nQuestion: Which places are named in this text?\nAnswer:",
)
CHARS_PER_TOKEN = 8  # more than any tokenizer packs into a token of running text


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How long, in tokens, and how many."""

    read: tuple[int, ...]  # prompts whose reading is timed
    decode: tuple[int, ...]  # prompts after which decoding is timed
    decode_tokens: int  # of the answer; the first belongs to reading, the others are timed
    shared: int  # the text that two questions share
    shared_answer: int
    served: int  # the prompt whose first token is also timed over HTTP
    clients: int
    client_prompt: int
    client_answer: int

    @property
    def contexts(self) -> tuple[int, ...]:
        """Every single prompt's length, once, ascending."""
        return tuple(sorted({*self.read, *self.decode}))

    def fitted(self, window: int) -> Sizes:
        """What of these fits a model's window of ``window`` tokens.

        Raises ``ConfigError`` where nothing would be left of a figure that cannot be left out.
        """
        room = window - self.decode_tokens
        fitted = replace(
            self,
            read=tuple(n for n in self.read if n <= room),
            decode=tuple(n for n in self.decode if n <= room),
            shared=min(self.shared, (window - self.shared_answer) * 7 // 8),
            served=min(self.served, room),
        )
        if not fitted.read or self.client_prompt + self.client_answer > window:
            raise ConfigError(
                f"the model's window of {window} tokens holds none of the benchmark's prompts; "
                "use --quick or another model"
            )
        return fitted


FULL = Sizes(
    read=(512, 2048, 8000),
    decode=(128, 2048, 8000),
    decode_tokens=65,
    shared=7000,
    shared_answer=8,
    served=2048,
    clients=16,
    client_prompt=1000,
    client_answer=128,
)
QUICK = Sizes(
    read=(128,),
    decode=(128,),
    decode_tokens=33,
    shared=256,
    shared_answer=4,
    served=128,
    clients=4,
    client_prompt=64,
    client_answer=16,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The prompts, as token ids."""

    sizes: Sizes
    contexts: Mapping[int, tuple[int, ...]]  # by length
    warm_up: Mapping[int, tuple[int, ...]]  # of the same lengths, not timed
    start: tuple[int, ...]  # the first prompt after the process start
    served: tuple[int, ...]
    served_warm_up: tuple[int, ...]
    shared: tuple[int, ...]
    questions: tuple[tuple[int, ...], tuple[int, ...]]
    clients: tuple[tuple[int, ...], ...]

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt with its answer: the window that the workload needs."""
        sizes = self.sizes
        return max(
            sizes.contexts[-1] + sizes.decode_tokens,
            sizes.served + sizes.decode_tokens,
            sizes.shared + max(map(len, self.questions)) + sizes.shared_answer,
            sizes.client_prompt + sizes.client_answer,
        )


START_TOKENS = 16


def tokens_needed(sizes: Sizes) -> int:
    """Tokens of running text that ``make`` cuts up, without the questions."""
    return (
        START_TOKENS
        + 2 * sum(sizes.contexts)
        + 2 * sizes.served
        + sizes.shared
        + sizes.clients * sizes.client_prompt
    )


def cutter(tokens: Sequence[int], needed: int) -> Callable[[int], tuple[int, ...]]:
    """What cuts the next so many of ``tokens``, of which ``needed`` are going to be cut in all.

    Raises ``ConfigError`` if there are fewer.
    """
    if len(tokens) < needed:
        raise ConfigError(
            f"the text has {len(tokens)} tokens and the benchmark needs {needed}; give a longer "
            "one with --text, or none, to have one made"
        )
    rest = iter(tokens)
    return lambda n: tuple(itertools.islice(rest, n))


def make(
    tokens: Sequence[int], questions: tuple[Sequence[int], Sequence[int]], sizes: Sizes
) -> Workload:
    """Cut ``tokens`` into the prompts of a workload.

    Raises ``ConfigError`` if they do not suffice.
    """
    cut = cutter(tokens, tokens_needed(sizes))
    return Workload(
        sizes=sizes,
        start=cut(START_TOKENS),
        warm_up={n: cut(n) for n in sizes.contexts},
        contexts={n: cut(n) for n in sizes.contexts},
        served_warm_up=cut(sizes.served),
        served=cut(sizes.served),
        shared=cut(sizes.shared),
        questions=(tuple(questions[0]), tuple(questions[1])),
        clients=tuple(cut(sizes.client_prompt) for _ in range(sizes.clients)),
    )


def load_text(path: Path, n_tokens: int) -> str:
    """The beginning of a text file, long enough for ``n_tokens`` tokens.

    Raises ``ConfigError`` if it cannot be read as UTF-8.
    """
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(n_tokens * CHARS_PER_TOKEN)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path} as UTF-8 text: {error}") from error


def find_text(folder: Path) -> Path | None:
    """The first text file of a data folder's ``books``; None where there is none."""
    return min((folder / "books").glob("*.txt"), default=None)


_OPENINGS = ("The", "A", "Every", "No", "Another", "This", "Some old", "One quiet")
_NOUNS = (
    "river lantern captain harbour letter garden winter engine orchard bridge market soldier "
    "violin window mountain teacher island compass kitchen carriage forest shadow merchant clock"
)
_VERBS = (
    "watched carried forgot opened followed described painted refused remembered crossed "
    "measured repaired promised answered left sold feared counted hid praised"
)
_ENDINGS = (
    "before the storm",
    "without a word",
    "in the early light",
    "as it had every year",
    "for the last time",
    "behind the church",
    "with some regret",
    "to everyone's surprise",
)


def make_text(n_tokens: int, seed: int) -> str:
    """Sentences of common English words, long enough for ``n_tokens`` tokens, from ``seed``.

    Speed does not depend on what a text says; distinct prompts do depend on its not repeating.
    """
    source = random.Random(seed)
    nouns, verbs = _NOUNS.split(), _VERBS.split()
    sentences: list[str] = []
    words = 0
    while words < n_tokens:  # a word is at least one token
        sentence = (
            f"{source.choice(_OPENINGS)} {source.choice(nouns)} of {source.randrange(1, 10_000)} "
            f"{source.choice(verbs)} the {source.choice(nouns)} and the {source.choice(nouns)} "
            f"{source.choice(_ENDINGS)}."
        )
        sentences.append(sentence)
        words += sentence.count(" ") + 1
    return " ".join(sentences)
