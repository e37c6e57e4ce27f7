"""Tenants and keys as they are told and changed: by the admin's routes, and by commands where no
server runs.

Invariant: a key's text is in the answer to its creation and in no other.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kvasir.catalog.catalog import Catalog
from kvasir.catalog.values import Key, Role, Tenant
from kvasir.service.errors import ApiError, bad_request
from kvasir.service.fields import Whole
from kvasir.service.identity import LOCAL
from kvasir.service.replies import Reply
from kvasir.service.schemas import Body

TenantName = Annotated[str, Field(max_length=63, pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]


class NewKeyRequest(Body):
    """The body of `POST /v1/admin/keys`."""

    tenant: TenantName = Field(default=LOCAL, description="Whose key it is.")
    role: Literal["tenant", "admin"] = Field(
        default="tenant", description="An admin's key also manages tenants and keys."
    )
    label: Annotated[str, Field(max_length=200)] = Field(default="", description="For people.")
    expires_at: Annotated[Whole, Field(ge=0, le=2**40)] | None = Field(
        default=None, description="Unix time from which it admits nobody; never where not given."
    )


class NewTenantRequest(Body):
    """The body of `POST /v1/admin/tenants`."""

    name: TenantName


class TenantChangeRequest(Body):
    """The body of `PATCH /v1/admin/tenants/{name}`."""

    disabled: bool = Field(description="Whether its keys admit nobody.")


class KeyReply(Reply):
    """A key, without the key."""

    id: str
    object: Literal["api_key"]
    tenant: str
    role: Role
    label: str
    hint: str = Field(description="The last four characters of the key.")
    created_at: int
    expires_at: int | None
    revoked_at: int | None
    last_used_at: int | None = Field(description="To the minute.")


class NewKeyReply(KeyReply):
    """A key that was just made."""

    key: str = Field(description="The key itself; it cannot be shown again.")


class KeysReply(Reply):
    """Keys, the oldest first."""

    object: Literal["list"]
    data: list[KeyReply]


class AccountReply(Reply):
    """A tenant."""

    name: str
    object: Literal["tenant"]
    created_at: int
    disabled_at: int | None = Field(description="Since when its keys admit nobody.")


class AccountsReply(Reply):
    """Tenants by name."""

    object: Literal["list"]
    data: list[AccountReply]


class RemovedReply(Reply):
    """A tenant that is gone with all that was its own."""

    name: str
    object: Literal["tenant"]
    deleted: Literal[True]


def keys(catalog: Catalog, tenant: str | None = None) -> KeysReply:
    """All keys, or those of a tenant."""
    return KeysReply(object="list", data=[_key(key) for key in catalog.keys.list(tenant)])


def create_key(catalog: Catalog, wanted: NewKeyRequest, now: int) -> NewKeyReply:
    """A new key. Raises ``ApiError`` for a tenant that there is not or a time that has been."""
    if wanted.tenant == LOCAL:  # the owner, whom nobody need have created
        catalog.tenants.ensure(LOCAL, now)
    if catalog.tenants.get(wanted.tenant) is None:
        raise bad_request(
            f"There is no tenant {wanted.tenant!r}. Create it first.", "tenant", "tenant_not_found"
        )
    key, text = catalog.keys.create(
        wanted.tenant, wanted.role, wanted.label, wanted.expires_at, now
    )
    return NewKeyReply(**_key(key).model_dump(), key=text)


def revoke_key(catalog: Catalog, key_id: str, now: int) -> KeyReply:
    """The key, which admits nobody from now on. Raises a 404 where there is none."""
    catalog.keys.revoke(key_id, now)
    key = catalog.keys.get(key_id)
    if key is None:
        raise ApiError(404, f"There is no key {key_id[:100]!r}.", code="key_not_found")
    return _key(key)


def tenants(catalog: Catalog) -> AccountsReply:
    """All tenants."""
    return AccountsReply(object="list", data=[_account(each) for each in catalog.tenants.list()])


def create_tenant(catalog: Catalog, name: str, now: int) -> AccountReply:
    """A new tenant. Raises ``RequestError`` or ``NameTaken``."""
    return _account(catalog.tenants.add(name, now))


def set_disabled(catalog: Catalog, name: str, now: int, *, disabled: bool) -> AccountReply:
    """The tenant, whose keys admit nobody from now on, or do again. Raises a 404."""
    tenant = existing(catalog, name)
    if disabled and tenant.disabled_at is None:
        catalog.tenants.disable(name, now)
    elif not disabled:
        catalog.tenants.enable(name)
    return _account(existing(catalog, name))


def existing(catalog: Catalog, name: str) -> Tenant:
    """The tenant of that name. Raises a 404."""
    tenant = catalog.tenants.get(name)
    if tenant is None:
        raise ApiError(404, f"There is no tenant {name[:100]!r}.", code="tenant_not_found")
    return tenant


def _key(key: Key) -> KeyReply:
    return KeyReply(
        id=key.id,
        object="api_key",
        tenant=key.tenant,
        role=key.role,
        label=key.label,
        hint=key.hint,
        created_at=key.created_at,
        expires_at=key.expires_at,
        revoked_at=key.revoked_at,
        last_used_at=key.last_used_at,
    )


def _account(tenant: Tenant) -> AccountReply:
    return AccountReply(
        name=tenant.name,
        object="tenant",
        created_at=tenant.created_at,
        disabled_at=tenant.disabled_at,
    )
