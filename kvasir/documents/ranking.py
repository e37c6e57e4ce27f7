"""Which passages, and which sections, of a text are likely to answer a question: BM25 over words.

Invariant: the same passages and question give the same ranking, ties in the order of the text; a
passage that shares no word with the question is never ranked.

Words are compared by their stems where the text is English (Porter's, by PyStemmer), as they are in
other languages. A word that nearly every text has counts for nothing; two words side by side in
both count once more; the titles over a passage count as its own words. BM25 itself: Robertson and
Zaragoza 2009, "The Probabilistic Relevance Framework", in the form of Lucene (Lù 2024, "BM25S"). It
adds up what each matched word is worth, so that a rare word may outweigh all others; hence a score
is raised by the share of the question's words, by their weight, that the passage has.

It compares words and knows no meanings: a question that shares none with its answer finds it only
by luck. How often is measured by ``kvasir.bench.focus``.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import bm25s
import numpy as np
import numpy.typing as npt
import Stemmer

from kvasir.documents.passages import Passage
from kvasir.documents.sections import Section

TITLE_WEIGHT = 3  # how often the titles over a passage are counted
COVERAGE_WEIGHT = 1.0  # by how much a passage with all words of a question is raised
K1 = 1.2
B = 0.75
SUPPORT = 0.1  # of a section's second and third passage, beside its best
_SUPPORTING = 2
_ENGLISH_SHARE = 0.2  # of words that are stop words; English prose has about half

_WORDS_OF_NO_WEIGHT = """
    a about after again all also am an and any are as at be because been before being but by can
    cannot could did do does doing during each either else ever few for from further had has
    have having he her here hers him his how however i if in into is it its itself just let may
    me might more most must my myself no nor not now of off on once one only or other our ours
    out over own per s same shall she should so some such t than that the their theirs them
    themselves then there these they this those through to too under until up upon us very was
    we were what when where whether which while who whom whose why will with within without
    would yet you your yours
