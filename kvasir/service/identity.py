"""Who is calling. A caller's tenant and namespace come from the connection and its key, never from
a request body.

Without configured keys every caller is the tenant ``local`` and the server must be loopback-only
(``check_bind``). With keys, a key's SHA-256 digest names its tenant; keys themselves are not kept.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kvasir.core.config import Config
from kvasir.core.errors import ConfigError
from kvasir.core.realm import namespace_tag
from kvasir.service.errors import ApiError

LOCAL = "local"
MAX_KEY_BYTES = 512


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated tenant and the salt of everything that is cached for it."""

    tenant: str
    namespace: bytes = field(repr=False)


class Identity:
    """Turns connections and keys into callers."""

    def __init__(self, keys: Mapping[str, str], secret: bytes) -> None:
        self._secret = secret
        self._keys = {digest: self._caller(tenant) for digest, tenant in keys.items()}
        self.owner = self._caller(LOCAL)

    def _caller(self, tenant: str) -> Caller:
        return Caller(tenant, hmac.digest(self._secret, tenant.encode(), "sha256"))

    def tenants(self) -> Mapping[bytes, str]:
        """Every tenant that may call, by the tag under which what it has read is stored."""
        callers = (self.owner, *self._keys.values())
        return {namespace_tag(caller.namespace): caller.tenant for caller in callers}

    def identify(self, authorization: Sequence[bytes]) -> Caller:
        """The caller with these ``Authorization`` headers; raises 401 where keys are configured
        and the headers are not exactly one known key."""
        if not self._keys:
            return self.owner
        key = _bearer(authorization)
        digest = hashlib.sha256(key).hexdigest()
        found: Caller | None = None
        for known, caller in self._keys.items():
            # every digest is compared, in constant time, whether or not one has matched
            if hmac.compare_digest(known, digest):
                found = caller
        if found is None:
            raise _unauthorised("The API key is not known here. Check the key.")
        return found


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


def check_bind(config: Config) -> None:
    """Raise ``ConfigError`` where the server would be open to a network without keys."""
    if not config.keys and not is_loopback(config.host):
        raise ConfigError(
            f"host {config.host!r} is reachable from outside this machine, and no keys are "
            "configured, so anyone could use the server. Bind to 127.0.0.1, or put the SHA-256 "
            "digest of a key and its tenant under [keys] in kvasir.toml."
        )
