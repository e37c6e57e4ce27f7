"""Tenants and keys as commands reach them: through the home's server, or in the database.

Invariant: where no server runs on the home, the database is used by this process only while it owns
the home.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any, Protocol
from urllib.parse import quote

from kvasir.catalog.catalog import Catalog
from kvasir.cli.client import Client
from kvasir.cli.connect import own_unless_served
from kvasir.cli.home import OwnedHome, open_home
from kvasir.cli.own_catalog import open_own_catalog
from kvasir.cli.stored import in_folder
from kvasir.contexts.store import TextStore
from kvasir.core.config import Config
from kvasir.core.realm import namespace_tag
from kvasir.service import accounts
from kvasir.service.accounts import (
    AccountReply,
    AccountsReply,
    KeyReply,
    KeysReply,
    NewKeyReply,
    NewKeyRequest,
)
from kvasir.service.identity import Identity


class Accounts(Protocol):
    """What commands do with tenants and keys. Raises ``KvasirError``."""

    def keys(self) -> KeysReply:
        """All keys."""
        ...

    def create_key(self, wanted: NewKeyRequest) -> NewKeyReply:
        """A new key, with the key itself."""
        ...

    def revoke_key(self, key_id: str) -> KeyReply:
        """The key, which admits nobody any more."""
        ...

    def tenants(self) -> AccountsReply:
        """All tenants."""
        ...

    def create_tenant(self, name: str) -> AccountReply:
        """A new tenant."""
        ...

    def set_disabled(self, name: str, disabled: bool) -> AccountReply:
        """The tenant, whose keys admit nobody any more, or do again."""
        ...

    def remove_tenant(self, name: str) -> None:
        """Remove a tenant with all that is its own."""
        ...


@contextlib.contextmanager
def open_accounts(config: Config) -> Iterator[Accounts]:
    """The tenants and keys of the home that ``config`` names.

    Raises ``HomeBusy`` if another process owns the home and answers nothing for a minute, and
    ``ConfigError`` if the database cannot be used.
    """
    home = open_home(config.home)
    with contextlib.ExitStack() as stack:
        owned = own_unless_served(home, stack)
        if owned is None:
            yield ServedAccounts(stack.enter_context(Client(home.socket_path)))
        else:
            catalog = stack.enter_context(contextlib.closing(open_own_catalog(config, owned)))
            yield AccountsInDatabase(config, owned, catalog)


class ServedAccounts:
    """Tenants and keys behind a running server, where every change holds at once."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def keys(self) -> KeysReply:
        return KeysReply.model_validate(self._ask("GET", "keys"))

    def create_key(self, wanted: NewKeyRequest) -> NewKeyReply:
        return NewKeyReply.model_validate(self._ask("POST", "keys", json=wanted.model_dump()))

    def revoke_key(self, key_id: str) -> KeyReply:
        return KeyReply.model_validate(self._ask("DELETE", "keys", key_id))

    def tenants(self) -> AccountsReply:
        return AccountsReply.model_validate(self._ask("GET", "tenants"))

    def create_tenant(self, name: str) -> AccountReply:
        return AccountReply.model_validate(self._ask("POST", "tenants", json={"name": name}))

    def set_disabled(self, name: str, disabled: bool) -> AccountReply:
        reply = self._ask("PATCH", "tenants", name, json={"disabled": disabled})
        return AccountReply.model_validate(reply)

    def remove_tenant(self, name: str) -> None:
        self._ask("DELETE", "tenants", name)

    def _ask(self, method: str, *parts: str, **options: Any) -> dict[str, Any]:
        path = "/".join(quote(part, safe="") for part in parts)
        return self._client.administer(method, path, **options)


class AccountsInDatabase:
    """Tenants and keys of a home that no server runs on."""

    def __init__(self, config: Config, owned: OwnedHome, catalog: Catalog) -> None:
        self._config = config
        self._owned = owned
        self._catalog = catalog

    def keys(self) -> KeysReply:
        return accounts.keys(self._catalog)

    def create_key(self, wanted: NewKeyRequest) -> NewKeyReply:
        return accounts.create_key(self._catalog, wanted, _now())

    def revoke_key(self, key_id: str) -> KeyReply:
        return accounts.revoke_key(self._catalog, key_id, _now())

    def tenants(self) -> AccountsReply:
        return accounts.tenants(self._catalog)

    def create_tenant(self, name: str) -> AccountReply:
        return accounts.create_tenant(self._catalog, name, _now())

    def set_disabled(self, name: str, disabled: bool) -> AccountReply:
        return accounts.set_disabled(self._catalog, name, _now(), disabled=disabled)

    def remove_tenant(self, name: str) -> None:
        accounts.existing(self._catalog, name)
        self._catalog.tenants.remove(name)  # the rows first: what nobody has any more is removed
        store = TextStore(self._owned.home.path)
        store.collect(self._catalog.files.ids(), self._catalog.contexts.ids())
        tag = namespace_tag(Identity({}, self._owned.secret()).namespace_of(name))
        with in_folder(self._config, self._owned) as stored:
            stored.clear(None, tag.hex())


def _now() -> int:
    return int(time.time())
