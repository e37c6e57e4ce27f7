"""What users build on, listed: commands, settings, routes, errors. Whoever changes one of these
changes the list, and the CHANGELOG."""

from __future__ import annotations

import dataclasses
import inspect
import re
import tomllib

import pytest
from sources import ROOT
from virtual_server import World, world

import kvasir
from kvasir.cli.main import COMMANDS
from kvasir.core import errors
from kvasir.core.config import Config

SETTINGS = {
    "model", "alias", "device", "dtype", "attention", "threads", "home", "host", "port",
    "allowed_hosts", "keys", "kv_gib", "block_tokens", "max_window", "max_running", "max_waiting",
    "max_waiting_tokens", "step_budget_ms", "grace_s", "seed", "log_level", "host_gib", "disk_gib",
    "audit_one_in", "kernels", "weights", "kv_dtype", "database", "max_file_mib", "max_import_gib",
    "trusted_signers",
}  # fmt: skip

ROUTES = {
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{name}"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("GET", "/tokenizer_info"),
    ("GET", "/health"),
    ("GET", "/metrics"),
    ("GET", "/kvasir/cache"),
    ("DELETE", "/kvasir/cache"),
    ("POST", "/kvasir/cache/verify"),
    ("GET", "/v1/files"),
    ("POST", "/v1/files"),
    ("GET", "/v1/files/{file_id}"),
    ("DELETE", "/v1/files/{file_id}"),
    ("GET", "/v1/files/{file_id}/content"),
    ("GET", "/v1/contexts"),
    ("POST", "/v1/contexts"),
    ("POST", "/v1/contexts/import"),
    ("GET", "/v1/contexts/{context_id}"),
    ("PATCH", "/v1/contexts/{context_id}"),
    ("POST", "/v1/contexts/{context_id}"),
    ("DELETE", "/v1/contexts/{context_id}"),
    ("POST", "/v1/contexts/{context_id}/cancel"),
    ("POST", "/v1/contexts/{context_id}/fork"),
    ("POST", "/v1/contexts/{context_id}/ask"),
    ("POST", "/v1/contexts/{context_id}/search"),
    ("GET", "/v1/contexts/{context_id}/sections"),
    ("GET", "/v1/contexts/{context_id}/events"),
    ("GET", "/v1/contexts/{context_id}/export"),
    ("GET", "/v1/admin/keys"),
    ("POST", "/v1/admin/keys"),
    ("DELETE", "/v1/admin/keys/{key_id}"),
    ("GET", "/v1/admin/tenants"),
    ("POST", "/v1/admin/tenants"),
    ("PATCH", "/v1/admin/tenants/{name}"),
    ("DELETE", "/v1/admin/tenants/{name}"),
    ("GET", "/docs"),
    ("GET", "/"),
}


def test_commands() -> None:
    assert set(COMMANDS) == {
        "serve", "read", "contexts", "ask", "chat", "pull", "models", "cache", "keys", "tenants",
        "doctor", "bench",
    }  # fmt: skip


def test_settings() -> None:
    assert {field.name for field in dataclasses.fields(Config)} == SETTINGS


@pytest.fixture(scope="module")
def made() -> World:
    with world() as one:
        yield one


def test_routes(made: World) -> None:
    document = made.app.openapi()
    described = {
        (method.upper(), path) for path, item in document["paths"].items() for method in item
    }
    assert described == ROUTES


def test_version_is_told_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "kvasir.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", kvasir.__version__)


def test_the_tree_of_errors_is_drawn_as_it_is() -> None:
    """The drawing in the docstring of core.errors shows every class under its parent."""
    drawn: dict[str, str] = {}
    path: list[str] = []
    for line in inspect.getdoc(errors).splitlines():  # type: ignore[union-attr]
        match = re.match(r"([│├└─ ]*)([A-Z][A-Za-z]+)(?: |$)", line)
        if match and (match[1] or match[2] == "KvasirError"):
            depth = len(match[1]) // 4
            path[depth:] = [match[2]]
            drawn[match[2]] = path[depth - 1] if depth else "Exception"
    real = {
        name: cls.__base__.__name__
        for name, cls in vars(errors).items()
        if inspect.isclass(cls) and cls.__module__ == errors.__name__
    }
    assert drawn == real
