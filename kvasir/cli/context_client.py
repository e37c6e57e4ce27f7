"""Contexts and files as commands reach them: the routes under /v1/contexts and /v1/files.

Invariant: what the server says reaches callers as values of this module, whole; following a reading
goes on behind the last event that was seen, however often the connection breaks.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from kvasir.cli.client import Client, ConnectionBroke, NoServer, ServerError

ENDED = ("completed", "failed", "cancelled", "expired")
UPLOAD_EXPIRES_S = 3600  # the least that a server takes: what is left goes by itself
_RETRIES = 20  # of a broken stream without an event between, …
_RETRY_S = 0.5  # … so long apart
_CHUNK_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Unread:
    """Something that is not in the text; ``page`` counts from 0, None where it is not of a page."""

    document: str | None
    page: int | None
    what: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """A context as the server tells of it; times are Unix times. ``raw`` is all that it said."""

    id: str
    name: str | None
    status: str
    model: str
    sectioned: bool
    sections: int
    tokens: int
    n_bytes: int
    kept: str  # "disk", "memory", or "text": no KV
    until: int | None
    survives_restart: bool
    survives_pressure: bool
    processed: int
    pinned: bool
    origin: str
    created_at: int
    last_active_at: int
    requests: int
    computed: int
    reused: int
    read_s: float
    error: str | None
    unread: tuple[Unread, ...]
    raw: Mapping[str, Any]

    @property
    def called(self) -> str:
        """By which people know it."""
        return self.name or self.id


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What making a context would take."""

    existing: str | None
    sectioned: bool
    sections: int
    tokens: int
    n_bytes: int
    read_s: float
    sweep_s: float
    fits: bool
    refusal: str | None
    unread: tuple[Unread, ...]
    raw: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Reading:
    """How far a reading is."""

    processed: int
    total: int
    tokens_per_s: float | None
    eta_s: float | None


@dataclass(frozen=True, slots=True)
class Happening:
    """A server-sent event; ``number`` is 0 where it has none."""

    kind: str
    number: int
    data: Mapping[str, Any]


class Contexts:
    """The server's contexts of whoever owns the home, through ``client``.

    Methods raise ``ServerError`` with the server's reason and code, or ``NoServer``.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def upload(self, name: str, stream: IO[bytes]) -> str:
        """The id of the file called ``name`` with the bytes of ``stream``, once its text is read;
        it expires by itself."""
        form = {
            "purpose": "user_data",
            "expires_after[anchor]": "created_at",
            "expires_after[seconds]": str(UPLOAD_EXPIRES_S),
        }
        reply = self._client.call("POST", "/v1/files", files={"file": (name, stream)}, data=form)
        return str(reply["id"])

    def forget_file(self, file_id: str) -> None:
        """Remove an uploaded file; contexts made of it keep its text."""
        self._client.call("DELETE", f"/v1/files/{file_id}")

    def create(self, wanted: Mapping[str, Any]) -> Context:
        """The context that the body ``wanted`` describes (``service.contexts.bodies``)."""
        return context_of(self._client.call("POST", "/v1/contexts", json=wanted))

    def forecast(self, wanted: Mapping[str, Any]) -> Forecast:
        """What ``create`` would take; nothing is done."""
        body = {**wanted, "dry_run": True}
        return _forecast_of(self._client.call("POST", "/v1/contexts", json=body))

    def find(self, name: str) -> Context:
        """The context of that id or name."""
        try:
            return context_of(self._client.call("GET", _path(name)))
        except ServerError as error:
            if error.code != "context_not_found":
                raise
            raise ServerError(
                f"there is no context {name!r}\nnone on this home has that name or id\n"
                "`kvasir contexts list` shows what there is; `kvasir read FILE` makes one",
                code=error.code,
            ) from error

    def all(self) -> list[Context]:
        """Every context, the newest first."""
        found: list[Context] = []
        params: dict[str, Any] = {"limit": 1000}
        while True:
            reply = self._client.call("GET", "/v1/contexts", params=params)
            found += [context_of(each) for each in reply["data"]]
            if not reply["has_more"]:
                return found
            params["after"] = reply["last_id"]

    def implicit(self) -> list[dict[str, Any]]:
        """Texts that are kept because they were asked about."""
        params = {"limit": 1000, "origin": "implicit"}
        return list(self._client.call("GET", "/v1/contexts", params=params)["data"])

    def sections(self, name: str) -> list[dict[str, Any]]:
        """The sections of a context, with their summaries."""
        return list(self._client.call("GET", _path(name, "sections"))["data"])

    def change(self, name: str, /, **wishes: Any) -> Context:
        """The context with a new name, ttl or pin; counts as a use."""
        return context_of(self._client.call("PATCH", _path(name), json=wishes))

    def fork(self, name: str, wanted: Mapping[str, Any]) -> Context:
        """A context that begins with all of this one's text."""
        return context_of(self._client.call("POST", _path(name, "fork"), json=wanted))

    def cancel(self, name: str) -> Context:
        """The context, which is not read any more."""
        return context_of(self._client.call("POST", _path(name, "cancel"), json={}))

    def delete(self, name: str) -> None:
        """Forget a context, its text and its KV."""
        self._client.call("DELETE", _path(name))

    def exported(self, name: str) -> Iterator[bytes]:
        """The file of a context, piece by piece. Raises ``ConnectionBroke`` where it ends early."""
        with self._client.stream("GET", _path(name, "export")) as response:
            yield from response.iter_bytes(_CHUNK_BYTES)

    def take_in(self, pieces: Iterator[bytes]) -> Context:
        """The context in an exported file, which may still have to be read."""
        headers = {"content-type": "application/octet-stream"}
        reply = self._client.call("POST", "/v1/contexts/import", content=pieces, headers=headers)
        return context_of(reply)

    def ask(self, name: str, question: Mapping[str, Any]) -> Iterator[Happening]:
        """The events of an answer by sections: begun, section…, joining, answer."""
        body = {**question, "stream": True}
        with self._client.stream("POST", _path(name, "ask"), json=body) as response:
            for event in happenings(response.iter_lines()):
                if event.kind == "error":
                    error = event.data.get("error", {})
                    raise ServerError(str(error.get("message")), code=error.get("code"))
                yield event
                if event.kind == "answer":
                    return
        raise ConnectionBroke(
            "the answer broke off before its end\nthe server was stopped or has crashed\n"
            "start it again and ask anew: what it had read is kept"
        )

    def follow(self, name: str) -> Iterator[Reading | Context]:
        """How the reading of a context goes; the context itself comes last.

        A stream that breaks is taken up again behind its last event. Raises ``ServerError`` where
        the context was deleted, and ``NoServer`` where nobody has answered for a while.
        """
        last, failures = 0, 0
        while True:
            try:
                for event in self._events(name, last):
                    failures = 0
                    last = event.number or last
                    if event.kind == "context":
                        yield context_of(event.data)
                        return
                    if event.kind == "context.deleted":
                        raise ServerError(
                            f"the context {name} was deleted while it was read\n"
                            "another command or client did that\nread it again to have it"
                        )
                    if "processed_tokens" in event.data:
                        yield _reading_of(event.data)
            except (ConnectionBroke, NoServer) as error:
                failures += 1
                if failures > _RETRIES:
                    raise NoServer(
                        "the server has gone while it was reading\n"
                        "it was stopped or has crashed; what it had read is kept\n"
                        "the next server or command on this home goes on from there"
                    ) from error
            time.sleep(_RETRY_S)

    def _events(self, name: str, after: int) -> Iterator[Happening]:
        headers = {"last-event-id": str(after)}
        with self._client.stream("GET", _path(name, "events"), headers=headers) as response:
            yield from happenings(response.iter_lines())
        raise ConnectionBroke("the stream of events ended before the reading did")


