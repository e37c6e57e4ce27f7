"""Bodies: strict JSON, every number bounded, known fields that are not there yet refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvasir.service import unsupported
from kvasir.service.body import decode
from kvasir.service.errors import ApiError
from kvasir.service.schemas import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)

USER = [{"role": "user", "content": "hi"}]


def chat(**fields: Any) -> ChatRequest:
    body = {"messages": USER} | fields
    return decode(json.dumps(body).encode(), ChatRequest, unsupported.CHAT)


def completion(**fields: Any) -> CompletionRequest:
    body = {"prompt": "hi"} | fields
    return decode(json.dumps(body).encode(), CompletionRequest, unsupported.COMPLETION)


def refusal(data: bytes, model: Any = ChatRequest, table: Any = unsupported.CHAT) -> ApiError:
    with pytest.raises(ApiError) as caught:
        decode(data, model, table)
    assert caught.value.status == 400
    return caught.value


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b'{"messages": []',
        b'{"temperature": NaN}',
        b'{"temperature": -Infinity}',
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}',
        b'{"messages": [{"role": "user", "content": "\xed\xa0\x80"}]}',
        b"[" * 100_000,
        b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        b'{"seed": ' + b"9" * 10_000 + b"}",
        b'{"messages": []} trailing',
    ],
)
def test_what_is_no_json_is_a_400_that_says_so(data: bytes) -> None:
    assert refusal(data).code == "invalid_json"


@pytest.mark.parametrize("data", [b"[]", b"1", b"null", b'"text"', b"true"])
def test_a_body_must_be_an_object(data: bytes) -> None:
    assert refusal(data).message == "The request body must be a JSON object."


# field -> (smallest, largest) that pass
BOUNDS: dict[str, tuple[float, float]] = {
    "temperature": (0, 2),
    "top_k": (0, 1_000_000),
    "min_p": (0, 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "seed": (-(2**63), 2**63 - 1),
    "n": (1, 16),
    "max_tokens": (1, 16_777_216),
    "max_completion_tokens": (1, 16_777_216),
    "top_p": (0.001, 1),
    "repetition_penalty": (0.001, 10),
}
WRONG: tuple[Any, ...] = ("1", True, [], {}, "NaN")


@pytest.mark.parametrize("field", BOUNDS)
def test_every_number_passes_at_its_bounds_and_fails_beyond(field: str) -> None:
    low, high = BOUNDS[field]
    for value in (low, high, None):
        chat(**{field: value})
    # not 2**63 + 1.0: a float cannot tell it from 2**63
    beyond = [low - 1, high + 1, 2**63 + (field == "seed"), -(2**63) - 1, 1e308]
    for value in beyond:
        assert refusal(json.dumps({"messages": USER, field: value}).encode()).param == field
    for literal in ("1e999", "-1e999"):
        data = f'{{"messages": [{{"role": "user", "content": "x"}}], "{field}": {literal}}}'
        assert refusal(data.encode()).param == field
    for value in WRONG:
        assert refusal(json.dumps({"messages": USER, field: value}).encode()).param == field


@pytest.mark.parametrize("value", [-1, 21, 2**31, 2**63, 1e999, True, "1"])
def test_logprobs_are_bounded(value: Any) -> None:
    data = json.dumps({"messages": USER, "logprobs": True, "top_logprobs": value}).encode()
    error = refusal(data.replace(b"Infinity", b"1e999"))
    assert error.param == "top_logprobs"
    data = json.dumps({"prompt": "x", "logprobs": value}).encode().replace(b"Infinity", b"1e999")
    assert refusal(data, CompletionRequest, unsupported.COMPLETION).param == "logprobs"


def test_top_logprobs_need_logprobs() -> None:
    data = json.dumps({"messages": USER, "top_logprobs": 1}).encode()
    assert "logprobs" in refusal(data).message


def test_a_whole_number_may_be_written_with_a_point() -> None:
    body = chat(max_tokens=2.0, n=3.0)
    assert (body.max_tokens, body.n) == (2, 3)
    assert isinstance(body.max_tokens, int)
    assert refusal(json.dumps({"messages": USER, "n": 1.5}).encode()).param == "n"


@pytest.mark.parametrize(
    "value",
    [
        {"-1": 1},
        {"1.5": 1},
        {"x": 1},
        {"²": 1},
        {"99999999999": 1},
        {"1": 101},
        {"1": -101},
        {"1": "1"},
        {"1": True},
        {"1": None},
        [1],
        "1",
        {str(i): 1 for i in range(1025)},
    ],
)
def test_biases_are_bounded(value: Any) -> None:
    data = json.dumps({"messages": USER, "logit_bias": value}).encode()
    assert refusal(data).param == "logit_bias"


def test_biases_are_numbers_by_token() -> None:
    assert chat(logit_bias={"7": -100, "8": 0.5}).logit_bias == {7: -100.0, 8: 0.5}


@pytest.mark.parametrize("value", ["", [""], ["a"] * 9, [1], 1, {"a": 1}, "x" * 513, [None]])
def test_stops_are_bounded(value: Any) -> None:
    assert refusal(json.dumps({"messages": USER, "stop": value}).encode()).param == "stop"


@pytest.mark.parametrize(("value", "stops"), [("a", ("a",)), (["a", "b"], ("a", "b")), (None, ())])
def test_stops_have_one_shape(value: Any, stops: tuple[str, ...]) -> None:
    assert chat(stop=value).stop == stops


@pytest.mark.parametrize(
    ("value", "prompts"),
    [
        ("a", ("a",)),
        ("", ("",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ([1, 2],)),
        ([[1], [2, 3]], ([1], [2, 3])),
        ([1.0, 2], ([1, 2],)),
    ],
)
def test_prompts_have_one_shape(value: Any, prompts: tuple[Any, ...]) -> None:
    assert completion(prompt=value).prompt == prompts


@pytest.mark.parametrize(
    "value",
    [
        [],
        [[]],
        [1, "a"],
        ["a", 1],
        [[1], "a"],
        [1.5],
        [2.0**60],
        [True],
        [-1],
        [2**31],
        [2**63],
        [[1, -1]],
        [None],
        {},
        7,
        None,
        ["a"] * 129,
        [[1]] * 129,
    ],
)
def test_prompts_of_other_shapes_are_refused(value: Any) -> None:
    data = json.dumps({"prompt": value}).encode()
    assert refusal(data, CompletionRequest, unsupported.COMPLETION).param == "prompt"


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ({}, "messages"),
        ("hi", "messages"),
        (None, "messages"),
        ([1], "messages[0]"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"content": "x"}], "messages[0].role"),
        ([{"role": "robot", "content": "x"}], "messages[0].role"),
        ([{"role": "user", "content": 1}], "messages[0].content"),
        ([{"role": "user", "content": None}], "messages[0].content"),
        ([{"role": "user", "content": [1]}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "text", "text": 1}]}], "messages[0].content"),
        ([{"role": "user", "content": "x"}, {"role": "tool", "content": "x"}], "messages[1].role"),
        (
            [{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}],
            "messages[0].tool_calls",
        ),
    ],
)
def test_messages_are_refused_by_their_path(messages: Any, param: str) -> None:
    assert refusal(json.dumps({"messages": messages}).encode()).param == param


def test_an_image_part_is_refused_by_name() -> None:
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}
    error = refusal(json.dumps({"messages": [{"role": "user", "content": [part]}]}).encode())
    assert "image_url" in error.message
    assert error.param == "messages[0].content"


def test_text_parts_are_joined_by_line_breaks() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert chat(messages=[{"role": "user", "content": parts}]).messages[0].content == "a\nb"


NOT_YET: dict[str, Any] = {
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "tool_choice": "required",
    "functions": [{"name": "f"}],
    "function_call": {"name": "f"},
    "response_format": {"type": "json_object"},
    "modalities": ["text", "audio"],
    "audio": {"voice": "x"},
    "web_search_options": {},
    "chat_template": "{{ 1 }}",
    "chat_template_kwargs": {"enable_thinking": False},
    "add_generation_prompt": False,
    "continue_final_message": True,
    "min_tokens": 1,
    "guided_json": {"type": "object"},
    "grammar": "root ::= x",
    "use_beam_search": True,
    "truncate_prompt_tokens": 10,
    "skip_special_tokens": False,
    "mirostat": 2,
    "best_of": 2,
}


@pytest.mark.parametrize("field", NOT_YET)
def test_a_known_field_that_is_not_there_yet_is_refused_by_name(field: str) -> None:
    error = refusal(json.dumps({"messages": USER, field: NOT_YET[field]}).encode())
    assert (error.param, error.code) == (field, "unsupported_parameter")
    assert field in error.message


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": []},
        {"tools": None, "tool_choice": "none"},
        {"tool_choice": "auto"},
        {"response_format": {"type": "text"}},
        {"modalities": ["text"]},
        {"min_tokens": 0, "mirostat": 0, "typical_p": 1.0, "best_of": 1},
        {"skip_special_tokens": True},
        {"unheard_of": [1, {"x": None}], "user": "me", "metadata": {}, "store": True},
    ],
)
def test_what_changes_nothing_and_what_nobody_knows_passes(fields: dict[str, Any]) -> None:
    chat(**fields)


def test_best_of_must_be_n() -> None:
    completion(best_of=3, n=3)
    completion(best_of=1)
    for fields in ({"best_of": 3}, {"best_of": 3, "n": 2}, {"best_of": "x"}):
        data = json.dumps({"prompt": "x"} | fields).encode()
        assert refusal(data, CompletionRequest, unsupported.COMPLETION).param == "best_of"
    data = b'{"prompt": "x", "suffix": "y"}'
    assert refusal(data, CompletionRequest, unsupported.COMPLETION).param == "suffix"


def test_tokenize_takes_either_a_prompt_or_messages() -> None:
    for body in ({}, {"prompt": "x", "messages": USER}):
        refusal(json.dumps(body).encode(), TokenizeRequest, unsupported.TOKENIZE)
    decode(b'{"prompt": ""}', TokenizeRequest, unsupported.TOKENIZE)


@pytest.mark.parametrize("tokens", [None, 1, "x", [1.5], [-1], [2**31], [True], [[1]]])
def test_detokenize_takes_token_ids_alone(tokens: Any) -> None:
    data = json.dumps({"tokens": tokens}).encode()
    assert refusal(data, DetokenizeRequest, unsupported.NOTHING).param == "tokens"


def test_a_million_wrong_elements_make_one_error() -> None:
    data = json.dumps({"messages": [1] * 1_000_000}).encode()
    assert refusal(data).param == "messages[0]"


def test_an_error_shows_no_text_of_the_request() -> None:
    data = json.dumps({"messages": [{"role": "my secret", "content": "x"}]}).encode()
    assert "secret" not in refusal(data).message


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
FIELDS = sorted({*ChatRequest.model_fields, *NOT_YET, "prompt", "role", "content"})


@given(st.dictionaries(st.sampled_from(FIELDS), anything, max_size=6))
def test_any_json_either_passes_or_is_a_400(body: dict[str, Any]) -> None:
    data = json.dumps(body).replace("Infinity", "1e999").encode()
    for model, table in (
        (ChatRequest, unsupported.CHAT),
        (CompletionRequest, unsupported.COMPLETION),
    ):
        try:
            decode(data, model, table)
        except ApiError as error:
            assert error.status == 400  # noqa: PT017
