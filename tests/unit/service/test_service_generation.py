"""From events to text: stop strings, several choices, endings, counts, log-probabilities."""

from __future__ import annotations

from typing import Any

import pytest
from virtual_server import byte_tokenizer

from kvasir.core.events import (
    Finished,
    FinishReason,
    Miss,
    Progress,
    RefusalKind,
    Refused,
    Scored,
    Token,
    TokenScore,
    Usage,
)
from kvasir.core.requests import Request
from kvasir.core.tiers import Tier
from kvasir.service.errors import ApiError
from kvasir.service.generation import Answers, Ended, Item, Piece, Reading
from kvasir.service.logprobs import LegacyLogprobs, chat_logprobs, label
from kvasir.service.usage import costs_of, usage_of

TOKENIZER = byte_tokenizer()


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text)


def answers(*, n: int = 1, prompts: int = 1, stop: tuple[str, ...] = ()) -> Answers:
    requests = [
        Request(id=f"r{i}", namespace=b"", tokens=ids("prompt"), max_tokens=99, n=n)
        for i in range(prompts)
    ]
    return Answers(TOKENIZER, requests, stop, prompt_param="prompt")


def say(got: Answers, text: str, *, choice: int = 0, name: str = "r0") -> list[Item]:
    return [
        item
        for id_ in ids(text)
        for item in got.take(Token(name, choice, id_, TokenScore(id_, -1.0)))
    ]


def end(
    got: Answers,
    reason: FinishReason = FinishReason.LENGTH,
    *,
    choice: int = 0,
    name: str = "r0",
    completion: int = 0,
    reused: int = 0,
    miss: Miss | None = Miss.FIRST_SEEN,
    differs_at: int | None = 0,
    **more: Any,
) -> list[Item]:
    usage = Usage(
        prompt_tokens=6,
        reused_tokens=reused,
        completion_tokens=completion,
        miss=miss,
        differs_at=differs_at,
        **more,
    )
    return list(got.take(Finished(name, choice, reason, usage, None, "what failed")))


def text_of(items: list[Item]) -> str:
    return "".join(item.text for item in items if isinstance(item, Piece))


def test_an_answer_ends_when_the_engine_says_so() -> None:
    got = answers()
    assert text_of(say(got, "hello")) == "hello"
    assert not got.finished
    assert end(got, FinishReason.STOP) == [Ended(0, "stop")]
    assert got.finished
    assert got.choices[0].text == "hello"


def test_half_a_character_waits_for_the_other_half_and_keeps_its_score() -> None:
    got = answers()
    first, second = (list(got.take(Token("r0", 0, id_, TokenScore(id_, -1.0)))) for id_ in ids("é"))
    assert first == []
    (piece,) = second
    assert isinstance(piece, Piece)
    assert piece.text == "é"
    assert [score.token for score in piece.scores] == ids("é")


def test_what_was_held_back_comes_at_the_end() -> None:
    got = answers(stop=("END",))
    assert text_of(say(got, "the EN")) == "the "
    items = end(got)
    assert text_of(items) == "EN"
    assert items[-1] == Ended(0, "length")


def test_a_stop_string_ends_a_choice_over_token_borders_and_counts_its_tokens() -> None:
    got = answers(stop=("STOP",))
    items = say(got, "one STOP two")
    assert text_of(items) == "one "
    assert items[-1] == Ended(0, "stop")
    assert got.take_idle() == ["r0"]
    assert got.take_idle() == []
    assert end(got, FinishReason.CANCELLED, completion=12) == []
    assert got.finished
    assert got.choices[0].completion_tokens == len("one STOP")
    assert sum(len(i.scores) for i in items if isinstance(i, Piece)) == len("one STOP")


def test_a_stopped_choice_lets_the_others_go_on() -> None:
    got = answers(n=2, stop=("!",))
    say(got, "a!", choice=0)
    assert got.take_idle() == []
    assert say(got, "zzz", choice=0) == []
    assert text_of(say(got, "bcd", choice=1)) == "bcd"
    assert got.take_idle() == []
    say(got, "!", choice=1)
    assert got.take_idle() == ["r0"]


def test_a_request_is_not_aborted_when_the_engine_has_ended_it() -> None:
    got = answers(n=2, stop=("!",))
    end(got, choice=1)
    say(got, "a!", choice=0)
    assert got.take_idle() == ["r0"]
    end(got, FinishReason.CANCELLED, choice=0)
    assert got.take_idle() == []
    assert got.finished


def test_indices_are_prompt_times_n_plus_choice() -> None:
    got = answers(n=2, prompts=2)
    assert say(got, "x", choice=1, name="r1")[0] == Piece(3, "x", (TokenScore(ids("x")[0], -1.0),))


@pytest.mark.parametrize(
    ("reason", "status", "text"),
    [(FinishReason.FAILED, 500, "what failed"), (FinishReason.CANCELLED, 503, "shutting down")],
)
def test_an_answer_that_was_cut_short_is_an_error(
    reason: FinishReason, status: int, text: str
) -> None:
    got = answers()
    say(got, "half an")
    with pytest.raises(ApiError, match=text) as caught:
        end(got, reason)
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("kind", "status", "param"),
    [
        (RefusalKind.QUEUE_FULL, 429, None),
        (RefusalKind.NEVER_FITS, 400, "prompt"),
        (RefusalKind.STOPPING, 503, None),
    ],
)
def test_refusals_are_errors(kind: RefusalKind, status: int, param: str | None) -> None:
    with pytest.raises(ApiError) as caught:
        list(answers().take(Refused("r0", kind, "because", 2.5)))
    assert (caught.value.status, caught.value.param) == (status, param)
    if status == 429:
        assert caught.value.headers == {"retry-after": "3", "retry-after-ms": "2500"}


