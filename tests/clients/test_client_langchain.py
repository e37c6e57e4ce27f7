"""langchain-openai, unchanged."""

from __future__ import annotations

import pytest
from client_server import ALIAS, Address

langchain = pytest.importorskip(
    "langchain_openai", reason="the clients have an environment: make clients"
)


@pytest.fixture
def chat(server: Address):
    return langchain.ChatOpenAI(
        base_url=f"{server.url}/v1", api_key="none", model=ALIAS, max_tokens=16, temperature=0
    )


def test_invoke(chat) -> None:
    message = chat.invoke("What is a raven?")
    assert message.content
    usage = message.usage_metadata
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    again = chat.invoke("What is a raven?").usage_metadata
    assert again["input_token_details"]["cache_read"] == usage["input_tokens"] - 1


def test_stream(chat) -> None:
    pieces = [piece.content for piece in chat.stream("What is a raven?")]
    assert len(pieces) > 2
    assert "".join(pieces) == chat.invoke("What is a raven?").content


def test_stream_with_usage(chat) -> None:
    *_, last = (p for p in chat.stream("What is a raven?", stream_usage=True) if p.usage_metadata)
    assert last.usage_metadata["output_tokens"] > 0


def test_batch(chat) -> None:
    messages = chat.batch(["What is a raven?", "What is the sea?", "What is a raven?"])
    assert messages[0].content == messages[2].content != messages[1].content


def test_completions(server: Address) -> None:
    complete = langchain.OpenAI(
        base_url=f"{server.url}/v1", api_key="none", model=ALIAS, max_tokens=4, temperature=0
    )
    assert complete.invoke("The raven is a")
