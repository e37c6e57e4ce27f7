"""Tenants and keys: who is admitted, until when, and what is never kept."""

from __future__ import annotations

import base64
import contextlib
from pathlib import Path
from typing import get_args

import pytest
from catalog_samples import context_row, file_row, section

from kvasir.catalog.catalog import Catalog, open_catalog
from kvasir.catalog.values import ROLES, Role
from kvasir.core.errors import CatalogUnavailable, NameTaken, RequestError, UnknownTenant


def test_a_key_admits_its_tenant_until_it_is_revoked(catalog: Catalog) -> None:
    catalog.tenants.add("ann", 100)
    key, text = catalog.keys.create("ann", "admin", "laptop", None, 101)
    assert text.startswith("kv_")
    assert len(base64.urlsafe_b64decode(text[3:] + "=")) == 32
    assert key.id.startswith("key_")
    assert key.hint == text[-4:]
    found = catalog.keys.find(text, 102)
    assert found is not None
    assert (found.tenant, found.role, found.label) == ("ann", "admin", "laptop")
    assert catalog.keys.count_active(102) == 1
    assert catalog.keys.revoke(key.id, 103)
    assert not catalog.keys.revoke(key.id, 104), "it was revoked already"
    assert catalog.keys.find(text, 104) is None
    assert catalog.keys.count_active(104) == 0
    assert not catalog.keys.any_unrevoked()
    assert [k.revoked_at for k in catalog.keys.list()] == [103]


@pytest.mark.parametrize("change", [0, 1, 20, -1])
def test_a_key_that_differs_anywhere_is_not_found(catalog: Catalog, change: int) -> None:
    catalog.tenants.add("ann", 1)
    _, text = catalog.keys.create("ann", "tenant", "", None, 1)
    at = change % len(text)
    other = text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :]
    for wrong in (other, text + "x", text[:-1], text.upper(), f" {text}", "", "\x00", "\udcff"):
        assert catalog.keys.find(wrong, 2) is None
    assert catalog.keys.find(text, 2) is not None


def test_time_ends_a_key_and_does_not_open_the_server(catalog: Catalog) -> None:
    catalog.tenants.add("ann", 1)
    _, text = catalog.keys.create("ann", "tenant", "", 10, 1)
    assert catalog.keys.find(text, 9) is not None
    assert catalog.keys.find(text, 10) is None
    assert catalog.keys.count_active(10) == 0
    assert catalog.keys.any_unrevoked(), "an expired key still says that keys are wanted"


def test_a_disabled_tenant_is_not_admitted_and_an_enabled_one_is_again(catalog: Catalog) -> None:
    catalog.tenants.add("ann", 1)
    _, text = catalog.keys.create("ann", "tenant", "", None, 1)
    assert catalog.tenants.disable("ann", 5)
    assert catalog.keys.find(text, 6) is None
    assert catalog.keys.count_active(6) == 0
    assert catalog.tenants.enable("ann")
    assert catalog.keys.find(text, 7) is not None
    assert not catalog.tenants.disable("bob", 5)
    assert not catalog.tenants.enable("bob")


def test_the_last_use_is_written_once_a_minute(catalog: Catalog) -> None:
    catalog.tenants.add("ann", 1)
    key, text = catalog.keys.create("ann", "tenant", "", None, 1)
    seen = []
    for now in (100, 130, 159, 160, 400):
        catalog.keys.find(text, now)
        found = catalog.keys.get(key.id)
        assert found is not None
        seen.append(found.last_used_at)
    assert seen == [100, 100, 100, 160, 400]


def test_the_database_does_not_hold_a_key(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    with contextlib.closing(open_catalog(f"sqlite:///{path}")) as catalog:
        catalog.tenants.add("ann", 1)
        _, text = catalog.keys.create("ann", "tenant", "", None, 1)
        held = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"ann" in held
    assert text.encode() not in held
    assert base64.urlsafe_b64decode(text[3:] + "=") not in held


def test_who_is_admitted_does_not_depend_on_noting_the_use(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog.tenants.add("ann", 1)
    _, text = catalog.keys.create("ann", "tenant", "", None, 1)

    def full() -> contextlib.AbstractContextManager[None]:
        raise CatalogUnavailable("the disk is full")

    monkeypatch.setattr(catalog._database, "write", full)
    assert catalog.keys.find(text, 2) is not None


def test_what_is_refused_when_a_key_is_made(catalog: Catalog) -> None:
    catalog.tenants.add("ann", 1)
    with pytest.raises(UnknownTenant):
        catalog.keys.create("bob", "tenant", "", None, 1)
    with pytest.raises(RequestError, match="role"):
        catalog.keys.create("ann", "root", "", None, 1)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="expired already"):
        catalog.keys.create("ann", "tenant", "", 1, 1)
    with pytest.raises(RequestError, match="label"):
        catalog.keys.create("ann", "tenant", "x" * 201, None, 1)
    assert catalog.keys.list() == ()
    assert set(ROLES) == set(get_args(Role))


def test_keys_are_listed_by_tenant(catalog: Catalog) -> None:
    for name in ("ann", "bob"):
        catalog.tenants.add(name, 1)
        catalog.keys.create(name, "tenant", f"of {name}", None, 1)
    assert [key.label for key in catalog.keys.list("bob")] == ["of bob"]
    assert len(catalog.keys.list()) == 2


@pytest.mark.parametrize(
    "name", ["", "-a", "_a", "A", "a b", "a" * 64, "ä", "a\n", "a\x00", "../a"]
)
def test_names_that_do_not_do(catalog: Catalog, name: str) -> None:
    for add in (catalog.tenants.add, catalog.tenants.ensure):
        with pytest.raises(RequestError, match="does not do"):
            add(name, 1)
    assert catalog.tenants.get(name) is None


def test_a_name_is_taken_once(catalog: Catalog) -> None:
    catalog.tenants.add("a" * 63, 1)
    with pytest.raises(NameTaken):
        catalog.tenants.add("a" * 63, 2)
    catalog.tenants.ensure("a" * 63, 3)
    assert [t.created_at for t in catalog.tenants.list()] == [1]


def test_with_a_tenant_goes_all_that_is_listed_of_it(catalog: Catalog) -> None:
    texts = {}
    for name in ("ann", "bob"):
        catalog.tenants.add(name, 1)
        _, texts[name] = catalog.keys.create(name, "tenant", "", None, 1)
        catalog.files.add(file_row(f"file-{name}", name))
        catalog.contexts.add(context_row(f"ctx_{name}", name), [section(0)])
        catalog.events.append(f"ctx_{name}", "x", {}, 1)
        catalog.idempotency.claim(name, "k", "d", 1)
    assert catalog.tenants.remove("ann")
    assert not catalog.tenants.remove("ann")
    assert catalog.keys.find(texts["ann"], 2) is None
    assert catalog.files.ids() == {"file-bob"}
    assert catalog.contexts.ids() == {"ctx_bob"}
    assert catalog.contexts.sections("ctx_ann") == ()
    assert catalog.events.after("ctx_ann", 0, 9) == ()
    assert catalog.idempotency.claim("ann", "k", "other", 2).state == "new"
    assert catalog.keys.find(texts["bob"], 2) is not None
    assert len(catalog.contexts.sections("ctx_bob")) == 1
