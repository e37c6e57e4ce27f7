"""Who may use which route: one table. What it does not name is refused, to everybody.

Invariant: a route answers only those that its row names; to all others it is as a path that there
is not. A route without a row answers nobody: the door knows the table and not the routes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType

from fastapi import Request
from starlette.routing import compile_path

from kvasir.service.errors import method_not_allowed, unknown_url
from kvasir.service.identity import Caller

CALLER = "kvasir.caller"  # where the scope carries the Caller


class Access(Enum):
    """Who may use a route."""

    OPEN = "everybody, without a key; it tells nothing of anyone"
    TENANT = "every tenant, of what is its own"
    ADMIN = "keys of the role admin, and the owner"
    OWNER = "who comes through the socket in the home"


_OPEN, _TENANT, _ADMIN, _OWNER = Access

RULES: Mapping[str, Mapping[str, Access]] = MappingProxyType(
    {
        "/health": {"GET": _OPEN},
        "/": {"GET": _TENANT},
        "/docs": {"GET": _TENANT},
        "/openapi.json": {"GET": _TENANT, "HEAD": _TENANT},
        "/metrics": {"GET": _TENANT},
        "/tokenize": {"POST": _TENANT},
        "/detokenize": {"POST": _TENANT},
        "/tokenizer_info": {"GET": _TENANT},
        "/v1/chat/completions": {"POST": _TENANT},
        "/v1/completions": {"POST": _TENANT},
        "/v1/models": {"GET": _TENANT},
        "/v1/models/{name:path}": {"GET": _TENANT},
        "/v1/files": {"GET": _TENANT, "POST": _TENANT},
        "/v1/files/{file_id}": {"GET": _TENANT, "DELETE": _TENANT},
        "/v1/files/{file_id}/content": {"GET": _TENANT},
        "/v1/contexts": {"GET": _TENANT, "POST": _TENANT},
        "/v1/contexts/import": {"POST": _TENANT},
        "/v1/contexts/{context_id}": {
            "GET": _TENANT,
            "PATCH": _TENANT,
            "POST": _TENANT,
            "DELETE": _TENANT,
        },
        "/v1/contexts/{context_id}/cancel": {"POST": _TENANT},
        "/v1/contexts/{context_id}/fork": {"POST": _TENANT},
        "/v1/contexts/{context_id}/sections": {"GET": _TENANT},
        "/v1/contexts/{context_id}/events": {"GET": _TENANT},
        "/v1/contexts/{context_id}/ask": {"POST": _TENANT},
        "/v1/contexts/{context_id}/search": {"POST": _TENANT},
        "/v1/contexts/{context_id}/export": {"GET": _TENANT},
        "/v1/admin/keys": {"GET": _ADMIN, "POST": _ADMIN},
        "/v1/admin/keys/{key_id}": {"DELETE": _ADMIN},
        "/v1/admin/tenants": {"GET": _ADMIN, "POST": _ADMIN},
        "/v1/admin/tenants/{name}": {"PATCH": _ADMIN, "DELETE": _ADMIN},
        "/kvasir/cache": {"GET": _OWNER, "DELETE": _OWNER},
        "/kvasir/cache/verify": {"POST": _OWNER},
    }
)
_PATTERNS: tuple[tuple[re.Pattern[str], Mapping[str, Access]], ...] = tuple(
    (compile_path(path)[0], methods) for path, methods in RULES.items()
)


def may(caller: Caller | None, access: Access) -> bool:
    """Whether ``caller``, None where nobody has said who it is, may use a route of that kind."""
    match access:
        case Access.OPEN:
            return True
        case Access.TENANT:
            return caller is not None
        case Access.ADMIN:
            return caller is not None and caller.role == "admin"
        case Access.OWNER:
            return caller is not None and caller.owner


def is_open(path: str) -> bool:
    """Whether nobody needs a key for ``path``."""
    return any(access is Access.OPEN for _, access in _declared(path))


def check(method: str, path: str, caller: Caller | None) -> None:
    """Raise a 404 unless there is something for ``caller`` at ``path``, and a 405 unless by that
    method."""
    allowed = {name for name, access in _declared(path) if may(caller, access)}
    if not allowed:
        raise unknown_url(method, path)
    if method not in allowed:
        raise method_not_allowed(method, path, sorted(allowed))


async def check_route(request: Request) -> None:
    """The same for the route that was found, of which a wider path may have been declared: a
    dependency of all routes."""
    path = getattr(request.scope.get("route"), "path", "")
    access = RULES.get(path, {}).get(request.method)
    if access is None or not may(request.scope.get(CALLER), access):
        raise unknown_url(request.method, request.scope["path"])


def _declared(path: str) -> list[tuple[str, Access]]:
    """Methods and their rules of all rows that ``path`` matches."""
    return [rule for pattern, rules in _PATTERNS if pattern.match(path) for rule in rules.items()]
