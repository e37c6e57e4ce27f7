"""Two pages for people, without scripts and without anything from elsewhere: what this is and how
to call it (``/``), and the API (``/docs``), made from the OpenAPI document."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse

from kvasir import __version__
from kvasir.core.geometry import ModelCard
from kvasir.service.desk import Desk
from kvasir.service.openapi import document, error_docs

_HEADERS = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}
_STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem }
pre { overflow-x: auto; padding: .75rem; border: 1px solid #8886; border-radius: .4rem }
code, pre { font-family: ui-monospace, monospace; font-size: .9em }
table { border-collapse: collapse; width: 100% } td { padding: .2rem .6rem .2rem 0; border-top: 1px solid #8884; vertical-align: top }
summary { cursor: pointer; font-weight: 600 }
"""  # noqa: E501


def routes(desk: Desk, app: FastAPI) -> APIRouter:
    """The routes over ``desk``; ``app`` is what the documentation describes."""
    router = APIRouter(tags=["pages"])
    documented: dict[str, Any] = {
        "response_class": HTMLResponse,
        "responses": error_docs(400, 401, 403),
    }

    @router.get("/", **documented, summary="What this is and how to call it")
    async def home(request: Request) -> HTMLResponse:
        caller = desk.caller(request)
        base = f"http://{request.headers.get('host', 'localhost')}"
        page = _home(desk.served.card, base, keyed=caller.key_id is not None)
        return HTMLResponse(page, headers=_HEADERS)

    @router.get("/docs", **documented, summary="The API, for reading")
    async def docs(request: Request) -> HTMLResponse:
        desk.caller(request)
        return HTMLResponse(_page("Kvasir API", "".join(_docs(document(app)))), headers=_HEADERS)

    return router


def _page(title: str, body: str) -> str:
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style>{body}</html>'
    )


def _home(card: ModelCard, base: str, *, keyed: bool) -> str:
    body = json.dumps(
        {"model": card.name, "messages": [{"role": "user", "content": "What is a raven?"}]}
    )
    header = " \\\n  -H 'Authorization: Bearer YOUR_KEY'" if keyed else ""
    curl = (
        f"curl {base}/v1/chat/completions{header} \\\n  -H 'Content-Type: application/json' \\\n"
        f"  -d '{body}'"
    )
    python = (
        "from openai import OpenAI\n\n"
        f'client = OpenAI(base_url="{base}/v1", api_key="{"YOUR_KEY" if keyed else "none"}")\n'
        "answer = client.chat.completions.create(\n"
        f'    model={card.name!r},\n    messages=[{{"role": "user", "content": "Hello!"}}],\n)\n'
        "print(answer.choices[0].message.content)"
    )
    note = " It is a small model for demonstration." if card.demonstration else ""
    return _page(
        "Kvasir",
        f"<h1>Kvasir</h1><p>A long-context inference server, version {escape(__version__)}. It "
        "reads a text once and answers any number of questions on it.</p>"
        f"<p>Serving <code>{escape(card.name)}</code> ({escape(card.architecture)}, "
        f"{escape(card.dtype)}), {card.window:,} tokens of prompt and answer.{note}</p>"
        f"<h2>Ask</h2><pre>{escape(curl)}</pre><pre>{escape(python)}</pre>"
        '<p><a href="/docs">API</a> · <a href="/openapi.json">OpenAPI</a> · '
        '<a href="/health">health</a> · <a href="/metrics">metrics</a></p>',
    )


def _docs(openapi: dict[str, Any]) -> Iterator[str]:
    yield f"<h1>{escape(openapi['info']['title'])} API</h1>"
    yield f"<p>{escape(openapi['info']['description'])}</p>"
    yield '<p>For programs: <a href="/openapi.json">openapi.json</a></p>'
    schemas = openapi["components"]["schemas"]
    for path, operations in openapi["paths"].items():
        for method, operation in operations.items():
            yield f"<h2><code>{method.upper()} {escape(path)}</code></h2>"
            yield f"<p>{escape(operation.get('summary', ''))}</p>"
            content = operation.get("requestBody", {}).get("content", {})
            for media in content.values():
                yield from _fields(schemas, media["schema"])
            rows = "".join(
                f"<tr><td>{status}<td>{escape(response['description'])}"
                for status, response in sorted(operation["responses"].items())
            )
            yield f"<details><summary>Answers</summary><table>{rows}</table></details>"


def _fields(schemas: dict[str, Any], schema: dict[str, Any]) -> Iterator[str]:
    """The fields of a body as a table; a body that has none is the thing itself."""
    name = schema.get("$ref", "").rpartition("/")[2]
    described = schemas[name] if name else schema
    required = set(described.get("required", ()))
    yield f"<details open><summary>{escape(name or 'Body')}</summary><table>"
    for field, spec in described.get("properties", {}).items():
        mark = " (required)" if field in required else ""
        yield (
            f"<tr><td><code>{escape(field)}</code>{mark}<td>{escape(_kind(spec))}"
            f"<td>{escape(spec.get('description', ''))}"
        )
    yield "</table></details>"


def _kind(spec: dict[str, Any]) -> str:
    """A field's type and bounds in a few words."""
    if "$ref" in spec:
        return str(spec["$ref"].rpartition("/")[2])
    if "anyOf" in spec:
        kinds = [_kind(option) for option in spec["anyOf"] if option.get("type") != "null"]
        return " or ".join(kinds)
    low = spec.get("minimum", spec.get("exclusiveMinimum"))
    high = spec.get("maximum")
    kind = str(spec.get("type", "any"))
    if low is not None and high is not None:
        kind += f" {'>' if 'exclusiveMinimum' in spec else 'from'} {low} to {high}"
    if "items" in spec:
        kind += f" of {_kind(spec['items'])}"
    return kind
