"""Streaming text against the naive oracle: decode everything, then look for the first stop."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sample_tokenizers import byte_level, sentencepiece, steady

from kvasir.core.errors import RequestError
from kvasir.text.stream import MAX_STOP_CHARS, MAX_STOPS, TextStream
from kvasir.text.tokenizer import Tokenizer

BYTES = byte_level()
SPM = sentencepiece()


def oracle(text: str, stops: Sequence[str]) -> tuple[str, str | None]:
    for end in range(1, len(text) + 1):
        complete = [s for s in stops if text[:end].endswith(s)]
        if complete:
            longest = max(complete, key=len)
            return text[: end - len(longest)], longest
    return text, None


def stream(tokenizer: Tokenizer, ids: Sequence[int], stops: Sequence[str]) -> list[str]:
    """The pieces, the last one from finish; checks that nothing follows a stop."""
    out = TextStream(tokenizer, stops)
    pieces: list[str] = []
    stopped: str | None = None
    for token in ids:
        piece = out.push(token)
        if stopped is not None:
            assert piece.text == ""
            assert piece.stop == stopped
        stopped = piece.stop
        pieces.append(piece.text)
    return [*pieces, out.finish()]


def check(tokenizer: Tokenizer, ids: Sequence[int], stops: Sequence[str]) -> None:
    text, stop = oracle(tokenizer.decode(ids, skip_special=True), stops)
    out = TextStream(tokenizer, stops)
    pieces = [out.push(token) for token in ids]
    rest = out.finish()
    assert "".join(p.text for p in pieces) + rest == text
    named = [p.stop for p in pieces if p.stop is not None]
    assert set(named) <= {stop}
    assert out.finish() == ""
    # held back is never more than could still become a stop string
    longest = max((len(s) for s in stops), default=0)
    whole = tokenizer.decode(ids, skip_special=True).rstrip("\ufffd")
    if stop is None:
        emitted = sum(len(p.text) for p in pieces)
        assert emitted >= len(whole) - max(longest - 1, 0)


ALL_IDS = st.lists(st.integers(0, BYTES.vocab_size - 1), max_size=40)
# few letters, so that stop strings really occur, overlap and straddle tokens
CROWDED = st.text("the sop.\n你é", max_size=40).map(BYTES.encode)
STOPS = st.lists(st.text("the sop.\n你é\ufffd", min_size=1, max_size=5), max_size=8)


@steady
@given(ALL_IDS | CROWDED, STOPS)
@example(BYTES.encode("aab"), ["ab", "aaa"])
@example(BYTES.encode("stop"), ["stop", "to", "top"])
@example(BYTES.encode("stop"), ["op", "stop", "p"])
@example(BYTES.encode("aabaaabaaac"), ["aabaaac"])
@example([*BYTES.encode("x"), 4 + 0xE4], ["\ufffd"])
def test_pieces_joined_are_the_whole_text_up_to_the_first_stop(
    ids: list[int], stops: list[str]
) -> None:
    check(BYTES, ids, stops)


@steady
@given(
    st.lists(st.integers(0, SPM.vocab_size - 1), max_size=30)
    | st.text("the ast.\n你", max_size=30).map(lambda t: SPM.encode(t, bos=False)),
    STOPS,
)
@example(SPM.encode("  the", bos=False), [" "])
def test_sentencepiece_streams_like_its_whole_decoding(ids: list[int], stops: list[str]) -> None:
    check(SPM, ids, stops)


def test_a_character_split_over_tokens_comes_whole_and_never_as_a_replacement() -> None:
    ids = [4 + byte for byte in "a你😀".encode()]  # one token per byte
    assert stream(BYTES, ids, []) == ["a", "", "", "你", "", "", "", "😀", ""]


def test_an_unfinished_character_is_replaced_only_at_the_end() -> None:
    assert stream(BYTES, [4 + 0xE4, 4 + 0xBD], []) == ["", "", "\ufffd"]
    assert stream(BYTES, [4 + 0xE4, 4 + ord("a")], []) == ["", "\ufffda", ""]


def test_text_that_may_begin_a_stop_is_held_and_released_when_it_does_not() -> None:
    ids = [4 + byte for byte in b"xstoz"]
    assert stream(BYTES, ids, ["stop"]) == ["x", "", "", "", "stoz", ""]
    assert stream(BYTES, ids[:4], ["stop"]) == ["x", "", "", "", "sto"]


def test_a_stop_across_tokens_and_characters_ends_the_text_before_it() -> None:
    ids = [4 + byte for byte in "go 你é!".encode()]
    out = TextStream(BYTES, ["你é"])
    pieces = [out.push(token) for token in ids]
    assert "".join(p.text for p in pieces) == "go "
    assert [p.stop for p in pieces] == [None] * 7 + ["你é"] * 2
    assert out.finish() == ""


def test_special_tokens_and_padding_ids_are_no_text() -> None:
    ids = [*BYTES.encode("in"), 1, BYTES.vocab_size + 5, *BYTES.encode("in")]
    assert "".join(stream(BYTES, ids, [])) == "inin"


def test_the_work_of_a_push_does_not_grow_with_the_answer() -> None:
    class Counting(Tokenizer):
        seen = 0

        def token_bytes(self, token: int) -> bytes:
            self.seen += 1
            return super().token_bytes(token)

    counting = Counting(BYTES._backend, eos_ids=frozenset(), bos_id=None, add_bos=False)
    out = TextStream(counting, ["ab" * 2000])
    for token in [4 + ord("a"), 4 + ord("b")] * 1500:
        out.push(token)
    assert counting.seen == 3000, "every token is read once"
    assert len(out._held) == 3000, "and only what may begin a stop string is kept"
    out.push(4 + ord("z"))
    assert out._held == ""


@pytest.mark.parametrize("stop", [[""], ["a"] * (MAX_STOPS + 1), ["x" * (MAX_STOP_CHARS + 1)]])
def test_stop_strings_out_of_bounds_are_refused(stop: list[str]) -> None:
    with pytest.raises(RequestError) as caught:
        TextStream(BYTES, stop)
    assert caught.value.param == "stop"
