"""Files and contexts against a model in plain dictionaries, in both databases; whose they are."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any, ClassVar, get_args

import hypothesis.strategies as st
import pytest
from catalog_samples import context_row, file_row, section
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from kvasir.catalog.catalog import Catalog, open_catalog
from kvasir.catalog.values import ContextRow, ContextStatus, FileRow, Order
from kvasir.core.errors import NameTaken, RequestError

TENANTS = ("ann", "bob")
EXAMPLES = int(os.environ.get("KVASIR_TEST_MACHINE_EXAMPLES", "40"))

times = st.integers(0, 5)  # few, so that many rows are of the same age
tenants = st.sampled_from(TENANTS)
orders: st.SearchStrategy[Order] = st.sampled_from(["asc", "desc"])
limits = st.integers(1, 4)
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=8)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)
unread = st.lists(st.dictionaries(st.text(max_size=3), json_values, max_size=2), max_size=2).map(
    tuple
)
statuses = st.sampled_from(get_args(ContextStatus))
names = st.none() | st.sampled_from(["n1", "n2", "ü"])
file_changes = st.fixed_dictionaries(
    {},
    optional={
        "status": st.sampled_from(["uploaded", "processed", "error"]),
        "status_details": st.none() | texts,
        "n_chars": st.integers(0, 2**60),
        "unread": unread,
        "expires_at": st.none() | times,
    },
)
context_changes = st.fixed_dictionaries(
    {},
    optional={
        "status": statuses,
        "name": names,
        "pinned": st.booleans(),
        "keep": st.sampled_from(["kv", "text"]),
        "metadata": st.dictionaries(texts, texts, max_size=2),
        "definition": st.dictionaries(st.text(max_size=3), json_values, max_size=2),
        "expires_at": st.none() | times,
        "read_s": st.floats(0, 1e9),
        "error": st.none() | texts,
    },
)


class CatalogMachine(RuleBasedStateMachine):
    """What the catalog says is what a dictionary of rows would say."""

    catalog: ClassVar[Catalog]
    ids = Bundle("ids")  # of files and contexts, removed ones too, whosesoever they are

    @initialize()
    def empty(self) -> None:
        for tenant in TENANTS:
            self.catalog.tenants.ensure(tenant, 0)
            self.catalog.tenants.remove(tenant)
        self.files: dict[str, FileRow] = {}
        self.contexts: dict[str, ContextRow] = {}
        self.made = 0

    def fresh(self, prefix: str, tie: int) -> str:
        self.made += 1
        return f"{prefix}{tie}-{self.made}"  # ids are not in the order in which they were made

    @rule(target=ids, tenant=tenants, now=times, tie=st.integers(0, 9), name=texts, left=unread)
    def add_file(self, tenant: str, now: int, tie: int, name: str, left: Any) -> str:
        id_ = self.fresh("file-", tie)
        purpose = ("user_data", "batch")[tie % 2]
        row = file_row(id_, tenant, created_at=now, filename=name, unread=left, purpose=purpose)
        self.catalog.files.add(row)
        self.files[id_] = row
        return id_

    @rule(
        target=ids,
        tenant=tenants,
        now=times,
        tie=st.integers(0, 9),
        name=names,
        status=statuses,
        held=st.lists(ids, max_size=2),
        fingerprint=st.sampled_from("fg"),
    )
    def add_context(
        self, tenant: str, now: int, tie: int, name: str | None, held: list[str], **fields: Any
    ) -> Any:
        id_ = self.fresh("ctx_", tie)
        row = context_row(
            id_,
            tenant,
            created_at=now,
            name=name,
            file_ids=tuple(held),
            n_sections=2,
            n_bytes=10**tie,
            **fields,
        )
        if self.named(tenant, name) is not None:
            with pytest.raises(NameTaken):
                self.catalog.contexts.add(row, [section(0)])
            return multiple()
        self.catalog.contexts.add(row, [section(0), section(1)])
        self.contexts[id_] = row
        return id_

    def named(self, tenant: str, name: str | None) -> ContextRow | None:
        for row in self.contexts.values():
            if name is not None and (row.tenant, row.name) == (tenant, name):
                return row
        return None

    @rule(tenant=tenants, id_=ids, changes=file_changes)
    def change_file(self, tenant: str, id_: str, changes: dict[str, Any]) -> None:
        row = self.files.get(id_)
        if row is not None and row.tenant == tenant:
            self.files[id_] = replace(row, **changes)
            assert self.catalog.files.update(tenant, id_, **changes) == self.files[id_]
        else:
            assert self.catalog.files.update(tenant, id_, **changes) is None

    @rule(tenant=tenants, id_=ids, changes=context_changes)
    def change_context(self, tenant: str, id_: str, changes: dict[str, Any]) -> None:
        row = self.contexts.get(id_)
        if row is None or row.tenant != tenant:
            assert self.catalog.contexts.update(tenant, id_, **changes) is None
            return
        if self.named(tenant, changes.get("name")) not in (None, row):
            with pytest.raises(NameTaken):
                self.catalog.contexts.update(tenant, id_, **changes)
            return
        self.contexts[id_] = replace(row, **changes)
        assert self.catalog.contexts.update(tenant, id_, **changes) == self.contexts[id_]

    @rule(tenant=tenants, id_=ids)
    def remove(self, tenant: str, id_: str) -> None:
        for held, table in (
            (self.files, self.catalog.files),
            (self.contexts, self.catalog.contexts),
        ):
            row: Any = held.get(id_)
            here = row is not None and row.tenant == tenant
            assert table.remove(tenant, id_) == here  # type: ignore[attr-defined]
            if here:
                del held[id_]  # type: ignore[attr-defined]
        n_sections = 2 if id_ in self.contexts else 0
        assert len(self.catalog.contexts.sections(id_)) == n_sections

    @rule(tenant=tenants, id_=ids)
    def look(self, tenant: str, id_: str) -> None:
        for held, table in (
            (self.files, self.catalog.files),
            (self.contexts, self.catalog.contexts),
        ):
            row: Any = held.get(id_)
            expected = row if row is not None and row.tenant == tenant else None
            assert table.get(tenant, id_) == expected  # type: ignore[attr-defined]
        holding = [r for r in self.contexts.values() if r.tenant == tenant and id_ in r.file_ids]
        assert self.catalog.contexts.of_file(tenant, id_) == ordered(holding)

    @rule(tenant=tenants, order=orders, limit=limits, status=st.none() | statuses)
    def walk(self, tenant: str, order: Order, limit: int, status: Any) -> None:
        """Page by page, all of a tenant's rows come once, in order."""

        def pages(table: Any, **only: Any) -> tuple[Any, ...]:
            walked: list[Any] = []
            while part := table.list(
                tenant, walked[-1].id if walked else None, limit, order, **only
            ):
                assert len(part) <= limit
                walked += part
            return tuple(walked)

        wanted = [r for r in self.contexts.values() if r.tenant == tenant]
        kept = [r for r in wanted if status in (None, r.status)]
        assert pages(self.catalog.contexts, status=status) == ordered(kept, order)
        files = [f for f in self.files.values() if f.tenant == tenant]
        assert pages(self.catalog.files) == ordered(files, order)
        batch = [f for f in files if f.purpose == "batch"]
        assert pages(self.catalog.files, purpose="batch") == ordered(batch, order)

    @rule(tenant=tenants, fingerprint=st.sampled_from("fg"), name=names)
    def find(self, tenant: str, fingerprint: str, name: str | None) -> None:
        alike = [
            row
            for row in self.contexts.values()
            if (row.tenant, row.fingerprint) == (tenant, fingerprint)
        ]
        newest = ordered(alike)[-1] if alike else None
        assert self.catalog.contexts.by_fingerprint(tenant, fingerprint) == newest
        if name is not None:
            assert self.catalog.contexts.by_name(tenant, name) == self.named(tenant, name)

    @rule(now=times)
    def maintain(self, now: int) -> None:
        def over(row: Any) -> bool:
            return row.expires_at is not None and row.expires_at <= now

        rows = self.contexts.values()
        waiting = [row for row in rows if row.status in ("queued", "in_progress")]
        live = [row for row in rows if row.status in ("queued", "in_progress", "completed")]
        held = [row for row in rows if row.keep == "kv" and row.status != "expired"]
        expired = [row for row in rows if over(row) and not row.pinned]
        assert self.catalog.contexts.unfinished() == ordered(waiting)
        assert self.catalog.contexts.live() == ordered(live)
        assert self.catalog.contexts.held() == ordered(held)
        assert self.catalog.contexts.promised_bytes() == sum(row.n_bytes for row in held)
        for row in held[:1]:
            others = sum(each.n_bytes for each in held if each.id != row.id)
            assert self.catalog.contexts.promised_bytes(row.id) == others
        assert self.catalog.contexts.expired(now) == ordered(expired)
        gone = [row for row in self.files.values() if over(row)]
        assert sorted(self.catalog.files.expired(now), key=by_age) == list(ordered(gone))

    @invariant()
    def sums(self) -> None:
        assert self.catalog.files.ids() == set(self.files)
        assert self.catalog.contexts.ids() == set(self.contexts)
        for tenant in TENANTS:
            n_bytes = sum(f.n_bytes for f in self.files.values() if f.tenant == tenant)
            assert self.catalog.files.used_bytes(tenant) == n_bytes


