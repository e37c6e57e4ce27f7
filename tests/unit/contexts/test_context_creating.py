"""Making contexts: the same content is the same context, whoever asks and how often at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from context_library import Made, opened, wanted

from kvasir.contexts import creating
from kvasir.contexts.creating import Expiry
from kvasir.contexts.store import StoreBroken
from kvasir.core.errors import CatalogUnavailable, NameTaken, RequestError

TEXT = "The raven came in May. " * 20


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Made]:
    with opened(tmp_path) as one:
        yield one


def lying(made: Made) -> set[str]:
    return {path.name.partition(".")[0] for path in made.library.store.contexts.iterdir()}


def test_a_row_says_what_was_wanted(made: Made) -> None:
    row, unread = creating.create(
        made.library,
        wanted(
            TEXT,
            "Another.",
            name="raven",
            instructions="Be brief.",
            metadata={"k": "v"},
            expiry=Expiry(anchor="created_at", after_s=100),
            file_ids=("file-1",),
        ),
    )
    now = int(made.clock.now_s)
    assert unread
    assert (row.status, row.name, row.sectioned, row.n_sections) == ("queued", "raven", False, 1)
    assert row.n_chars == len(TEXT) + len("Another.")
    assert row.tokens == len(made.parts(row)[0])
    assert (row.created_at, row.expires_at) == (now, now + 100)
    assert (dict(row.metadata), row.file_ids) == ({"k": "v"}, ("file-1",))
    assert (
        made.library.definition(row)
        == wanted(TEXT, "Another.", instructions="Be brief.").definition
    )


def test_sixty_four_at_once_make_one(made: Made) -> None:
    start = threading.Barrier(64)

    def create(_: int) -> tuple[str, bool]:
        start.wait()
        row, unread = creating.create(made.library, wanted(TEXT))
        return row.id, unread

    with ThreadPoolExecutor(64) as pool:
        found = list(pool.map(create, range(64)))
    assert len({id_ for id_, _ in found}) == 1
    assert lying(made) == made.library.catalog.contexts.ids()


def test_of_another_tenant_it_is_another_context(made: Made) -> None:
    ours = made.create(TEXT)
    theirs = made.create(TEXT, tenant="b")
    assert ours.id != theirs.id
    assert theirs.computed_tokens == theirs.tokens, "one tenant's KV was another's"


def test_creating_it_again_renews_it(made: Made) -> None:
    first = made.create(TEXT, expiry=Expiry(after_s=100))
    made.clock.now_s += 90
    again, unread = creating.create(
        made.library, wanted(TEXT, name="n", expiry=Expiry(after_s=1000))
    )
    assert (again.id, again.name, unread) == (first.id, "n", False)
    assert again.expires_at == int(made.clock.now_s) + 1000
    pinned, _ = creating.create(made.library, wanted(TEXT, pinned=True))
    assert pinned.expires_at is None
    kept, _ = creating.create(made.library, wanted(TEXT))
    assert kept.pinned, "what was pinned is unpinned by its owner alone"


def test_names_are_unique_and_a_refusal_leaves_nothing(made: Made) -> None:
    made.create(TEXT, name="taken")
    before = lying(made)
    with pytest.raises(NameTaken, match="another context named 'taken'"):
        creating.create(made.library, wanted("Other. " * 30, name="taken"))
    assert lying(made) == before
    made.create("Other. " * 30, name="taken", tenant="b")


def test_a_fault_of_the_catalog_leaves_nothing_or_all(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody knows whether the row is there, its text stays: the next start knows."""
    contexts = type(made.library.catalog.contexts)

    def taken(*_: object) -> None:
        raise NameTaken("somebody was faster")

    monkeypatch.setattr(contexts, "add", taken)
    with pytest.raises(NameTaken):
        creating.create(made.library, wanted(TEXT))
    assert not lying(made)

    def away(*_: object) -> None:
        raise CatalogUnavailable("the database is away")

    monkeypatch.setattr(contexts, "add", away)
    with pytest.raises(CatalogUnavailable):
        creating.create(made.library, wanted(TEXT))
    assert len(lying(made)) == 1


def test_a_text_that_was_lost_is_put_back_by_creating_it_again(made: Made) -> None:
    row = made.create(TEXT)
    made.library.store.remove_context(row.id)
    with pytest.raises(StoreBroken, match="Delete what it belongs to"):
        made.library.definition(row)
    again = made.create(TEXT)
    assert again.id == row.id
    assert again.computed_tokens == row.computed_tokens
    assert made.library.definition(row).documents[0].text == TEXT


def test_a_plan_does_nothing(made: Made) -> None:
    planned = creating.plan(made.library, wanted(TEXT))
    assert planned.existing is None
    assert not made.library.catalog.contexts.ids()
    assert not lying(made)
    row = made.create(TEXT)
    again = creating.plan(made.library, wanted(TEXT))
    assert again.existing is not None
    assert again.existing.id == row.id
    assert again.fingerprint == planned.fingerprint == row.fingerprint
    assert again.forecast.tokens == row.tokens


@pytest.mark.parametrize("text", ["", "  \n\t "])
def test_nothing_to_read_is_refused(made: Made, text: str) -> None:
    with pytest.raises(RequestError, match="no text"):
        creating.create(made.library, wanted(text))


def test_what_the_model_cannot_read_is_named(made: Made) -> None:
    planned = creating.plan(
        made.library, wanted(TEXT, unread=({"document": None, "page": 3, "what": "page"},))
    )
    unread = creating.unread_of(
        wanted(TEXT, unread=({"document": None, "page": 3, "what": "page"},)), planned.outline
    )
    assert unread == ({"document": None, "page": 3, "what": "page"},)


def test_a_fork_has_the_parents_text_before_its_own(made: Made) -> None:
    parent = made.create(TEXT)
    child = made.create(TEXT, "More.", parent=parent.id, origin="fork")
    assert (child.parent, child.origin) == (parent.id, "fork")
    (ours,), (theirs,) = made.parts(parent), made.parts(child)
    assert theirs[: len(ours)] == ours
    assert child.reused_tokens >= len(ours) - 1