def test_progress_is_told_once_per_prompt() -> None:
    got = answers(n=2)
    progress = Progress("r0", 0, 3, 6, 1, 0.5)
    assert list(got.take(progress)) == [Reading(0, progress)]
    assert list(got.take(Progress("r0", 1, 3, 6, 1, 0.5))) == []


def test_usage_counts_each_prompt_once_and_every_choice() -> None:
    got = answers(n=2, prompts=2)
    for name in ("r0", "r1"):
        end(got, choice=0, name=name, completion=3, reused=0)
        end(got, choice=1, name=name, completion=4, reused=5, miss=None)
    usage = usage_of(got)
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (12, 14, 26)
    assert usage.prompt_tokens_details.cached_tokens == 0
    diagnostics = costs_of(got)["prompt_cache_diagnostics"]
    assert (diagnostics.reason, diagnostics.first_different_token) == (Miss.FIRST_SEEN, 0)


def test_where_all_that_could_be_was_reused_there_is_nothing_to_explain() -> None:
    got = answers()
    end(got, reused=5, miss=None, differs_at=None)
    assert usage_of(got).prompt_tokens_details.cached_tokens == 5
    assert "prompt_cache_diagnostics" not in costs_of(got)


def test_reused_tokens_are_told_by_what_users_call_the_tiers() -> None:
    got = answers(prompts=2)
    tiers = {Tier.DEVICE: 1, Tier.HOST: 1, Tier.DISK: 3}
    end(got, name="r0", reused=5, miss=None, differs_at=None, reused_by_tier=tiers)
    end(got, name="r1", reused=2, miss=None, differs_at=None, reused_by_tier={Tier.DISK: 2})
    details = usage_of(got).prompt_tokens_details
    assert details.cached_tokens == 7
    assert details.cached_tokens_by_tier.model_dump() == {"memory": 2, "disk": 5}


def test_a_miss_is_told_with_the_token_and_what_is_kept_in_its_place() -> None:
    got = answers(prompts=2)
    end(got, name="r0", reused=5, miss=None, differs_at=None)
    (kept,) = ids("X")
    end(got, name="r1", reused=2, miss=None, differs_at=2, kept_token=kept)
    assert costs_of(got)["prompt_cache_diagnostics"].model_dump() == {
        "prompt": 1,
        "reason": None,
        "first_different_token": 2,
        "token_id": ids("o")[0],
        "text": "o",
        "kept_text": "X",
    }


def test_a_miss_is_told_as_far_as_it_is_known() -> None:
    for more in (
        {"differs_at": None, "miss": Miss.TOO_SHORT},
        {"differs_at": 6, "miss": None},  # behind the last token
        {"differs_at": 0, "kept_token": TOKENIZER.vocab_size + 3},  # padding of the vocabulary
    ):
        got = answers()
        end(got, **more)
        told = costs_of(got)["prompt_cache_diagnostics"]
        assert told.first_different_token == more["differs_at"]
        assert (told.text is None) == (more["differs_at"] != 0)
        assert told.kept_text is None


def test_a_special_token_is_told_as_it_is_written() -> None:
    end_id = ids("<|im_end|>")[0]
    got = answers()
    end(got, kept_token=end_id)
    assert costs_of(got)["prompt_cache_diagnostics"].kept_text == "<|im_end|>"


def test_prompt_scores_are_kept_by_position_however_often_they_come() -> None:
    got = answers()
    scores = tuple(TokenScore(id_, -float(id_)) for id_ in ids("rompt"))
    list(got.take(Scored("r0", 1, scores[:2])))
    list(got.take(Scored("r0", 3, scores[2:])))
    list(got.take(Scored("r0", 1, scores)))
    assert got.prompt_scores[0] == dict(enumerate(scores, start=1))


def test_legacy_lists_have_null_first_and_the_token_itself_in_top() -> None:
    lists = LegacyLogprobs(TOKENIZER)
    a, b, c = ids("abc")
    prompt = lists.prompt([a, b], {1: TokenScore(b, -2.0, ((c, -0.5),))})
    assert prompt.token_logprobs == [None, -2.0]
    assert prompt.top_logprobs == [None, {"c": -0.5, "b": -2.0}]
    answer = lists.answer([TokenScore(c, float("-inf"), ((c, float("-inf")),))])
    assert answer.token_logprobs == [-9999.0]
    assert prompt.text_offset + answer.text_offset == [0, 1, 2]


def test_parts_of_characters_keep_distinct_labels() -> None:
    first, second = ids("é")
    assert label(TOKENIZER, first) == "bytes:\\xc3"
    lists = LegacyLogprobs(TOKENIZER).answer([TokenScore(first, -1.0, ((second, -0.5),))])
    assert lists.top_logprobs == [{"bytes:\\xa9": -0.5, "bytes:\\xc3": -1.0}]


def test_ids_beyond_the_vocabulary_have_no_text() -> None:
    beyond = TOKENIZER.vocab_size + 5
    assert label(TOKENIZER, beyond) == ""
    (entry,) = chat_logprobs(TOKENIZER, [TokenScore(beyond, -1.0)]).content
    assert (entry.token, entry.bytes) == ("", [])
