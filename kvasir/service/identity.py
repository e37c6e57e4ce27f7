"""Who is calling. A caller's tenant and namespace come from the connection and its key, never from
a request body.

Keys are those of the catalog, and the digests of the setting ``keys``. Where there are none, every
caller is the tenant ``local`` and the server must be loopback-only (``check_bind``); from the first
key on one is needed. Invariant: where it cannot be known whom a key admits, it admits nobody.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fastapi.concurrency import run_in_threadpool

from kvasir.catalog.catalog import Catalog
from kvasir.catalog.values import Role
from kvasir.core.clock import Clock, SystemClock
from kvasir.core.config import Config
from kvasir.core.errors import ConfigError
from kvasir.core.realm import namespace_tag
from kvasir.service.errors import ApiError

LOCAL = "local"
MAX_KEY_BYTES = 512
REMEMBERED_S = 2.0  # how long a key that was found is taken without asking the catalog again
_KEY = re.compile(rb"kv_[A-Za-z0-9_-]{43}")  # what the catalog makes; nothing else is looked up
_CONFIGURED = "configured"  # the id of every key that the setting ``keys`` has


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated tenant and the salt of everything that is cached for it."""

    tenant: str
    namespace: bytes = field(repr=False)
    role: Role = "tenant"
    key_id: str | None = None  # of the key that was sent, None where none was needed
    owner: bool = False  # who came through the socket in the home


class Identity:
    """Turns connections and keys into callers."""

    def __init__(
        self,
        keys: Mapping[str, str],
        secret: bytes,
        catalog: Catalog | None = None,
        *,
        always: bool = False,
        clock: Clock | None = None,
    ) -> None:
        """``keys`` are tenants by the SHA-256 digests of their keys; ``always`` says that a key is
        needed even where there are none."""
        self._secret = secret
        self._catalog = catalog
        self._always = always or bool(keys)
        self._clock = clock or SystemClock()
        self._keys = {
            digest: self._caller(tenant, key_id=_CONFIGURED) for digest, tenant in keys.items()
        }
        self.owner = self._caller(LOCAL, role="admin", owner=True)
        self._anybody = self._caller(LOCAL)
        self.forget()

    def _caller(
        self, tenant: str, role: Role = "tenant", key_id: str | None = None, *, owner: bool = False
    ) -> Caller:
        return Caller(tenant, self.namespace_of(tenant), role, key_id, owner)

    def namespace_of(self, tenant: str) -> bytes:
        """The salt of everything that is cached for ``tenant``."""
        return hmac.digest(self._secret, tenant.encode(), "sha256")

    def tenants(self) -> Mapping[bytes, str]:
        """Every tenant that may call, by the tag under which what it has read is stored. Asks the
        catalog."""
        names = {self.owner.tenant, *(caller.tenant for caller in self._keys.values())}
        if self._catalog is not None:
            names |= {tenant.name for tenant in self._catalog.tenants.list()}
        return {namespace_tag(self.namespace_of(name)): name for name in sorted(names)}

    def forget(self) -> None:
        """Ask the catalog again about everybody: keys or tenants were changed."""
        self._wanted: tuple[bool, float] = (True, float("-inf"))
        self._found: dict[str, tuple[Caller, float]] = {}  # by the digest of the key

    async def identify(self, authorization: Sequence[bytes]) -> Caller:
        """The caller with these ``Authorization`` headers; raises 401 where keys are needed and the
        headers are not exactly one that admits somebody."""
        if not await self._needed():
            return self._anybody
        key = _bearer(authorization)
        digest = hashlib.sha256(key).hexdigest()
        found = self._configured(digest) or await self._in_catalog(key, digest)
        if found is None:
            raise _unauthorised("The API key is not known here. Check the key.")
        return found

    def _configured(self, digest: str) -> Caller | None:
        found: Caller | None = None
        for known, caller in self._keys.items():
            # every digest is compared, in constant time, whether or not one has matched
            if hmac.compare_digest(known, digest):
                found = caller
        return found

    async def _needed(self) -> bool:
        """Whether a key is needed at the moment."""
        if self._always or self._catalog is None:
            return self._always
        wanted, until_s = self._wanted
        if self._clock.now_s() >= until_s:
            asked_s = self._clock.now_s()
            wanted = await run_in_threadpool(self._catalog.keys.any_unrevoked)
            self._wanted = (wanted, asked_s + REMEMBERED_S)
        return wanted

    async def _in_catalog(self, key: bytes, digest: str) -> Caller | None:
        if self._catalog is None or _KEY.fullmatch(key) is None:
            return None
        caller, until_s = self._found.get(digest, (None, 0.0))
        if caller is not None and self._clock.now_s() < until_s:
            return caller
        asked_s = self._clock.now_s()
        remembered = self._found  # another one, if ``forget`` is called meanwhile
        found = await run_in_threadpool(self._catalog.keys.find, key.decode(), int(time.time()))
        if found is None:
            remembered.pop(digest, None)
            return None
        caller = self._caller(found.tenant, found.role, found.id)
        until_s = asked_s + REMEMBERED_S
        if found.expires_at is not None:  # nor longer than the key admits anybody
            until_s = min(until_s, asked_s + max(0.0, found.expires_at - time.time()))
        remembered[digest] = (caller, until_s)
        return caller


def _bearer(authorization: Sequence[bytes]) -> bytes:
    if not authorization:
        raise _unauthorised(
            "This server needs an API key. Send it as 'Authorization: Bearer YOUR_KEY'."
        )
    scheme, _, key = authorization[0].partition(b" ")
    key = key.strip()
    if len(authorization) > 1 or scheme.lower() != b"bearer" or not 0 < len(key) <= MAX_KEY_BYTES:
        raise _unauthorised("Send exactly one header 'Authorization: Bearer YOUR_KEY'.")
    return key


def _unauthorised(message: str) -> ApiError:
    return ApiError(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})


def is_loopback(host: str) -> bool:
    """Whether ``host`` (a name or an address, without a port) is this machine alone."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_bind(config: Config, active_keys: int = 0) -> None:
    """Raise ``ConfigError`` where the server would be open to a network without keys;
    ``active_keys`` is how many of the catalog's admit somebody."""
    if not (config.keys or active_keys or is_loopback(config.host)):
        raise ConfigError(
            f"host {config.host!r} is reachable from outside this machine, and there are no keys, "
            "so anyone could use the server\n"
            "bind to 127.0.0.1, or make a key first: kvasir keys create --label NAME\n"
            "(digests of keys under [keys] in kvasir.toml do as well)"
        )
