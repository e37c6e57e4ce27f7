"""What keeping takes, and what is promised: never more than there is room for."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest
from context_library import Made, definition, opened, wanted
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from virtual_server import WINDOW

from kvasir.contexts import creating, keeping
from kvasir.contexts.creating import Expiry
from kvasir.contexts.outline import outline
from kvasir.contexts.promise import NoRoom, disk, forecast, forecast_of, receipt

DISK_GIB = 96 * 1024 / 2**30


def test_a_forecast_covers_what_is_then_stored(tmp_path: Path) -> None:
    with opened(tmp_path) as made:
        row = made.create("The raven came. " * 60)
        (part,) = made.parts(row)
        where = made.client.residence(made.library.namespace_of("a"), part)
        (stored,) = where.stored_bytes.values()
        told = forecast_of(made.library, [len(part)])
        assert 0.5 * told.n_bytes <= stored <= told.n_bytes
        assert row.n_bytes == told.n_bytes
        assert told.tokens == row.tokens
        parts = outline(made.library.codec, definition("Long. " * 3000), WINDOW)
        more = forecast(made.library, parts)
        assert more.n_parts == len(parts.parts) > 1
        assert more.read_s > 0
        assert more.sweep_s > more.load_s


@pytest.mark.parametrize("on_disk", [True, False])
def test_a_receipt_says_where_and_how_long_and_what_that_survives(
    tmp_path: Path, on_disk: bool
) -> None:
    with opened(tmp_path, on_disk=on_disk) as made:
        row = made.create("Kept. " * 30, expiry=Expiry(after_s=100))
        told = receipt(made.library, row)
        assert told.tier == ("disk" if on_disk else "memory")
        assert told.survives_restart == told.survives_memory_pressure == on_disk
        assert told.until == int(made.clock.now_s) + 100
        assert (disk(made.library) is not None) == on_disk
        pinned = made.create("Kept. " * 30, pinned=True)
        assert receipt(made.library, pinned).until is None
        expiring = made.create("Expiring. " * 30, expiry=Expiry(after_s=100))
        keeping.expire(made.library, expiring)
        assert receipt(made.library, made.row(expiring)).tier == "text", "its KV is gone"
        text = made.create("Text. " * 30, keep="text")
        assert receipt(made.library, text).tier == "text"
        assert not receipt(made.library, text).survives_restart


def test_what_has_no_room_is_refused_with_the_numbers_and_leaves_nothing(tmp_path: Path) -> None:
    with opened(tmp_path, disk_gib=DISK_GIB) as made:
        long = "\n\n".join(f"CHAPTER {n}\n\n" + "The raven came. " * 60 for n in range(60))
        with pytest.raises(NoRoom, match=r"Choose: a larger cap .* keep: \"text\"") as refused:
            creating.create(made.library, wanted(long))
        assert refused.value.code == "storage_full"
        assert not made.library.catalog.contexts.ids()
        assert not list(made.library.store.contexts.iterdir())
        assert made.create(long, keep="text").status == "completed"
        with pytest.raises(NoRoom):
            creating.create(made.library, wanted(long))
        assert made.create("Short. " * 20).status == "completed"


def test_one_that_expired_is_promised_no_more_than_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it is held any more, so its room may be another's."""
    with opened(tmp_path) as made:
        row = made.create("Renewed. " * 30)
        monkeypatch.setattr(type(made.client), "room_bytes", lambda *_: 0)
        assert made.create("Renewed. " * 30).id == row.id, "it has its room"
        keeping.expire(made.library, row)
        with pytest.raises(NoRoom):
            creating.create(made.library, wanted("Renewed. " * 30))


class Promises(RuleBasedStateMachine):
    """Contexts come and go; the sum of promises is within the cap, and all that was promised and
    read is kept."""

    numbers = st.integers(0, 12)

    @initialize()
    def begin(self) -> None:
        self._stack = ExitStack()
        home = self._stack.enter_context(tempfile.TemporaryDirectory())
        self.made: Made = self._stack.enter_context(opened(Path(home), disk_gib=DISK_GIB))
        self.refused = 0

    @rule(number=numbers, read=st.booleans(), keep=st.sampled_from(["kv", "kv", "text"]))
    def create(self, number: int, read: bool, keep: str) -> None:
        wish = wanted(
            f"Text {number}. " + f"The raven {number} came. " * (10 + 9 * number),
            tenant="ab"[number % 2],
            keep=keep,
            expiry=Expiry(after_s=100 * (1 + number % 3)),
        )
        try:
            row, unread = creating.create(self.made.library, wish)
        except NoRoom:
            self.refused += 1
            return
        if read and unread:
            self.made.reader.take(row)
            assert self.made.ended(row).status == "completed"

    @rule(number=numbers)
    def delete(self, number: int) -> None:
        for row in self.made.library.catalog.contexts.live()[number : number + 2]:
            with self.made.reader.stopped(row, 10):
                keeping.delete(self.made.library, row)

    @rule(number=numbers)
    def cancel(self, number: int) -> None:
        for row in self.made.library.catalog.contexts.unfinished()[:1]:
            self.made.reader.take(row)
            self.made.reader.cancel(row.id)
            self.made.ended(row)

    @rule(seconds=st.sampled_from([50, 150]))
    def pass_time(self, seconds: int) -> None:
        self.made.clock.now_s += seconds
        keeping.Keeper(self.made.library, self.made.reader.stopped).round()

    @invariant()
    def promises_are_within_the_cap(self) -> None:
        tier = disk(self.made.library)
        assert tier is not None
        rows = self.made.library.catalog.contexts.held()
        assert sum(row.n_bytes for row in rows) <= tier.cap_bytes

    @invariant()
    def what_was_promised_and_read_is_kept(self) -> None:
        for row in self.made.library.catalog.contexts.held():
            if row.status == "completed":
                namespace = self.made.library.namespace_of(row.tenant)
                for part in self.made.parts(row):
                    where = self.made.client.residence(namespace, part)
                    assert where.durable
                    assert where.held
        held = {row.id for row in self.made.library.catalog.contexts.held()}
        assert self.made.holders() <= held

    def teardown(self) -> None:
        self.made.check()
        self._stack.close()


TestPromises = Promises.TestCase
TestPromises.settings = settings(max_examples=15, stateful_step_count=15, deadline=None)
