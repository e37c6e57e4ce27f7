"""Chat Completions over the real scheduler: bodies, streams, follow-ups, usage, stop strings."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest
from virtual_server import WINDOW, World, byte_tokenizer, world

from kvasir.sched.virtual import expected_answer

URL = "/v1/chat/completions"


def ask(http: httpx2.Client, *texts: str, **fields: Any) -> dict[str, Any]:
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    response = http.post(URL, json={"messages": messages, "max_tokens": 8, "seed": 1} | fields)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def chunks(http: httpx2.Client, *texts: str, **fields: Any) -> list[dict[str, Any]]:
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    body = {"messages": messages, "max_tokens": 8, "seed": 1, "stream": True} | fields
    with http.stream("POST", URL, json=body) as response:
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert all(line.startswith("data: ") for line in lines)
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def text_of(stream: list[dict[str, Any]], index: int = 0) -> str:
    return "".join(
        choice["delta"].get("content", "")
        for chunk in stream
        for choice in chunk["choices"]
        if choice["index"] == index
    )


def tokens_of(world_: World, text: str) -> list[int]:
    rendered = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
    return world_.served.codec.tokenizer.encode(rendered)


def right_answer(world_: World, text: str, n_tokens: int, *, choice: int = 0) -> str:
    """What the tagged runner has to say, computed without any cache."""
    namespace = _local(world_)
    ids = expected_answer(
        namespace, tokens_of(world_, text), n_tokens, seed=1, choice=choice, vocab_size=95
    )
    return world_.served.codec.tokenizer.decode(ids)


def _local(world_: World) -> bytes:
    import hmac

    return hmac.digest(world_.served.secret, b"local", "sha256")


def test_an_answer_is_whole_right_and_accounted_for(shared: World, http: httpx2.Client) -> None:
    body = ask(http, "whole and right", n=3)
    assert body["object"] == "chat.completion"
    assert body["model"] == "virtual"
    for index, choice in enumerate(body["choices"]):
        assert choice["index"] == index
        assert choice["message"]["role"] == "assistant"
        assert choice["message"]["content"] == right_answer(
            shared, "whole and right", 8, choice=index
        )
        assert choice["finish_reason"] == "length"
        assert choice["logprobs"] is None
    n_prompt = len(tokens_of(shared, "whole and right"))
    usage = body["usage"]
    assert usage["prompt_tokens"] == n_prompt
    assert usage["completion_tokens"] == 24
    assert usage["total_tokens"] == n_prompt + 24


def test_a_stream_says_the_same_as_a_body(http: httpx2.Client) -> None:
    whole = ask(http, "the same twice", n=2)
    stream = chunks(http, "the same twice", n=2)
    for index in (0, 1):
        assert text_of(stream, index) == whole["choices"][index]["message"]["content"]
        own = [c for chunk in stream for c in chunk["choices"] if c["index"] == index]
        assert own[0]["delta"]["role"] == "assistant"
        assert own[0]["delta"]["content"]
        assert all("role" not in c["delta"] for c in own[1:])
        assert [c["finish_reason"] for c in own][-1] == "length"
        assert all(c["finish_reason"] is None for c in own[:-1])
    assert len({chunk["id"] for chunk in stream}) == 1
    assert all("usage" not in chunk for chunk in stream)
    assert all(chunk["choices"] for chunk in stream)


def test_usage_comes_last_and_only_where_it_was_asked_for(http: httpx2.Client) -> None:
    stream = chunks(http, "usage, please", stream_options={"include_usage": True})
    assert all(chunk["usage"] is None for chunk in stream[:-1])
    assert stream[-1]["choices"] == []
    assert stream[-1]["usage"]["completion_tokens"] == 8
    assert all("prompt_cache_diagnostics" not in chunk for chunk in stream[:-1])


def test_a_stream_with_usage_says_why_nothing_was_reused() -> None:
    with world() as own, own.http() as http:
        stream = chunks(http, "usage, please", stream_options={"include_usage": True})
        assert stream[-1]["prompt_cache_diagnostics"]["reason"] == "first_seen"
        assert stream[-1]["prompt_cache_diagnostics"]["text"] == "<|im_start|>"


def test_cached_tokens_are_there_and_true_with_the_reason_for_none() -> None:
    with world() as own, own.http() as http:
        first = ask(http, "x" * 400)
        assert first["usage"]["prompt_tokens_details"] == {
            "cached_tokens": 0,
            "cached_tokens_by_tier": {"memory": 0, "disk": 0},
        }
        assert first["prompt_cache_diagnostics"] == {
            "prompt": 0,
            "reason": "first_seen",
            "first_different_token": 0,
            "token_id": own.served.codec.tokenizer.encode("<|im_start|>")[0],
            "text": "<|im_start|>",
            "kept_text": None,
        }
        again = ask(http, "x" * 400)
        n_prompt = again["usage"]["prompt_tokens"]
        assert again["usage"]["prompt_tokens_details"] == {
            "cached_tokens": n_prompt - 1,
            "cached_tokens_by_tier": {"memory": n_prompt - 1, "disk": 0},
        }
        assert "prompt_cache_diagnostics" not in again
        other = ask(http, "y" * 400)
        common = len("<|im_start|>") and len(tokens_of(own, "")) - len(
            own.served.codec.tokenizer.encode("<|im_end|>\n<|im_start|>assistant\n")
        )
        assert other["usage"]["prompt_tokens_details"]["cached_tokens"] == common


@pytest.mark.parametrize("streaming", [False, True])
def test_a_follow_up_computes_only_its_new_tokens(streaming: bool) -> None:
    tokenizer = byte_tokenizer(pairs=True)
    with world(tokenizer=tokenizer) as own, own.http() as http:
        text = "a long text " * 60
        if streaming:
            reply = text_of(chunks(http, text, max_tokens=60))
        else:
            reply = ask(http, text, max_tokens=60)["choices"][0]["message"]["content"]
        assert len(tokenizer.encode(reply)) < 60  # read anew, it would be other tokens
        usage = chunks(http, text, reply, "why?", stream_options={"include_usage": True})[-1][
            "usage"
        ]
        new = "<|im_end|>\n<|im_start|>user\nwhy?<|im_end|>\n<|im_start|>assistant\n"
        computed = usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"]
        # the last generated token was never computed: nobody had asked for what follows it
        assert computed == len(tokenizer.encode(new)) + 1


def test_an_answer_cut_by_a_stop_string_is_remembered_up_to_the_cut() -> None:
    tokenizer = byte_tokenizer(pairs=True)
    with world(tokenizer=tokenizer) as own, own.http() as http:
        text = "another text " * 60
        whole = ask(http, text, max_tokens=60)["choices"][0]["message"]["content"]
        cut = ask(http, text, max_tokens=60, stop=whole[50:54])["choices"][0]["message"]["content"]
        assert cut == whole[:50]
        usage = ask(http, text, cut, "why?")["usage"]
        new = "<|im_end|>\n<|im_start|>user\nwhy?<|im_end|>\n<|im_start|>assistant\n"
        computed = usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"]
        assert computed == len(tokenizer.encode(new))


def test_progress_comes_only_where_it_was_asked_for_and_reaches_the_end() -> None:
    with world() as own, own.http() as http:
        silent = chunks(http, "z" * 2000)
        assert not any("prompt_progress" in chunk for chunk in silent)
        stream = chunks(http, "q" * 2000, return_progress=True)
        notes = [chunk["prompt_progress"] for chunk in stream if "prompt_progress" in chunk]
        first_text = next(i for i, chunk in enumerate(stream) if chunk["choices"])
        assert len(notes) == first_text
        assert notes[-1]["processed"] == notes[-1]["total"] == len(tokens_of(own, "q" * 2000))
        assert [n["processed"] for n in notes] == sorted(n["processed"] for n in notes)
        assert notes[0]["cache"] > 0
        assert {"prompt", "total", "cache", "processed", "time_ms", "eta_s"} == set(notes[0])


def test_a_stop_string_ends_the_answer_before_it(shared: World, http: httpx2.Client) -> None:
    answer = right_answer(shared, "stop me", 40)
    stop = answer[10:13]
    cut = answer[: answer.index(stop)]
    body = ask(http, "stop me", max_tokens=40, stop=[stop, "\x00never"])
    choice = body["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (cut, "stop")
    assert body["usage"]["completion_tokens"] == len(cut) + len(stop)
    stream = chunks(http, "stop me", max_tokens=40, stop=stop)
    assert text_of(stream) == cut
    assert stream[-1]["choices"][0]["finish_reason"] == "stop"


def test_a_stop_string_stops_one_choice_and_frees_the_engine_when_all_have_stopped(
    shared: World, http: httpx2.Client
) -> None:
    """At a pace: an engine without weights could be through before it hears of the stop."""
    answers = [right_answer(shared, "two of them", 60, choice=i) for i in (0, 1)]
    stop = answers[0][5]
    body = ask(http, "two of them", max_tokens=60, n=2, stop=stop)
    for answer, choice in zip(answers, body["choices"], strict=True):
        assert choice["message"]["content"] == answer.partition(stop)[0]
    before = shared.client.status().generated_tokens
    both = list({answers[0][3], answers[1][3]})
    shared.runner.pace_s = 0.002
    try:
        body = ask(http, "two of them", max_tokens=2000, n=2, stop=both)
        shared.wait_until_idle()
    finally:
        shared.runner.pace_s = 0.0
    assert [c["finish_reason"] for c in body["choices"]] == ["stop", "stop"]
    assert shared.client.status().generated_tokens - before < 2000


def test_a_stop_token_ends_the_answer_and_is_no_text(shared: World, http: httpx2.Client) -> None:
    answer = right_answer(shared, "token stop", 30)
    stop = shared.served.codec.tokenizer.encode(answer[7])[0]
    body = ask(http, "token stop", max_tokens=30, stop_token_ids=[stop])
    cut = answer[: answer.index(answer[7])]
    assert body["choices"][0]["message"]["content"] == cut
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"]["completion_tokens"] == len(cut) + 1


@pytest.mark.parametrize("streaming", [False, True])
def test_logprobs_have_openais_shape(http: httpx2.Client, streaming: bool) -> None:
    fields = {"logprobs": True, "top_logprobs": 2}
    if streaming:
        stream = chunks(http, "how likely", **fields)
        entries = [
            entry
            for chunk in stream
            for choice in chunk["choices"]
            if choice["logprobs"]
            for entry in choice["logprobs"]["content"]
        ]
        text = text_of(stream)
    else:
        choice = ask(http, "how likely", **fields)["choices"][0]
        entries, text = choice["logprobs"]["content"], choice["message"]["content"]
    assert "".join(entry["token"] for entry in entries) == text
    for entry in entries:
        assert bytes(entry["bytes"]).decode() == entry["token"]
        assert entry["logprob"] <= 0
        assert len(entry["top_logprobs"]) == 2


def test_the_same_seed_says_the_same_and_another_does_not(http: httpx2.Client) -> None:
    one, same, other = (ask(http, "seeds", seed=s, max_tokens=20) for s in (7, 7, 8))
    texts = [body["choices"][0]["message"]["content"] for body in (one, same, other)]
    assert texts[0] == texts[1] != texts[2]


def test_without_a_seed_two_answers_differ(http: httpx2.Client) -> None:
    one, two = (ask(http, "no seed", seed=None, max_tokens=20) for _ in range(2))
    assert one["choices"][0]["message"] != two["choices"][0]["message"]


def test_a_context_that_is_too_long_is_said_as_clients_parse_it(
    shared: World, http: httpx2.Client
) -> None:
    messages = [{"role": "user", "content": "x" * WINDOW}]
    response = http.post(URL, json={"messages": messages, "max_tokens": 10})
    n = len(tokens_of(shared, "x" * WINDOW))
    error = response.json()["error"]
    assert response.status_code == 400
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")
    assert error["message"].startswith(
        f"This model's maximum context length is {WINDOW} tokens. However, you requested "
        f"{n + 10} tokens ({n} in the messages, 10 in the completion)."
    )


def test_what_is_left_of_the_window_is_the_default_and_the_bound(
    shared: World, http: httpx2.Client
) -> None:
    text = "x" * (WINDOW - 60)
    left = WINDOW - len(tokens_of(shared, text))
    body = ask(http, text, max_tokens=None)
    assert body["usage"]["completion_tokens"] == left
    assert ask(http, text, max_tokens=left)["usage"]["total_tokens"] == WINDOW
    messages = [{"role": "user", "content": text}]
    assert http.post(URL, json={"messages": messages, "max_tokens": left + 1}).status_code == 400


@pytest.mark.parametrize(("name", "status"), [("gpt-4o", 200), ("virtual", 200), ("gpt-5", 404)])
def test_models_go_by_their_names_and_aliases(http: httpx2.Client, name: str, status: int) -> None:
    body = {"model": name, "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    response = http.post(URL, json=body)
    assert response.status_code == status
    if status == 200:
        assert response.json()["model"] == name
    else:
        assert response.json()["error"]["code"] == "model_not_found"


def test_a_developer_is_called_system(http: httpx2.Client) -> None:
    answers = {
        http.post(
            URL,
            json={"messages": [{"role": role, "content": "be"}], "max_tokens": 9, "seed": 3},
        ).json()["choices"][0]["message"]["content"]
        for role in ("system", "developer")
    }
    assert len(answers) == 1
