"""Talking to a Kvasir server through the socket in its home.

Invariant: whatever the server or the transport does, callers see values of this module or a
``KvasirError``; leaving ``chat`` early closes the connection, which cancels the answer.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from kvasir.core.errors import ContextTooLong, KvasirError

Message = Mapping[str, str]  # {"role": …, "content": …}


class ServerError(KvasirError):
    """The server refused the request or failed; ``code`` is OpenAI's error code, if it gave one."""

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code


class ConnectionBroke(ServerError):
    """The server answered, and then no more; what was begun may have been done."""


class NoServer(KvasirError):
    """Nobody answers on the home's socket."""


@dataclass(frozen=True, slots=True)
class ReadProgress:
    """The prompt is read up to ``processed_tokens``, of which ``reused_tokens`` were known."""

    processed_tokens: int
    total_tokens: int
    reused_tokens: int
    eta_s: float | None


@dataclass(frozen=True, slots=True)
class AnswerText:
    """A piece of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class AnswerEnd:
    """Why the answer ended and what it took; ``miss`` says why nothing was reused, and
    ``disk_tokens`` how many of the reused ones came from the disk."""

    finish_reason: str
    prompt_tokens: int
    reused_tokens: int
    completion_tokens: int
    miss: str | None
    disk_tokens: int = 0

    @property
    def computed_tokens(self) -> int:
        """Prompt tokens that had to be computed."""
        return self.prompt_tokens - self.reused_tokens


_JSON = {"content-type": "application/json"}  # the server takes no other, even for no body
ChatEvent = ReadProgress | AnswerText | AnswerEnd


class Client:
    """A connection to the server that listens on ``socket_path``. Use as a context manager."""

    def __init__(self, socket_path: Path) -> None:
        self._http = httpx2.Client(
            transport=httpx2.HTTPTransport(uds=str(socket_path)),
            base_url="http://localhost",
            timeout=httpx2.Timeout(None, connect=5.0),  # reading a long prompt is silent for long
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def model_names(self) -> list[str]:
        """The served model's name, then its aliases. Raises ``NoServer`` if nobody answers."""
        return [str(entry["id"]) for entry in self._get("/v1/models")["data"]]

    def window(self) -> int:
        """Tokens of prompt and answer together that the model reads."""
        return int(self._get("/v1/models")["data"][0]["max_model_len"])

    def chat(
        self, messages: Sequence[Message], *, model: str, options: Mapping[str, object]
    ) -> Iterator[ChatEvent]:
        """The events of one answer: progress of reading, pieces of text, and one ``AnswerEnd``.

        ``options`` are further fields of the request, such as ``max_tokens``. Raises
        ``ContextTooLong`` with the counts, ``ServerError`` or ``NoServer``.
        """
        body = {
            "model": model,
            "messages": list(messages),
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_progress": True,
            **options,
        }
        with self.stream("POST", "/v1/chat/completions", json=body) as response:
            yield from _events_of(response.iter_lines())

    def stored(self) -> dict[str, Any]:
        """All that is stored, as ``service.replies.CacheReply``."""
        return self.call("GET", "/kvasir/cache")

    def verify_stored(self) -> dict[str, Any]:
        """Have all of it read again; ``service.replies.VerifiedReply``. Takes as long as reading
        takes."""
        return self.call("POST", "/kvasir/cache/verify")

    def clear_stored(self, **only: str) -> dict[str, Any]:
        """Have it forgotten, ``only`` of a tier or a tenant; ``service.replies.ClearedReply``."""
        return self.call("DELETE", "/kvasir/cache", params=only)

    def administer(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        """What the admin's route at ``path`` answers (``service.admin``); tenants and keys."""
        return self.call(method, f"/v1/admin/{path}", **options)

    def _get(self, path: str) -> dict[str, Any]:
        return self.call("GET", path, timeout=10.0)

    @contextlib.contextmanager
    def stream(self, method: str, path: str, **options: Any) -> Iterator[httpx2.Response]:
        """The response while it comes, with an OK status; the transport's exceptions in the block
        are ours, too. Raises ``ServerError`` or ``NoServer``."""
        with _translated(), self._http.stream(method, path, **options) as response:
            if response.status_code != httpx2.codes.OK:
                response.read()
                raise _error_of(response.text)
            yield response

    def call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        """The JSON object that the server answers with. Raises ``ServerError`` or ``NoServer``."""
        options.setdefault("headers", {} if "files" in options else _JSON)
        with _translated():
            response = self._http.request(method, path, **options)
            if response.status_code != httpx2.codes.OK:
                raise _error_of(response.text)
            data: dict[str, Any] = response.json()
            return data


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """The transport's exceptions as ours."""
    try:
        yield
    except httpx2.ConnectError as error:
        raise NoServer("no server answers on the home's socket") from error
    except httpx2.TransportError as error:
        raise ConnectionBroke(
            f"the connection to the server broke: {error or type(error).__name__}\n"
            "it was stopped or has crashed\nstart it again; what it had read is computed anew"
        ) from error


def _events_of(lines: Iterator[str]) -> Iterator[ChatEvent]:
    """The events of a stream of server-sent events, which must end with usage and ``[DONE]``."""
    finish_reason = ""
    usage: dict[str, Any] | None = None
    diagnostics: dict[str, Any] = {}
    for data in _payloads(lines):
        if data == "[DONE]":
            if usage is None:
                break
            yield _end_of(finish_reason, usage, diagnostics.get("reason"))
            return
        chunk = json.loads(data)
        if "error" in chunk:
            raise _error_of(data)
        if "prompt_progress" in chunk:
            yield _progress_of(chunk["prompt_progress"])
        usage = chunk.get("usage") or usage
        diagnostics = chunk.get("prompt_cache_diagnostics") or diagnostics
        for choice in chunk.get("choices", ()):
            if text := choice.get("delta", {}).get("content"):
                yield AnswerText(text)
            finish_reason = choice.get("finish_reason") or finish_reason
    raise ServerError(
        "the server's answer broke off before its end\nit was stopped or has crashed\n"
        "start it again and ask anew"
    )


def _payloads(lines: Iterator[str]) -> Iterator[str]:
    """The ``data`` of each event, which our server puts in one line; comments keep alive."""
    for line in lines:
        if line.startswith("data:"):
            yield line[5:].strip()


def _progress_of(progress: dict[str, Any]) -> ReadProgress:
    return ReadProgress(
        processed_tokens=progress["processed"],
        total_tokens=progress["total"],
        reused_tokens=progress["cache"],
        eta_s=progress.get("eta_s"),
    )


def _end_of(finish_reason: str, usage: dict[str, Any], miss: str | None) -> AnswerEnd:
    details = usage["prompt_tokens_details"]
    return AnswerEnd(
        finish_reason=finish_reason,
        prompt_tokens=usage["prompt_tokens"],
        reused_tokens=details["cached_tokens"],
        completion_tokens=usage["completion_tokens"],
        miss=miss,
        disk_tokens=details.get("cached_tokens_by_tier", {}).get("disk", 0),
    )


_TOO_LONG = re.compile(
    r"maximum context length is (\d+) tokens.*\((\d+) in the (?:messages|prompt), (\d+) in", re.S
)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z`])")
_LINES = 3


def _error_of(body: str) -> KvasirError:
    """The error in an answer's body, which has OpenAI's shape unless something else answered."""
    try:
        error = json.loads(body)["error"]
        message, code = str(error["message"]), error.get("code")
    except (ValueError, KeyError, TypeError):
        return ServerError(f"the server answered with something else than JSON: {body[:200]!r}")
    counts = _TOO_LONG.search(message) if code == "context_length_exceeded" else None
    if counts:
        window, prompt_tokens, max_tokens = (int(count) for count in counts.groups())
        return ContextTooLong(window=window, prompt_tokens=prompt_tokens, max_tokens=max_tokens)
    return ServerError(in_lines(message), code=code)


def in_lines(message: str) -> str:
    """A message of several sentences as at most three lines: fact, cause, what to do."""
    sentences = _SENTENCE_END.split(message.strip()) if "\n" not in message else [message]
    if len(sentences) > _LINES:
        sentences = [sentences[0], " ".join(sentences[1:-1]), sentences[-1]]
    return "\n".join(sentences)
