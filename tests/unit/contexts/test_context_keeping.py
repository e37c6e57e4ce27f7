"""How long contexts stay: expiry, deletion, and what a crash has interrupted of either."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from context_library import Clock, Made, opened, wait_for, wanted

from kvasir.catalog.values import ContextRow, FileRow
from kvasir.contexts import creating, keeping
from kvasir.contexts.batch import run_all
from kvasir.contexts.creating import Expiry
from kvasir.contexts.keeping import Keeper
from kvasir.core.requests import Request

TEXT = "The raven came in May. " * 20


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Made]:
    with opened(tmp_path) as one:
        yield one


def expire(made: Made, seconds: int = 0) -> None:
    """What the keeper does so much later."""
    made.clock.now_s += seconds
    Keeper(made.library, made.reader.stopped).round()


def stored_tokens(made: Made, row: ContextRow, parts: list[list[int]]) -> int:
    namespace = made.library.namespace_of(row.tenant)
    found = [made.client.residence(namespace, part) for part in parts]
    return sum(sum(where.stored.values()) + where.device_tokens for where in found)


def is_kept(made: Made, row: ContextRow) -> bool:
    namespace = made.library.namespace_of(row.tenant)
    found = [made.client.residence(namespace, part) for part in made.parts(row)]
    return all(where.durable and where.held for where in found)


def test_by_age_use_does_not_matter_and_by_last_use_it_does(made: Made) -> None:
    aged = made.create("By age. " * 30, expiry=Expiry(anchor="created_at", after_s=100))
    used = made.create("By use. " * 30, expiry=Expiry(anchor="last_active_at", after_s=100))
    lasting = made.create("Neither. " * 30, expiry=None)
    made.clock.now_s += 60
    for row in (aged, used, lasting):
        made.library.catalog.contexts.touch("a", row.id, int(made.clock.now_s))
    expire(made, 60)
    assert [made.row(row).status for row in (aged, used, lasting)] == [
        "expired", "completed", "completed",
    ]  # fmt: skip
    expire(made, 39)
    assert made.row(used).status == "completed"
    expire(made, 1)
    assert made.row(used).status == "expired"
    assert made.holders() == {lasting.id}


def test_pinned_stays_and_what_is_unpinned_expires_again(made: Made) -> None:
    row = made.create(TEXT, pinned=True, expiry=Expiry(after_s=100))
    made.library.catalog.contexts.touch("a", row.id, int(made.clock.now_s))
    expire(made, 10**6)
    assert made.row(row).status == "completed"
    unpinned = creating.used(made.library, made.row(row), pinned=False)
    assert unpinned.expires_at is None or unpinned.expires_at > made.clock.now_s
    creating.used(made.library, made.row(row))
    expire(made, 101)
    assert made.row(row).status == "expired"


def test_what_expired_keeps_its_text_for_a_while_and_is_read_again(made: Made) -> None:
    row = made.create(TEXT, expiry=Expiry(after_s=100))
    parts = made.parts(row)
    expire(made, 100)
    row = made.row(row)
    assert (row.status, row.read_tokens) == ("expired", 0)
    assert not made.holders()
    assert stored_tokens(made, row, parts) == 0
    assert made.library.definition(row).documents[0].text == TEXT
    again = made.create(TEXT, expiry=Expiry(after_s=100))
    assert again.id == row.id
    assert again.status == "completed"
    assert again.computed_tokens == 2 * row.computed_tokens
    assert is_kept(made, again)
    expire(made, 100)
    expire(made, 7 * 24 * 3600)
    assert made.library.catalog.contexts.get("a", row.id) is None
    assert not list(made.library.store.contexts.iterdir())


def test_renewed_since_it_was_looked_up_it_stays(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The keeper has seen that its time is over, and before it ends it somebody creates it again:
    in the one case it has expired already, in the other it is about to."""
    for status in ("completed", "expired"):
        row = made.create(TEXT, expiry=Expiry(after_s=100))
        if status == "expired":
            expire(made, 100)
            made.clock.now_s += 8 * 24 * 3600
        else:
            made.clock.now_s += 100
        seen = made.library.catalog.contexts.expired(int(made.clock.now_s))
        assert [each.id for each in seen] == [row.id]
        again = made.create(TEXT, expiry=Expiry(after_s=1000))
        assert again.id == row.id
        monkeypatch.setattr(
            type(made.library.catalog.contexts), "expired", lambda _self, _now, s=seen: s
        )
        expire(made)
        monkeypatch.undo()
        assert made.row(row).status == "completed"
        assert is_kept(made, made.row(row))


