"""The door: decides on the ASGI scope whether a request may enter, and as whom.

A page in a browser can reach a loopback port, so a server without keys is open to every website
unless Host, Origin and Content-Type are checked. All decisions are taken on the scope that is then
dispatched, never on a URL put together from headers. What is not let in explicitly is refused.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kvasir.core.config import Config
from kvasir.core.errors import KvasirError
from kvasir.service import access
from kvasir.service.access import CALLER
from kvasir.service.errors import ApiError, from_kvasir
from kvasir.service.identity import Identity, is_loopback

# what comes as it is: files, and a foreign page's form cannot pass the check of the Origin
UPLOADS = {"/v1/files": "multipart/form-data", "/v1/contexts/import": "application/octet-stream"}
_BODY_METHODS = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_WILDCARDS = frozenset({"", "0.0.0.0", "::"})  # noqa: S104 - names that are never a Host
_HOST = re.compile(
    r"(?P<name>[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::(?P<port>\d{1,5}))?"
)
_BASE_HEADERS = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))


class Door:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, *, config: Config, identity: Identity) -> None:
        self._app = app
        self._identity = identity
        names = {name.lower() for name in (*config.allowed_hosts, config.host)}
        self._hosts = frozenset(names - _WILDCARDS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_BASE_HEADERS]
            await send(message)

        try:
            await self._admit(scope)
        except KvasirError as error:
            await from_kvasir(error).response()(scope, receive, guarded)
            return
        await self._app(scope, receive, guarded)

    async def _admit(self, scope: Scope) -> None:
        """Put the caller into ``scope``, None where nobody asks who it is, or raise ``ApiError``,
        or ``CatalogUnavailable`` where it cannot be found out."""
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        path: str = scope["path"]
        if over_unix_socket(scope):
            # the socket lies in the owner's folder, mode 0700: only the owner can open it
            scope[CALLER] = self._identity.owner
        else:
            self._check_host(headers)
            self._check_origin(headers, scope)
            if access.is_open(path):
                scope[CALLER] = None
            else:
                scope[CALLER] = await self._identity.identify(_all(headers, b"authorization"))
        access.check(scope["method"], path, scope[CALLER])
        if scope["method"] in _BODY_METHODS:
            _check_content_type(headers, UPLOADS.get(path))

    def _allowed(self, name: str) -> bool:
        name = name.lower().removeprefix("[").removesuffix("]")
        return is_loopback(name) or name in self._hosts

    def _check_host(self, headers: list[tuple[bytes, bytes]]) -> None:
        hosts = _all(headers, b"host")
        if len(hosts) != 1:
            raise ApiError(400, "Send exactly one Host header.", code="invalid_host")
        match = _HOST.fullmatch(hosts[0].decode("latin-1"))
        if match is None:
            raise ApiError(400, "The Host header is not a host name.", code="invalid_host")
        if not self._allowed(match["name"]):
            raise ApiError(
                403,
                f"The host name {match['name']!r} is not one that this server answers to. Use "
                "localhost, or add the name to allowed_hosts in kvasir.toml.",
                code="host_not_allowed",
            )

    def _check_origin(self, headers: list[tuple[bytes, bytes]], scope: Scope) -> None:
        origins = _all(headers, b"origin")
        if not origins:
            return
        host = _all(headers, b"host")[0].decode("latin-1").lower()
        if len(origins) == 1 and self._same_origin(origins[0].decode("latin-1"), host, scope):
            return
        raise ApiError(
            403,
            "This request comes from a web page of another origin, which may not use this server.",
            code="origin_not_allowed",
        )

    def _same_origin(self, origin: str, host: str, scope: Scope) -> bool:
        """Whether a page of ``origin`` was served by this very server."""
        try:
            parts = urlsplit(origin)
            port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        except (ValueError, KeyError):
            return False
        if parts.netloc.lower() == host:
            return True
        server = scope.get("server")
        own_port = server[1] if server else None
        return port == own_port and parts.hostname is not None and is_loopback(parts.hostname)


def over_unix_socket(scope: Scope) -> bool:
    """Whether the connection came through the home's socket: a path and no port, and no peer."""
    server = scope.get("server")
    return (
        scope.get("client") is None
        and server is not None
        and server[1] is None
        and str(server[0]).startswith("/")
    )


def _all(headers: list[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    return [value for key, value in headers if key.lower() == name]


def _check_content_type(headers: list[tuple[bytes, bytes]], upload: str | None) -> None:
    """JSON alone, or what the path takes as an ``upload``: a form or plain text is what a foreign
    web page may send without asking."""
    types = _all(headers, b"content-type")
    kind, _, rest = (types[0] if len(types) == 1 else b"").decode("latin-1").partition(";")
    charset = rest.strip().lower().replace('"', "")
    if upload is not None and kind.strip().lower() != upload:
        raise ApiError(415, f"Send this as {upload}.", param="file", code="unsupported_media_type")
    if upload is None and (
        kind.strip().lower() != "application/json" or charset not in ("", "charset=utf-8")
    ):
        raise ApiError(
            415,
            "Send the body as JSON in UTF-8, with the header 'Content-Type: application/json'.",
            code="unsupported_media_type",
        )
    encodings = _all(headers, b"content-encoding")
    if any(value.strip().lower() != b"identity" for value in encodings):
        raise ApiError(
            415,
            "Compressed bodies are not accepted; send it without Content-Encoding.",
            code="unsupported_content_encoding",
        )
