"""The official openai client, unchanged."""

from __future__ import annotations

import time

import pytest
from client_server import ALIAS, WINDOW, Address

openai = pytest.importorskip("openai", reason="the clients have an environment: make clients")

ASK = [{"role": "user", "content": "What is a raven?"}]


@pytest.fixture
def client(server: Address):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_chat(client, server: Address) -> None:
    reply = client.chat.completions.create(
        model=server.model, messages=ASK, max_tokens=16, temperature=0
    )
    (choice,) = reply.choices
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason in {"stop", "length"}
    assert reply.model == server.model
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert reply.usage.prompt_tokens_details.cached_tokens >= 0


def test_a_follow_up_is_reused(client) -> None:
    asked = [{"role": "user", "content": "Tell me about the sea. " * 10}]
    common = {"model": ALIAS, "max_tokens": 16, "temperature": 0}
    first = client.chat.completions.create(messages=asked, **common)
    answer = {"role": "assistant", "content": first.choices[0].message.content}
    more = [*asked, answer, {"role": "user", "content": "Go on."}]
    second = client.chat.completions.create(messages=more, **common)
    assert second.usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens


def test_files_become_contexts_that_are_asked(client) -> None:
    text = b"# Notes\n\nThe ferry to Ruvik leaves at noon. " + b"The sea is calm today. " * 40
    file = client.files.create(file=("notes.md", text), purpose="user_data")
    assert (file.object, file.filename, file.status) == ("file", "notes.md", "processed")
    assert "Ruvik" in client.files.content(file.id).text
    assert file.id in [each.id for each in client.files.list()]
    body = {"name": "notes", "input": [{"type": "input_file", "file_id": file.id}]}
    context = client.post("/contexts", cast_to=dict, body=body)
    while context["status"] in ("queued", "in_progress"):
        time.sleep(0.1)
        context = client.get(f"/contexts/{context['id']}", cast_to=dict)
    assert context["status"] == "completed"
    common = {"messages": ASK, "max_tokens": 8, "temperature": 0}
    by_field = client.chat.completions.create(
        model=ALIAS, extra_body={"context": "notes"}, **common
    )
    by_model = client.chat.completions.create(model=f"{ALIAS}@notes", **common)
    assert by_field.usage.prompt_tokens_details.cached_tokens >= context["tokens"]
    assert by_model.choices[0].message.content == by_field.choices[0].message.content
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model=ALIAS, extra_body={"context": "nobody"}, **common)
    assert caught.value.code == "context_not_found"


def test_a_stream_is_the_same_text(client) -> None:
    common = {"model": ALIAS, "messages": ASK, "max_tokens": 16, "temperature": 0}
    whole = client.chat.completions.create(**common)
    stream = client.chat.completions.create(
        **common, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_a_stream_without_usage_has_none(client) -> None:
    stream = client.chat.completions.create(model=ALIAS, messages=ASK, max_tokens=4, stream=True)
    assert all(chunk.choices and chunk.usage is None for chunk in stream)


def test_progress_chunks_pass_through_the_client(client) -> None:
    long = [{"role": "user", "content": "One two three four five. " * 100}]
    stream = client.chat.completions.create(
        model=ALIAS, messages=long, max_tokens=2, stream=True, extra_body={"return_progress": True}
    )
    progress = [c.prompt_progress for c in stream if getattr(c, "prompt_progress", None)]
    assert progress
    assert progress[-1]["processed"] <= progress[-1]["total"]


def test_a_stream_can_be_left_early(client) -> None:
    stream = client.chat.completions.create(
        model=ALIAS, messages=ASK, max_tokens=1000, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    assert client.chat.completions.create(model=ALIAS, messages=ASK, max_tokens=1).choices


def test_several_choices_and_logprobs(client) -> None:
    reply = client.chat.completions.create(
        model=ALIAS, messages=ASK, max_tokens=4, n=2, seed=7, logprobs=True, top_logprobs=3
    )
    assert [choice.index for choice in reply.choices] == [0, 1]
    for choice in reply.choices:
        for token in choice.logprobs.content:
            assert token.logprob <= 0
            assert len(token.top_logprobs) == 3


def test_stop_and_seed(client) -> None:
    asked = {"model": ALIAS, "messages": ASK, "max_tokens": 12, "seed": 3, "temperature": 1.0}
    texts = {client.chat.completions.create(**asked).choices[0].message.content for _ in range(2)}
    assert len(texts) == 1
    (text,) = texts
    word = text.split()[1]
    cut = client.chat.completions.create(**asked, stop=[word]).choices[0]
    assert cut.finish_reason == "stop"
    assert cut.message.content == text[: text.index(word)]


def test_completions(client) -> None:
    reply = client.completions.create(
        model=ALIAS, prompt=["The raven is a", "The sea is"], max_tokens=5, temperature=0
    )
    assert [choice.index for choice in reply.choices] == [0, 1]
    echoed = client.completions.create(
        model=ALIAS, prompt="The raven is a", max_tokens=1, temperature=0, echo=True, logprobs=1
    )
    assert echoed.choices[0].text.startswith("The raven is a")
    logprobs = echoed.choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs)
    assert logprobs.token_logprobs[0] is None
    streamed = client.completions.create(
        model=ALIAS, prompt="The raven is a", max_tokens=5, temperature=0, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in streamed) == reply.choices[0].text


def test_models(client, server: Address) -> None:
    assert {model.id for model in client.models.list()} == {server.model, ALIAS}
    assert client.models.retrieve(ALIAS).id == ALIAS
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")


def test_errors_are_the_clients_own_exceptions(client) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="nobody", messages=ASK)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model=ALIAS, messages=ASK, temperature=-1)
    assert wrong.value.param == "temperature"
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    with pytest.raises(openai.BadRequestError) as later:
        client.chat.completions.create(model=ALIAS, messages=ASK, tools=[tool])
    assert later.value.param == "tools"
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model=ALIAS, prompt="word " * (WINDOW + 10), max_tokens=1)
    assert long.value.code == "context_length_exceeded"
    assert f"maximum context length is {WINDOW} tokens" in long.value.message


@pytest.mark.timeout(120)
def test_the_asynchronous_client(server: Address) -> None:
    import asyncio

    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            replies = await asyncio.gather(
                *(
                    client.chat.completions.create(
                        model=ALIAS, messages=ASK, max_tokens=8, temperature=0
                    )
                    for _ in range(4)
                )
            )
        return [reply.choices[0].message.content for reply in replies]

    assert len(set(asyncio.run(ask()))) == 1