"""
_STOP_WORDS = frozenset(_WORDS_OF_NO_WEIGHT.split())
_WORD = re.compile(r"[^\W_]+")
_LINE_HYPHEN = re.compile(r"(?<=[^\W\d_])[-\u00ad]\s*\n\s*(?=[^\W\d_])")
_POSSESSIVE = re.compile(r"(?<=\w)['\u2019]s\b")


@dataclass(frozen=True, slots=True)
class Ranked:
    """A passage, how well it matches (comparable within one search only), and the words of the
    question that it has."""

    passage: Passage
    score: float
    matched: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RankedSection:
    """A section, its score, and its best passages, best first; none where nothing matches."""

    section: Section
    score: float
    passages: tuple[Ranked, ...]


class PassageIndex:
    """The passages of one or several documents, made ready once for many questions."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        self._passages = tuple(passages)
        words = [_words(passage.text) for passage in passages]
        self._stem = _stemmer(words)
        cache: dict[tuple[str, ...], list[str]] = {}
        terms: list[list[str]] = []
        for passage, own in zip(passages, words, strict=True):
            if passage.title_path not in cache:
                titles = [self._terms(_words(title)) for title in passage.title_path]
                cache[passage.title_path] = [t for title in titles for t in title] * TITLE_WEIGHT
            terms.append(self._terms(own) + cache[passage.title_path])
        self._sets = [frozenset(found) for found in terms]
        self._weights = _weights(self._sets)
        self._bm25 = None
        if self._weights:
            self._bm25 = bm25s.BM25(k1=K1, b=B, method="lucene")
            self._bm25.index(terms, show_progress=False)

    def search(self, question: str, n: int) -> tuple[Ranked, ...]:
        """The ``n`` passages that match ``question`` best, best first; fewer where fewer match. Of
        passages with the same words only the first is taken."""
        asked = self._asked(question)
        scores = self._scores(asked)
        found: list[Ranked] = []
        seen: set[frozenset[str]] = set()
        for at in np.argsort(-scores, kind="stable"):
            if len(found) >= n or scores[at] <= 0:
                break
            if self._sets[at] not in seen:
                seen.add(self._sets[at])
                found.append(self._ranked(int(at), float(scores[at]), asked))
        return tuple(found)

    def rank_sections(
        self, question: str, sections: Sequence[Section], n_passages: int = 3
    ) -> tuple[RankedSection, ...]:
        """All ``sections``, those first whose passages match ``question`` best.

        A section has the score of its best passage and a little of its next two. A passage that
        goes over the border of two sections counts for both.
        """
        asked = self._asked(question)
        scores = self._scores(asked)
        ranked = []
        for section, (first, last) in zip(sections, self._spans(sections), strict=True):
            order = sorted(range(first, last), key=lambda at: (-scores[at], at))
            order = [at for at in order if scores[at] > 0][: max(n_passages, 1 + _SUPPORTING)]
            best = float(scores[order[0]]) if order else 0.0
            more = SUPPORT * float(sum(scores[at] for at in order[1 : 1 + _SUPPORTING]))
            passages = [self._ranked(at, float(scores[at]), asked) for at in order[:n_passages]]
            ranked.append(RankedSection(section, best + more, tuple(passages)))
        return tuple(sorted(ranked, key=lambda found: -found.score))  # stable: in the text's order

    def _spans(self, sections: Sequence[Section]) -> list[tuple[int, int]]:
        """Which passages each section overlaps."""
        documents: dict[str, tuple[int, list[int], list[int]]] = {}
        for at, passage in enumerate(self._passages):
            offset, starts, ends = documents.setdefault(passage.document, (at, [], []))
            starts.append(passage.start)
            ends.append(passage.end)
        spans = []
        for section in sections:
            offset, starts, ends = documents.get(section.document, (0, [], []))
            first = bisect_left(ends, section.start + 1)
            last = max(first, bisect_left(starts, section.end))
            spans.append((offset + first, offset + last))
        return spans

    def _asked(self, question: str) -> dict[str, str]:
        """The terms of ``question`` that the passages know, each with the word it came from."""
        words = [word for word in _words(question) if word not in _STOP_WORDS]
        asked = {self._stem(word): word for word in reversed(words)}
        for left, right in pairwise(words):
            asked[f"{self._stem(left)} {self._stem(right)}"] = ""
        return {term: word for term, word in asked.items() if term in self._weights}

    def _scores(self, asked: Mapping[str, str]) -> npt.NDArray[np.float32]:
        scores = np.zeros(len(self._passages), dtype=np.float32)
        if self._bm25 is None or not asked:
            return scores
        scores += self._bm25.get_scores(sorted(asked))
        single = sorted(term for term in asked if " " not in term)
        total = sum(self._weights[term] for term in single)
        for at in np.flatnonzero(scores):
            had = sum(self._weights[term] for term in single if term in self._sets[at])
            scores[at] *= 1 + COVERAGE_WEIGHT * had / total if total else 1
        return scores

    def _ranked(self, at: int, score: float, asked: Mapping[str, str]) -> Ranked:
        matched = [word for term, word in asked.items() if word and term in self._sets[at]]
        return Ranked(self._passages[at], score, tuple(sorted(matched)))

    def _terms(self, words: Sequence[str]) -> list[str]:
        """Stems of all but stop words, and every two that follow each other without them."""
        stems = [self._stem(word) for word in words if word not in _STOP_WORDS]
        return stems + [f"{left} {right}" for left, right in pairwise(stems)]


def _words(text: str) -> list[str]:
    """The words of ``text`` in small letters, those that a line's end broke put together."""
    text = _LINE_HYPHEN.sub("", unicodedata.normalize("NFKC", text))
    return _WORD.findall(_POSSESSIVE.sub("", text).lower())


class _Stems:
    """Stems of English words, remembered."""

    def __init__(self) -> None:
        self._stemmer = Stemmer.Stemmer("english")
        self._known: dict[str, str] = {}

    def __call__(self, word: str) -> str:
        if word not in self._known:
            self._known[word] = self._stemmer.stemWord(word)
        return self._known[word]


def _stemmer(texts: Sequence[Sequence[str]]) -> _Stems | type[str]:
    """What makes stems of words: English where enough of them are, else nothing is changed."""
    n_words = sum(map(len, texts))
    n_stop = sum(word in _STOP_WORDS for words in texts for word in words)
    return _Stems() if n_stop >= _ENGLISH_SHARE * n_words else str


def _weights(passages: Sequence[frozenset[str]]) -> dict[str, float]:
    """What each term is worth: the rarer the more (BM25's inverse document frequency)."""
    counts: dict[str, int] = {}
    for terms in passages:
        for term in terms:
            counts[term] = counts.get(term, 0) + 1
    n = len(passages)
    return {term: float(np.log(1 + (n - k + 0.5) / (k + 0.5))) for term, k in counts.items()}
