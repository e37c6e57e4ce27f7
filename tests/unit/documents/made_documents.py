"""Documents for tests: made ones, and the real ones where they are."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from kvasir.documents.extract import extract
from kvasir.documents.values import Document, Heading, Page, check

DATA = Path(os.environ.get("KVASIR_TEST_DATA", Path(__file__).parents[4] / "shared" / "data"))
_SYLLABLES = ("ka", "lor", "men", "ti", "su", "rad", "ven", "pol", "ina", "est", "or", "fi", "ga")


def real(path: str) -> Document:
    """A document of the test data; skips where it is absent."""
    if not (DATA / path).is_file():
        pytest.skip(f"{DATA / path} is not there")
    return extract(DATA / path, Path(path).name).documents[0]


def words_counted(texts: Sequence[str]) -> list[int]:
    """Counts that add up: a text's words and other visible characters."""
    return [len(re.findall(r"\w+|[^\w\s]", text)) for text in texts]


def document_of(
    text: str, headings: Sequence[tuple[int, int]] = (), pages: Sequence[int] = ()
) -> Document:
    """``headings``: (level, start); ``pages``: where the second and later pages begin."""
    borders = [0, *sorted(pages), len(text)]
    made = Document(
        name="made.txt",
        media_type="text/plain",
        text=text,
        pages=tuple(
            Page(i, str(i + 1), start, end) for i, (start, end) in enumerate(pairwise(borders))
        ),
        headings=tuple(Heading(level, f"H{start}", start) for level, start in headings),
        paged=bool(pages),
    )
    check(made)
    return made


def prose(seed: int, n_sentences: int) -> str:
    """Made English in lines of about 70 characters and paragraphs, with numbers, names, hyphens,
    negations and quotation marks."""
    rng = random.Random(seed)

    def word() -> str:
        return "".join(rng.choice(_SYLLABLES) for _ in range(rng.randrange(1, 5)))

    sentences = []
    for _ in range(n_sentences):
        words = [word() for _ in range(rng.randrange(6, 18))]
        words[rng.randrange(1, 5)] = rng.choice(("must", "must not", "may", "is", "was never"))
        words[rng.randrange(1, 5)] += rng.choice(("", ",", ";", ""))
        if rng.random() < 0.3:
            words.insert(2, str(rng.randrange(10, 5000)))
        if rng.random() < 0.3:
            words.insert(3, rng.choice(("well-known", "\u201ckalor men\u201d", "Mentis\u2014so")))
        words[0] = words[0].capitalize()
        sentences.append(" ".join(words) + rng.choice((".", ".", "?", "!")))
    lines, line = [], ""
    for word_ in " ".join(sentences).split(" "):
        if len(line) + len(word_) > 70:
            lines.append(line + ("\n" if line[-1] in ".?!" else ""))
            line = ""
        line = f"{line} {word_}".strip()
    return "\n".join([*lines, line]) + "\n"
