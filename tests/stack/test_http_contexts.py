"""Contexts over HTTP on the virtual engine: made, read, asked, forked, cancelled, deleted, and what
is refused. Answers are functions of every token that was read, so wrong KV gives wrong text."""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from pathlib import Path

import pytest
from context_calls import completed, create
from virtual_server import BLOCK_TOKENS, World, world

from kvasir.contexts.outline import unpacked
from kvasir.contexts.sweep import MAX_TOKENS
from kvasir.core.config import Config
from kvasir.sched.virtual import expected_answer

TEXT = "The raven sat on the roof. It was the third of May. Nobody had seen it come. " * 8


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def made(home: Path) -> Iterator[World]:
    with world(stored=Config(home=home, disk_gib=1)) as one:
        yield one


def text_input(text: str = TEXT, title: str = "a.txt") -> list[dict[str, str]]:
    return [{"type": "input_text", "text": text, "title": title}]


def test_a_text_is_read_once_and_questions_compute_only_themselves(made: World) -> None:
    with made.http() as http:
        context = create(http, input=text_input(), name="raven")
        context = completed(http, context["id"])
        assert context["status"] == "completed"
        assert context["progress"]["processed_tokens"] == context["tokens"] > 600
        assert context["usage"]["computed_tokens"] == context["tokens"]
        assert context["receipt"] == {
            "tier": "disk",
            "until": context["expires_at"],
            "survives_restart": True,
            "survives_memory_pressure": True,
            "bytes": context["bytes"],
        }
        reply = http.post(
            "/v1/chat/completions",
            json={
                "messages": [{"role": "user", "content": "When?"}],
                "context": "raven",
                "max_tokens": 8,
                "temperature": 0,
            },
        ).json()
        usage = reply["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] == context["tokens"]
        assert usage["context_tokens"] == context["tokens"]
        assert usage["dropped_tokens"] == 0


def test_the_answer_is_that_of_all_tokens(made: World) -> None:
    """The whole prompt, computed without any cache, gives the same answer."""
    with made.http() as http:
        context = completed(http, create(http, input=text_input(TEXT + "More."))["id"])
        body = {
            "messages": [{"role": "user", "content": "When?"}],
            "model": f"virtual@{context['id']}",
            "max_tokens": 12,
            "seed": 7,
        }
        reply = http.post("/v1/chat/completions", json=body).json()
    library_ids = unpacked(made.served.catalog.contexts.section_tokens(context["id"])[0])
    codec = made.served.codec
    tail = codec.tokenizer.encode("\nWhen?<|im_end|>\n<|im_start|>assistant\n", bos=False)
    namespace = namespace_of_local(made)
    said = expected_answer(namespace, [*library_ids, *tail], 12, seed=7, vocab_size=95)
    assert reply["choices"][0]["message"]["content"] == codec.tokenizer.decode(said)


def namespace_of_local(made: World) -> bytes:
    return hmac.digest(made.served.secret, b"local", "sha256")


def test_identical_content_is_the_same_context(made: World) -> None:
    with made.http() as http:
        first = create(http, input=text_input("One text. " * 50))
        again = create(http, input=text_input("One text. " * 50), name="one")
        assert again["id"] == first["id"]
        assert again["name"] == "one"
        other = create(http, input=text_input("One text. " * 50), instructions="Be brief.")
        assert other["id"] != first["id"]


def test_creating_it_again_leaves_its_expiry_and_importing_it_its_name(made: World) -> None:
    with made.http() as http:
        first = create(http, input=text_input("Lasting. " * 40), ttl="30d", name="lasting")
        completed(http, first["id"])
        again = create(http, input=text_input("Lasting. " * 40))
        assert again["id"] == first["id"]
        assert again["expires_at"] >= first["expires_at"]
        exported = http.get("/v1/contexts/lasting/export").content
        imported = http.post(
            "/v1/contexts/import",
            content=exported,
            headers={"content-type": "application/octet-stream"},
        ).json()
        assert (imported["id"], imported["name"]) == (first["id"], "lasting")
        text = create(http, input=text_input("Text alone. " * 40), keep="text", name="alone")
        exported = http.get("/v1/contexts/alone/export").content
        http.delete("/v1/contexts/alone", headers={"content-type": "application/json"})
        imported = http.post(
            "/v1/contexts/import",
            content=exported,
            headers={"content-type": "application/octet-stream"},
        ).json()
        assert imported["id"] != text["id"]
        assert (imported["keep"], imported["name"]) == ("text", "alone")
        same = http.post(f"/v1/contexts/{first['id']}/fork", json={"name": "other"})
        assert same.status_code == 400


def test_a_fork_shares_what_was_read(made: World) -> None:
    with made.http() as http:
        parent = completed(http, create(http, input=text_input("Base. " * 200, "base"))["id"])
        reply = http.post(
            f"/v1/contexts/{parent['id']}/fork",
            json={"input": text_input("And more.", "more"), "name": "child"},
        )
        child = completed(http, reply.json()["id"])
        assert child["parent"] == parent["id"]
        assert child["usage"]["reused_tokens"] >= parent["tokens"] - 2
        turn = [
            {"role": "user", "content": "Hello?"},
            {"role": "assistant", "content": "Yes."},
        ]
        branch = http.post(f"/v1/contexts/{parent['id']}/fork", json={"messages": turn}).json()
        branch = completed(http, branch["id"])
        asked = http.post(
            "/v1/chat/completions",
            json={
                "context": branch["id"],
                "messages": [{"role": "user", "content": "And?"}],
                "max_tokens": 4,
            },
        ).json()
        cached = asked["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert cached >= branch["tokens"] > parent["tokens"]
        late = http.post(
            f"/v1/contexts/{branch['id']}/fork", json={"input": text_input("Late.", "late")}
        )
        assert late.status_code == 400


def test_what_is_refused_is_refused_with_its_reason(made: World) -> None:
    with made.http() as http:
        context = completed(
            http, create(http, input=text_input("Ruled. " * 90), instructions="Be brief.")["id"]
        )
        system = [{"role": "system", "content": "Hi"}, {"role": "user", "content": "Q"}]
        cases = [
            ("/v1/contexts", {"input": []}, 400, None),
            ("/v1/contexts", {"input": [{"type": "input_text"}]}, 400, "invalid_value"),
            ("/v1/contexts", {"file_ids": ["file-no"]}, 404, "file_not_found"),
            ("/v1/contexts", {"input": text_input(), "ttl": "1s"}, 400, "invalid_value"),
            ("/v1/contexts", {"input": text_input(), "name": "ctx_x"}, 400, "invalid_value"),
            (
                "/v1/chat/completions",
                {"context": context["id"], "messages": system},
                400,
                "context_has_instructions",
            ),
            (
                "/v1/chat/completions",
                {"context": "nobody", "messages": system},
                404,
                "context_not_found",
            ),
            ("/v1/contexts/ctx_none/cancel", {}, 404, "context_not_found"),
            ("/v1/contexts/ctx_none/ask", {"question": "Q"}, 404, "context_not_found"),
        ]
        for path, body, status, code in cases:
            reply = http.post(path, json=body)
            assert reply.status_code == status, (path, reply.text)
            if code:
                assert reply.json()["error"]["code"] == code


def long_text(n: int = 60) -> str:
    return "\n\n".join(
        f"CHAPTER {number}\n\n" + f"In the year {1700 + number} the raven came again. " * 12
        for number in range(1, n + 1)
    )


def test_a_text_longer_than_the_window_is_swept_without_missing_a_section(made: World) -> None:
    """Every section's answer is what its own text and the question give, computed without cache."""
    with made.http() as http:
        context = completed(http, create(http, input=text_input(long_text()), name="long")["id"])
        assert context["sectioned"]
        assert context["sections"] > 10
        reply = http.post(
            "/v1/contexts/long/ask", json={"question": "When?", "mode": "sweep"}
        ).json()
    assert reply["begun"]["sections_asked"] == context["sections"] == len(reply["sections"])
    told = sorted(
        index for kind in ("found", "unverified", "empty", "failed") for index in reply[kind]
    )
    assert told == list(range(context["sections"]))
    ids = made.served.catalog.contexts.section_tokens(context["id"])
    tail = made.served.codec.tokenizer.encode(
        "\nWhen?\nQuote the one sentence of the text above that answers this. If none does, say: "
        "nothing here.<|im_end|>\n<|im_start|>assistant\n",
        bos=False,
    )
    for section in reply["sections"]:
        prompt = [*unpacked(ids[section["index"]]), *tail]
        said = expected_answer(namespace_of_local(made), prompt, MAX_TOKENS, vocab_size=95)
        text = made.served.codec.tokenizer.decode(said).strip()
        assert section["answer"] == (text.rpartition(" ")[0] or text), (
            "the cut off word is left out"
        )
        # a block or two may be computed sooner than they are loaded
        reused = section["reused_from_memory"] + section["reused_from_disk"]
        assert reused >= len(prompt) - len(tail) - 3 * BLOCK_TOKENS


def test_a_stream_tells_every_section_and_then_the_answer(made: World) -> None:
    with made.http() as http:
        context = completed(http, create(http, input=text_input(long_text()), name="long")["id"])
        kinds: list[str] = []
        body = {"question": "In which year?", "mode": "focus", "sections": 3, "stream": True}
        with http.stream("POST", f"/v1/contexts/{context['id']}/ask", json=body) as reply:
            kinds += [line[7:] for line in reply.iter_lines() if line.startswith("event: ")]
        assert kinds == ["begun", "section", "section", "section", "joining", "answer"]
        chat = http.post(
            "/v1/chat/completions",
            json={"context": "long", "messages": [{"role": "user", "content": "When?"}]},
        ).json()
        assert "The model's answer:" in chat["choices"][0]["message"]["content"]
        refused = http.post(
            "/v1/chat/completions",
            json={
                "context": "long",
                "messages": [{"role": "user", "content": "When?"}],
                "stop": ["."],
            },
        )
        assert refused.json()["error"]["code"] == "unsupported_parameter"
        found = http.post("/v1/contexts/long/search", json={"query": "year 1733"}).json()
        assert "1733" in found["data"][0]["content"][0]["text"]


def test_events_can_be_resumed(made: World) -> None:
    with made.http() as http:
        context = create(http, input=text_input(long_text(30) + "Once."))
        completed(http, context["id"])

        def events(last: int) -> list[tuple[int, str]]:
            headers = {"last-event-id": str(last)}
            found: list[tuple[int, str]] = []
            with http.stream(
                "GET", f"/v1/contexts/{context['id']}/events", headers=headers
            ) as reply:
                number = 0
                for line in reply.iter_lines():
                    if line.startswith("id: "):
                        number = int(line[4:])
                    if line.startswith("event: context."):
                        found.append((number, line[7:]))
            return found

        all_events = events(0)
        assert all_events[-1][1] == "context.completed"
        assert [number for number, _ in all_events] == sorted(number for number, _ in all_events)
        assert events(all_events[0][0]) == all_events[1:]
        assert events(all_events[-1][0]) == []


def test_a_deleted_context_is_gone_and_its_kv_with_it(made: World) -> None:
    with made.http() as http:
        context = completed(http, create(http, input=text_input("Away. " * 300))["id"])
        reply = http.delete(
            f"/v1/contexts/{context['id']}", headers={"content-type": "application/json"}
        )
        assert reply.json() == {"id": context["id"], "object": "context", "deleted": True}
        assert http.get(f"/v1/contexts/{context['id']}").status_code == 404
        again = completed(http, create(http, input=text_input("Away. " * 300))["id"])
        assert again["usage"]["computed_tokens"] > 1500


def test_an_idempotency_key_makes_one_context(made: World) -> None:
    with made.http() as http:
        headers = {"idempotency-key": "k1"}
        body = {"input": text_input("Idempotent. " * 30)}
        first = http.post("/v1/contexts", json=body, headers=headers).json()
        again = http.post("/v1/contexts", json=body, headers=headers).json()
        assert again["id"] == first["id"]
        other = http.post("/v1/contexts", json={"input": text_input("X")}, headers=headers)
        assert other.status_code == 422
        assert other.json()["error"]["code"] == "idempotency_key_reused"


def test_files_are_uploaded_read_and_made_contexts(made: World) -> None:
    with made.http() as http:
        reply = http.post(
            "/v1/files",
            files={"file": ("notes.md", b"# Notes\n\nThe raven came in May.\n")},
            data={"purpose": "user_data"},
        )
        assert reply.status_code == 200, reply.text
        file = reply.json()
        assert (file["status"], file["chars"], file["media_type"]) == (
            "processed", 32, "text/markdown",
        )  # fmt: skip
        assert "raven" in http.get(f"/v1/files/{file['id']}/content").text
        assert file["id"] in [each["id"] for each in http.get("/v1/files").json()["data"]]
        context = completed(http, create(http, file_ids=[file["id"]])["id"])
        assert context["file_ids"] == [file["id"]]
        gone = http.delete(f"/v1/files/{file['id']}", headers={"content-type": "application/json"})
        assert gone.json()["deleted"] is True
        assert http.get(f"/v1/files/{file['id']}").status_code == 404
        refused = http.post("/v1/files", files={"file": ("a.bin", b"\x7fELF" + bytes(200))})
        assert refused.status_code == 415, refused.text


def test_a_dry_run_does_nothing(made: World) -> None:
    with made.http() as http:
        before = len(http.get("/v1/contexts?limit=1000").json()["data"])
        forecast = http.post(
            "/v1/contexts", json={"input": text_input(long_text(20)), "dry_run": True}
        ).json()
        assert forecast["object"] == "context.forecast"
        assert forecast["sections"] > 1
        assert forecast["fits"] is True
        assert len(http.get("/v1/contexts?limit=1000").json()["data"]) == before