def happenings(lines: Iterator[str]) -> Iterator[Happening]:
    """Server-sent events from the lines of a response, each with its data as a JSON object."""
    kind, number, data = "message", 0, ""
    for line in lines:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "event":
                kind = value
            case "id" if value.isdecimal():
                number = int(value)
            case "data":
                data += value
            case "" if not line:
                if data and data != "[DONE]":
                    yield Happening(kind, number, json.loads(data))
                kind, number, data = "message", 0, ""


def context_of(data: Mapping[str, Any]) -> Context:
    """The context that ``service.contexts.replies.ContextReply`` tells of."""
    receipt, usage = data["receipt"], data["usage"]
    return Context(
        id=data["id"],
        name=data["name"],
        status=data["status"],
        model=data["model"],
        sectioned=data["sectioned"],
        sections=data["sections"],
        tokens=data["tokens"],
        n_bytes=data["bytes"],
        kept=receipt["tier"],
        until=receipt["until"],
        survives_restart=receipt["survives_restart"],
        survives_pressure=receipt["survives_memory_pressure"],
        processed=data["progress"]["processed_tokens"],
        pinned=data["pinned"],
        origin=data["origin"],
        created_at=data["created_at"],
        last_active_at=data["last_active_at"],
        requests=usage["requests"],
        computed=usage["computed_tokens"],
        reused=usage["reused_tokens"],
        read_s=usage["read_seconds"],
        error=data["error"],
        unread=unread_of(data["unread"]),
        raw=data,
    )


def _forecast_of(data: Mapping[str, Any]) -> Forecast:
    return Forecast(
        existing=data["existing"],
        sectioned=data["sectioned"],
        sections=data["sections"],
        tokens=data["tokens"],
        n_bytes=data["bytes"],
        read_s=data["seconds"],
        sweep_s=data["sweep_seconds"],
        fits=data["fits"],
        refusal=data["refusal"],
        unread=unread_of(data["unread"]),
        raw=data,
    )


def _reading_of(data: Mapping[str, Any]) -> Reading:
    return Reading(
        processed=data["processed_tokens"],
        total=data["total_tokens"],
        tokens_per_s=data.get("tokens_per_second"),
        eta_s=data.get("eta_seconds"),
    )


def unread_of(rows: Sequence[Mapping[str, Any]]) -> tuple[Unread, ...]:
    """What ``service.contexts.replies.UnreadReply`` rows tell of."""
    return tuple(Unread(r["document"], r["page"], r["what"], r["reason"]) for r in rows)


def pieces_of(path: Path) -> Iterator[bytes]:
    """The bytes of the file at ``path``, piece by piece."""
    with path.open("rb") as stream:
        while piece := stream.read(_CHUNK_BYTES):
            yield piece


def _path(name: str, *below: str) -> str:
    return "/".join(("/v1/contexts", quote(name, safe=""), *below))