def by_age(row: Any) -> tuple[int, str]:
    return row.created_at, row.id


def ordered(rows: Any, order: Order = "asc") -> tuple[Any, ...]:
    return tuple(sorted(rows, key=by_age, reverse=order == "desc"))


def test_the_catalog_is_a_dictionary_of_rows(url: str) -> None:
    catalog_ = open_catalog(url)

    class OnIt(CatalogMachine):
        catalog = catalog_

    try:
        run_state_machine_as_test(
            OnIt,
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=30,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        catalog_.close()


def test_a_page_cannot_go_on_after_what_is_not_the_tenants(catalog: Catalog) -> None:
    catalog.files.add(file_row("file-1", "ann"))
    catalog.contexts.add(context_row("ctx_1", "ann"))
    for after in ("file-1", "ctx_1", "file-2", "", "\x00", "\ud800"):
        for table in (catalog.files, catalog.contexts):
            with pytest.raises(RequestError, match="to go on after") as caught:
                table.list("bob", after)
            assert caught.value.param == "after"


def test_an_id_of_any_characters_is_at_most_not_found(catalog: Catalog) -> None:
    for id_ in ("\x00", "\ud800", "'; DROP TABLE files; --", "%", "x" * 100_000):
        assert catalog.files.get("ann", id_) is None
        assert catalog.contexts.get("ann", id_) is None
        assert catalog.contexts.by_name("ann", id_) is None
        assert catalog.contexts.of_file("ann", id_) == ()
        assert not catalog.contexts.remove("ann", id_)


def test_a_made_up_id_finds_no_file_whose_id_is_like_it(catalog: Catalog) -> None:
    catalog.contexts.add(context_row("ctx_1", file_ids=("file-a_b",)))
    assert [c.id for c in catalog.contexts.of_file("ann", "file-a_b")] == ["ctx_1"]
    for like in ("file-axb", "FILE-A_B", "file-a%", "file-a", 'file-a_b"]'):
        assert catalog.contexts.of_file("ann", like) == ()


def test_what_no_database_can_store_is_marked(catalog: Catalog) -> None:
    catalog.files.add(file_row(filename="a\x00b\ud800c", unread=({"why": "\x00\ud800"},)))
    row = catalog.files.get("ann", "file-1")
    assert row is not None
    assert row.filename == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}c"
    assert row.unread == ({"why": "\x00\ud800"},)  # JSON holds them


