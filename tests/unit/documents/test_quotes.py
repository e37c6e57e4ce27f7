"""Quotes: what is only set differently is found at its place, what says anything else is not."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_documents import prose, real

from kvasir.bench.focus_quotes import altered_quotes, check_quotes, reset_quotes
from kvasir.documents.likeness import likeness_of
from kvasir.documents.quotes import QuoteIndex, Span, extract_quotes, find_quote

TEXT = (
    "The \ufb01rst well-\nknown exam-\nple was \u201cnot\u201d re\u00adsigned in 1990-\n1995 "
    "--- or so.\n"
    "It took 3.14 and -5 % of pre- and post-\nwar dis\ufffetribution; cafe\u0301 tech\ufffectte. "
    "He said\u2014don\u2019t use --verbose, nor 10\u00b2 of\u00a0them."
)


@pytest.mark.parametrize(
    ("quote", "found"),
    [
        ('The first well-known example was "not" resigned', "The \ufb01rst \u2026 re\u00adsigned"),
        ("first wellknown example was", "\ufb01rst \u2026 was"),  # nobody can tell from the text
        ("first well-\r\nknown ex\u00adample was", "\ufb01rst \u2026 was"),
        ("resigned in 1990\u20131995 \u2014 or so.", "re\u00adsigned \u2026 so."),
        ("of pre- and post-war distribution; caf\u00e9", "of pre- \u2026 cafe\u0301"),
        ("of pre- and postwar distribution", "of pre- \u2026 dis\ufffetribution"),
        ("tech-ctte. He said -- don't use", "tech\ufffectte. \u2026 use"),
        ("don't use --verbose, nor 10\u00b2 of them", "don\u2019t \u2026 them"),
        ("\uff35se is not what this is about", None),
    ],
)
def test_setting_is_ignored_and_the_place_is_the_texts_own(quote: str, found: str | None) -> None:
    span = find_quote(quote, TEXT)
    if found is None:
        assert span is None
        return
    begin, _, end = found.partition(" \u2026 ")
    assert span is not None
    place = TEXT[span.start : span.end]
    assert place.startswith(begin)
    assert place.endswith(end)


@pytest.mark.parametrize(
    "quote",
    [
        "the first well-known example was",  # case
        "The first well known example was",  # a hyphen is not a space
        "The first wellknownexample was",
        "known example was \u201cnot\u201d resigned",  # from the middle of a word
        "The first well-known exam",
        "in 19901995 --- or so.",
        "14 and -5 % of pre- and",  # 3.14
        "5 % of pre- and post-war",  # -5
        "and -5 % of pre- and post",
        "and -5 of pre- and post-war",
        "don't use -verbose, nor 10\u00b2",
        "don't use verbose, nor 10\u00b2",
        "--verbose, nor 102 of them",  # a power is not a digit
        "He said, don't use --verbose",
    ],
)
def test_nothing_else_is_ignored(quote: str) -> None:
    assert find_quote(quote, TEXT) is None


@pytest.mark.parametrize(
    "quote",
    ["", " ", "...", "The first", "wonderfully exaggerated", "first", "a b c", "\u201d", "1 2 3"],
)
def test_too_short_a_quote_is_never_verified(quote: str) -> None:
    assert find_quote(quote, f"{TEXT} a b c 1 2 3 ... wonderfully exaggerated") is None


def test_chinese_has_no_spaces_and_its_lines_break_anywhere() -> None:
    text = "\u4eca\u5929\u5929\u6c14\n\u5f88\u597d\u6211\u4eec\u53bb\u516c\u56ed\u5427\u3002"
    assert find_quote("\u5929\u6c14\u5f88\u597d\u6211\u4eec\u53bb\u516c", text) == Span(2, 11)
    assert find_quote("\u5929\u6c14\u5f88\u574f\u6211\u4eec\u53bb\u516c", text) is None
    assert find_quote("\u5929\u6c14\u5f88\u597d", text) is None


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet='ab c-\n\u00ad\ufb01\u2014"\u201d.,3\u0301\u200b\ufffe\t', max_size=40))
def test_letters_know_where_they_came_from(text: str) -> None:
    likeness = likeness_of(text)
    n = len(likeness.letters)
    assert n == len(likeness.gaps) == len(likeness.starts) == len(likeness.ends)
    assert list(likeness.starts) == sorted(likeness.starts)
    assert all(0 <= a < b <= len(text) for a, b in zip(likeness.starts, likeness.ends, strict=True))
    for letter, start, end in zip(likeness.letters, likeness.starts, likeness.ends, strict=True):
        if letter.isascii() and letter.isalnum() and end == start + 1:
            assert text[start] == letter or text[start] == "\ufb01"


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from(["kalor", "men", "not", "ti.", "su,", "5", "pre-", "\u2014", "x-y"]),
        min_size=8,
        max_size=30,
    ),
    st.randoms(use_true_random=False),
)
def test_a_passage_is_found_however_its_lines_break(words: list[str], rng: random.Random) -> None:
    text = "Begin here " + " ".join(words) + " and end here."
    again = "Begin here" + "".join(rng.choice((" ", "\n", "\r\n  ")) + word for word in words)
    assert find_quote(again + "\nand end here.", text) == Span(0, len(text))
    assert find_quote("Begin here" + again[10:] + " and end her", text) is None


@pytest.mark.parametrize("path", ["made", "documents/debian-policy.pdf", "books/war-and-peace.txt"])
def test_a_thousand_altered_quotes_are_refused_and_a_thousand_set_anew_are_found(path: str) -> None:
    text = prose(3, 900) if path == "made" else real(path).text[:600_000]
    check = check_quotes(text, 1000, seed=11)
    assert (check.n_altered, check.n_reset) == (1000, 1000)
    assert check.verified == ()
    assert check.missed == ()
    assert len(check.kinds) == 16


def test_alterations_alter_and_settings_set() -> None:
    text = prose(4, 200)
    plain = " ".join(text.split())
    altered = list(altered_quotes(text, 64, random.Random(1)))
    assert sum(quote in plain for _, quote in altered) <= sum("cut" in kind for kind, _ in altered)
    reset = list(reset_quotes(text, 64, random.Random(1)))
    assert all(text[sample.start : sample.end] == sample.text for sample, _ in reset)
    assert sum(sample.text != quote for sample, quote in reset) > 48


def test_an_index_finds_the_first_of_many() -> None:
    index = QuoteIndex("kalor men tisu. " * 3)
    assert index.find("kalor men tisu.") == Span(0, 15)
    assert index.find("men tisu. kalor") == Span(6, 21)
    assert index.find_letters("su") == Span(12, 14)
    assert index.find_letters("") is None


@pytest.mark.parametrize(
    ("answer", "quotes"),
    [
        ('It says "a b\nc" and \u201cd \u2018e\u2019 f\u201d.', ("a b\nc", "d \u2018e\u2019 f")),
        (
            "\u00abun deux\u00bb et \u00abtrois\u00bb, \u201eeins zwei\u201c",
            ("un deux", "trois", "eins zwei"),
        ),
        (
            "See:\n> first line\n> second\n\nand \u2018this one\u2019, it\u2019s",
            ("first line\nsecond", "this one"),
        ),
        ('> "in both"\n', ("in both",)),
        ('"\u2026 in the middle ..." twice: "in the middle"', ("in the middle",)),
        ("Packages must not contain hard links.", ("Packages must not contain hard links.",)),
        ("One sentence. And another one.", ()),
        ("", ()),
        ('An unpaired "mark\n\nand another "paragraph', ()),
    ],
)
def test_quotes_are_taken_out_of_answers(answer: str, quotes: tuple[str, ...]) -> None:
    assert extract_quotes(answer) == quotes


def test_hostile_texts_take_time_in_proportion() -> None:
    assert find_quote("a " * 2000 + "b cc dddddddddd", "a " * 200_000) is None
    assert extract_quotes('"' + "> \n" * 50_000 + "\u201c" * 50_000) != ("",)
    assert likeness_of(" " * 200_000 + "-" * 200_000 + "\u0301" * 1000).letters