def test_one_that_expires_while_it_is_read_is_ended_first(made: Made) -> None:
    row, _ = creating.create(made.library, wanted(TEXT * 20, expiry=Expiry(after_s=100)))
    made.runner.pace_s = 0.02
    made.reader.take(row)
    made.clock.now_s += 100
    for _ in range(100):
        expire(made)
        if made.row(row).status == "expired":
            break
    row = made.row(row)
    assert (row.status, row.read_tokens) == ("expired", 0)
    assert not made.holders()
    made.check()


def test_what_a_deleted_one_shares_with_others_stays(made: Made) -> None:
    parent = made.create(TEXT)
    child = made.create(TEXT, "More.", parent=parent.id)
    sibling = made.create(TEXT, "Other.", parent=parent.id)
    keeping.delete(made.library, child)
    assert is_kept(made, parent)
    assert is_kept(made, sibling)
    keeping.delete(made.library, parent)
    assert is_kept(made, sibling)
    keeping.delete(made.library, sibling)
    assert not made.client.texts(made.library.namespace_of("a")), "KV of it is still there"
    assert not made.holders()
    assert not list(made.library.store.contexts.iterdir())
    made.check()


def test_with_a_context_goes_what_was_asked_on_it(made: Made) -> None:
    """A question behind a document is stored as a text that begins with all of it."""
    row, other = made.create(TEXT), made.create("Other. " * 20, instructions="Be brief.")
    namespace = made.library.namespace_of("a")
    (part,) = made.parts(row)
    ask = Request(id="q", namespace=namespace, tokens=[*part, 5, 6, 7], max_tokens=40)
    (done,) = run_all(made.client, [ask], width=1)
    wait_for(lambda: made.client.residence(namespace, [*ask.tokens, *done.tokens[:-1]]).durable)
    assert len(made.client.texts(namespace)) > 1
    keeping.delete(made.library, row)
    (left,) = made.client.texts(namespace)
    assert left.n_tokens == other.tokens
    assert is_kept(made, other)
    made.check()


def test_with_one_that_keeps_its_text_alone_goes_what_questions_left_of_it(made: Made) -> None:
    row = made.create(TEXT, keep="text")
    namespace = made.library.namespace_of("a")
    (part,) = made.parts(row)
    ask = Request(id="q", namespace=namespace, tokens=[*part, 5, 6, 7], max_tokens=4)
    list(run_all(made.client, [ask], width=1))
    wait_for(lambda: made.client.residence(namespace, part).durable)
    keeping.delete(made.library, row)
    assert stored_tokens(made, row, [part]) == 0
    assert not made.client.texts(namespace)