@pytest.mark.parametrize("field", ["id", "tenant", "created_at", "digest", "nonsense"])
def test_what_says_whose_a_row_is_never_changes(catalog: Catalog, field: str) -> None:
    catalog.files.add(file_row())
    catalog.contexts.add(context_row())
    with pytest.raises(TypeError, match=field):
        catalog.files.update("ann", "file-1", **{field: "bob"})
    with pytest.raises(TypeError, match=field):
        catalog.contexts.update("ann", "ctx_1", **{field: "bob"})


def test_sections_keep_their_tokens_and_what_was_read(catalog: Catalog) -> None:
    catalog.contexts.add(context_row(), [section(n) for n in range(3)])
    assert [s.title_path for s in catalog.contexts.sections("ctx_1")][1] == ("Part", "Chapter 1")
    assert catalog.contexts.section_tokens("ctx_1", 1) == {1: bytes([1, 0, 255]) * 5}
    assert list(catalog.contexts.section_tokens("ctx_1")) == [0, 1, 2]
    assert catalog.contexts.mark_read("ctx_1", 2, computed_tokens=5, read_s=0.5)
    assert catalog.contexts.mark_read("ctx_1", 0, reused_tokens=5, read_s=0.25)
    assert catalog.contexts.mark_read("ctx_1", 0)  # a crash between doing and noting
    assert not catalog.contexts.mark_read("ctx_1", 3)
    assert catalog.contexts.set_summary("ctx_1", 1, "of ravens")
    assert not catalog.contexts.set_summary("ctx_2", 1, "of ravens")
    row = catalog.contexts.get("ann", "ctx_1")
    assert row is not None
    assert (row.read_tokens, row.computed_tokens, row.reused_tokens, row.read_s) == (10, 5, 5, 0.75)
    told = catalog.contexts.sections("ctx_1")
    assert [s.read for s in told] == [True, False, True]
    assert [s.summary for s in told] == [None, "of ravens", None]
    catalog.contexts.forget_read("ctx_1")
    row = catalog.contexts.get("ann", "ctx_1")
    assert row is not None
    assert (row.read_tokens, row.computed_tokens) == (0, 5)
    assert not any(s.read for s in catalog.contexts.sections("ctx_1"))


def test_sections_are_replaced_with_what_is_told_of_them(catalog: Catalog) -> None:
    catalog.contexts.add(context_row(), [section(0)])
    assert catalog.contexts.set_sections("ctx_1", [section(4), section(5)], n_sections=2)
    assert [s.index for s in catalog.contexts.sections("ctx_1")] == [4, 5]
    row = catalog.contexts.get("ann", "ctx_1")
    assert row is not None
    assert row.n_sections == 2
    assert not catalog.contexts.set_sections("ctx_2", [section(0)])


def test_a_use_is_counted_and_puts_off_the_end(catalog: Catalog) -> None:
    by_use = {"expires_anchor": "last_active_at", "expires_after_s": 10, "expires_at": 11}
    catalog.contexts.add(context_row("ctx_1", **by_use))
    catalog.contexts.add(context_row("ctx_2", expires_anchor="created_at", expires_at=11))
    catalog.contexts.add(context_row("ctx_3"))
    told = [catalog.contexts.touch("ann", f"ctx_{n}", 5) for n in (1, 2, 3)]
    assert [(r.requests, r.last_active_at, r.expires_at) for r in told if r] == [
        (1, 5, 15),
        (1, 5, 11),
        (1, 5, None),
    ]
    assert catalog.contexts.touch("bob", "ctx_1", 6) is None
