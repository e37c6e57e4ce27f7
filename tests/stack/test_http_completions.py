"""Completions, as lm-evaluation-harness and others use them; models, tokens, health, metrics."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest
from virtual_server import WINDOW, World, world

URL = "/v1/completions"


def complete(http: httpx2.Client, **fields: Any) -> dict[str, Any]:
    response = http.post(URL, json={"seed": 1, "max_tokens": 4} | fields)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def chunks(http: httpx2.Client, **fields: Any) -> list[dict[str, Any]]:
    body = {"seed": 1, "max_tokens": 4, "stream": True} | fields
    with http.stream("POST", URL, json=body) as response:
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_an_evaluation_harness_reads_its_scores(shared: World, http: httpx2.Client) -> None:
    tokenizer = shared.served.codec.tokenizer
    prompts = [tokenizer.encode("the raven said nevermore"), tokenizer.encode("why")]
    fields = {"prompt": prompts, "max_tokens": 1, "echo": True, "logprobs": 1, "seed": 1234}
    body = complete(http, model="virtual", temperature=0, **fields)
    assert [choice["index"] for choice in body["choices"]] == [0, 1]
    for choice, prompt in zip(body["choices"], prompts, strict=True):
        lists = choice["logprobs"]
        assert len(lists["tokens"]) == len(prompt) + 1  # exactly one generated token
        assert lists["token_logprobs"][0] is None
        assert lists["top_logprobs"][0] is None
        text = tokenizer.decode(prompt)
        assert choice["text"].startswith(text)
        for at, token in enumerate(prompt[1:], start=1):
            assert lists["tokens"][at] == tokenizer.token_text(token)
            assert lists["token_logprobs"][at] == -(1.0 + token % 7)  # the runner's rule
            # the harness's test for greedy tokens
            assert max(lists["top_logprobs"][at].items(), key=lambda kv: kv[1])[0] == text[at]
        for offset, token in zip(lists["text_offset"], lists["tokens"], strict=True):
            assert choice["text"][offset : offset + len(token)] == token
    assert body["usage"]["prompt_tokens"] == sum(map(len, prompts))
    assert body["usage"]["completion_tokens"] == 2


def test_prompt_logprobs_reuse_nothing_and_say_so(http: httpx2.Client) -> None:
    for _ in range(2):
        body = complete(http, prompt="read me twice", echo=True, logprobs=0)
        assert body["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        assert body["prompt_cache_diagnostics"]["reason"] == "prompt_logprobs"


@pytest.mark.parametrize(
    "prompt", ["one text", ["one text", "another"], [1, 2, 3], [[1, 2, 3], [4]]]
)
def test_prompts_come_in_four_shapes(
    shared: World, http: httpx2.Client, prompt: str | list[Any]
) -> None:
    body = complete(http, prompt=prompt, n=2)
    n_prompts = len(prompt) if isinstance(prompt, list) and type(prompt[0]) is not int else 1
    assert [choice["index"] for choice in body["choices"]] == list(range(2 * n_prompts))
    assert body["usage"]["completion_tokens"] == 8 * n_prompts
    stream = chunks(http, prompt=prompt, n=2)
    for choice in body["choices"]:
        index = choice["index"]
        streamed = [c for chunk in stream for c in chunk["choices"] if c["index"] == index]
        assert "".join(c["text"] for c in streamed) == choice["text"]
        assert streamed[-1]["finish_reason"] == choice["finish_reason"] == "length"


def test_text_and_its_tokens_get_the_same_answer(shared: World, http: httpx2.Client) -> None:
    ids = shared.served.codec.tokenizer.encode("as text")
    by_text, by_ids = complete(http, prompt="as text"), complete(http, prompt=ids)
    assert by_text["choices"][0]["text"] == by_ids["choices"][0]["text"]


def test_an_echo_streams_the_prompt_first(http: httpx2.Client) -> None:
    whole = complete(http, prompt="say it back", echo=True, logprobs=2)["choices"][0]
    stream = chunks(http, prompt="say it back", echo=True, logprobs=2)
    pieces = [c for chunk in stream for c in chunk["choices"]]
    assert pieces[0]["text"] == "say it back"
    assert "".join(c["text"] for c in pieces) == whole["text"]
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        joined = [x for c in pieces if c["logprobs"] for x in c["logprobs"][name]]
        assert joined == whole["logprobs"][name]


def test_nothing_may_be_generated_and_the_prompt_still_scored(http: httpx2.Client) -> None:
    body = complete(http, prompt="score me", max_tokens=0, echo=True, logprobs=0)
    choice = body["choices"][0]
    assert choice["text"] == "score me"
    assert len(choice["logprobs"]["tokens"]) == len("score me")
    assert body["usage"]["completion_tokens"] == 0
    assert choice["finish_reason"] == "length"


def test_sixteen_tokens_are_the_default(http: httpx2.Client) -> None:
    body = complete(http, prompt="default", max_tokens=None)
    assert body["usage"]["completion_tokens"] == 16


def test_a_prompt_that_is_too_long_names_the_prompt(http: httpx2.Client) -> None:
    response = http.post(URL, json={"prompt": "x" * (WINDOW + 1)})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "prompt")
    assert f"maximum context length is {WINDOW} tokens" in error["message"]


@pytest.mark.parametrize("prompt", ["", [5000], [[1], [258]]])
def test_prompts_without_tokens_or_with_unknown_ones_are_refused(
    http: httpx2.Client, prompt: Any
) -> None:
    response = http.post(URL, json={"prompt": prompt})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "prompt")


def test_a_bias_on_a_token_that_is_not_there_is_refused(http: httpx2.Client) -> None:
    response = http.post(URL, json={"prompt": "x", "logit_bias": {"258": 1}})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "logit_bias")


def test_models_are_listed_with_their_aliases(http: httpx2.Client) -> None:
    listed = http.get("/v1/models").json()["data"]
    assert [entry["id"] for entry in listed] == ["virtual", "gpt-4o"]
    assert http.get("/v1/models/gpt-4o").json() == listed[1]
    missing = http.get("/v1/models/some/other")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


def test_tokens_go_there_and_back(http: httpx2.Client) -> None:
    text = "naïve café 🐦 <|im_end|>"
    tokens = http.post("/tokenize", json={"prompt": text, "return_token_strs": True}).json()
    assert tokens["count"] == len(tokens["tokens"]) == len(tokens["token_strs"])
    assert tokens["max_model_len"] == WINDOW
    assert http.post("/detokenize", json={"tokens": tokens["tokens"]}).json()["prompt"] == text
    plain = http.post("/tokenize", json={"prompt": "<|im_end|>", "add_special_tokens": False})
    assert plain.json()["count"] == len("<|im_end|>")
    messages = [{"role": "user", "content": "hi"}]
    chat = http.post("/tokenize", json={"messages": messages}).json()
    usage = http.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 1}).json()
    assert chat["count"] == usage["usage"]["prompt_tokens"]
    assert http.post("/detokenize", json={"tokens": [9999]}).status_code == 400
    assert http.get("/tokenizer_info").json()["eos_token"] == "<|im_end|>"


def test_metrics_tell_what_happened() -> None:
    with world() as own, own.http() as http:
        for _ in range(2):
            complete(http, prompt="x" * 100, max_tokens=5)
        http.get("/nowhere")
        http.get("/v1/models", headers={"host": "evil.example"})
        page = http.get("/metrics")
        assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
        lines = dict(
            line.rsplit(" ", 1) for line in page.text.splitlines() if not line.startswith("#")
        )
        assert float(lines["kvasir_generated_tokens_total"]) == 10
        assert float(lines['kvasir_cached_tokens_total{source="device"}']) == 99
        assert float(lines["kvasir_computed_tokens_total"]) > 100
        assert float(lines["kvasir_requests_running"]) == 0
        assert float(lines["kvasir_requests_waiting"]) == 0
        assert float(lines['kvasir_kv_usage_ratio{tier="device"}']) == 0
        assert float(lines["kvasir_time_to_first_token_seconds_count"]) == 2
        assert float(lines["kvasir_inter_token_latency_seconds_count"]) == 8
        route = 'kvasir_http_requests_total{method="POST",route="/v1/completions",status="200"}'
        assert float(lines[route]) == 2
        assert float(lines['kvasir_http_requests_total{method="GET",route="none",status="404"}'])
        assert float(lines['kvasir_http_requests_total{method="GET",route="none",status="403"}'])
        assert float(lines['kvasir_requests_finished_total{reason="length"}']) == 2


def test_pages_need_nothing_from_elsewhere(http: httpx2.Client) -> None:
    for path in ("/", "/docs"):
        page = http.get(path)
        assert page.status_code == 200
        assert "<script" not in page.text
        assert "https://" not in page.text
        assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert "/v1/chat/completions" in http.get("/").text
    docs = http.get("/docs").text
    for name in ("temperature", "repetition_penalty", "/detokenize", "429"):
        assert name in docs


def test_health_tells_the_engines_state(http: httpx2.Client) -> None:
    response = http.get("/health")
    assert response.status_code == 200
    assert response.json() == {
        "status": "ok",
        "last_step_age_s": 0.0,
        "running": 0,
        "waiting": 0,
        "degraded": [],
    }


def test_health_tells_of_a_dead_engine() -> None:
    with world() as own, own.http() as http:
        own.client.stop()
        response = http.get("/health")
        assert (response.status_code, response.json()["status"]) == (503, "dead")
        response = http.post(URL, json={"prompt": "x"})
        assert (response.status_code, response.json()["error"]["code"]) == (503, "server_stopping")
        assert response.headers["retry-after"]