def test_whatever_goes_wrong_in_a_round_the_next_one_is_made(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds: list[int] = []

    def fails(keeper: Keeper) -> None:
        rounds.append(1)
        raise RuntimeError("planted fault")

    monkeypatch.setattr(keeping, "_EVERY_S", 0.01)
    monkeypatch.setattr(Keeper, "round", fails)
    keeper = Keeper(made.library, made.reader.stopped)
    keeper.start()
    try:
        wait_for(lambda: len(rounds) > 2)
    finally:
        keeper.close()


class Killed(BaseException):
    """Nothing after it is done."""


CUTS: list[tuple[str, Callable[[Made], tuple[Any, str]]]] = [
    ("before anything", lambda made: (type(made.library.catalog.contexts), "update")),
    ("before the KV is let go", lambda made: (type(made.client), "let_go")),
    ("before the KV is dropped", lambda made: (type(made.client), "drop")),
    ("before the row goes", lambda made: (type(made.library.catalog.contexts), "remove")),
    ("before the text goes", lambda made: (type(made.library.store), "remove_context")),
]


@pytest.mark.parametrize("what", [keeping.delete, keeping.expire], ids=["deleted", "expired"])
@pytest.mark.parametrize("cut", [cut for _, cut in CUTS], ids=[name for name, _ in CUTS])
def test_whatever_a_crash_interrupts_is_finished_or_undone(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cut: Callable[[Made], tuple[Any, str]],
    what: Callable[..., None],
) -> None:
    """After the next start a context is completed and answers from its KV, or is expired or gone
    and has none."""

    def killed(*_: object, **__: object) -> None:
        raise Killed

    clock = Clock()
    with opened(tmp_path, clock=clock) as made:
        row = made.create(TEXT)
        parts = made.parts(row)
        monkeypatch.setattr(*cut(made), killed)
        try:
            what(made.library, row)
        except Killed:
            pass
        else:
            assert what is keeping.expire, "nothing was cut"
        monkeypatch.undo()
    with opened(tmp_path, clock=clock) as made:
        keeping.open_shelves(made.library)
        found = made.library.catalog.contexts.get("a", row.id)
        lying = [path.name for path in made.library.store.contexts.iterdir()]
        if found is None:
            assert what is keeping.delete
            assert not lying
            assert not made.holders()
            assert stored_tokens(made, row, parts) == 0
            return
        assert lying == [f"{row.id}.json"]
        if found.status == "completed":
            assert is_kept(made, found)
            assert found.read_tokens == found.tokens
        else:
            assert what is keeping.expire
            assert found.status == "expired"
            assert not made.holders()


def test_a_deletion_that_goes_on_at_the_start_takes_nothing_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise Killed

    with opened(tmp_path) as made:
        parent = made.create(TEXT)
        child = made.create(TEXT, "More.", parent=parent.id)
        monkeypatch.setattr(type(made.client), "let_go", killed)
        with pytest.raises(Killed):
            keeping.delete(made.library, parent)
        monkeypatch.undo()
    with opened(tmp_path) as made:
        keeping.open_shelves(made.library)
        assert made.library.catalog.contexts.ids() == {child.id}
        assert is_kept(made, child)


def test_at_the_start_orphans_go_and_what_is_listed_is_held(tmp_path: Path) -> None:
    with opened(tmp_path) as made:
        row = made.create(TEXT)
        store = made.library.store
        store.put_definition("ctx_" + "0" * 32, {})
        store.put_tree("ctx_" + "0" * 32, [])
        store.put_extracted("file-" + "0" * 32, {})
        (store.files / ("0" * 32 + ".part")).write_bytes(b"half")
        made.library.catalog.idempotency.claim("a", "k", "digest", 1)
    with opened(tmp_path) as made:
        assert not made.holders()
        keeping.open_shelves(made.library)
        assert [path.name for path in made.library.store.contexts.iterdir()] == [f"{row.id}.json"]
        assert not list(made.library.store.files.iterdir())
        assert made.holders() == {row.id}
        assert is_kept(made, row)
        assert made.library.catalog.idempotency.claim("a", "k", "other", 1).state == "new"


def test_a_file_goes_when_its_time_is_over(made: Made) -> None:
    for number, expires_at in enumerate((int(made.clock.now_s) + 100, None)):
        id_ = f"file-{number:032x}"
        made.library.store.put_extracted(id_, {"documents": [], "unread": []})
        made.library.catalog.files.add(
            FileRow(
                id=id_,
                tenant="a",
                filename="a.txt",
                purpose="user_data",
                n_bytes=1,
                sha256="",
                media_type="text/plain",
                status="processed",
                created_at=int(made.clock.now_s),
                expires_at=expires_at,
            )
        )
    expire(made, 99)
    assert len(made.library.catalog.files.ids()) == 2
    expire(made, 1)
    assert made.library.catalog.files.ids() == {f"file-{1:032x}"}
    assert [p.name for p in made.library.store.files.iterdir()] == [f"file-{1:032x}.json"]
