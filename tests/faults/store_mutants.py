"""Planted bugs of the store and its disk: what a slip in the code would be. The tests must find
each of them."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from simulated_folder import SimulatedFolder, _Writing

from kvasir.tiers import record as record_module
from kvasir.tiers import record_file as record_file_module
from kvasir.tiers import store as store_module
from kvasir.tiers.record import Buffer, Record
from kvasir.tiers.store import RecordStore

Plant = Callable[[pytest.MonkeyPatch], None]


def no_folder_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SimulatedFolder, "sync", lambda self: self._operation())


def published_before_flushed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Writing, "sync", lambda self: None)


def indexed_before_published(monkeypatch: pytest.MonkeyPatch) -> None:
    """A record is in the index, and named as kept, whatever comes of its file."""
    publish = RecordStore._publish

    def early(self: RecordStore, record: Record, name: str, data: memoryview) -> None:
        self._records[name], self._used_s[name] = record, 0.0
        publish(self, record, name, data)

    monkeypatch.setattr(RecordStore, "_publish", early)


def digest_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "block_digest", lambda *what: bytes(16))


def short_write_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_write_fully", lambda file, data: file.write(data))


def key_not_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    bound = record_module.block_digest

    def unbound(name: str, plane: int, block: int, data: Buffer) -> bytes:
        return bound("00" * 32, plane, block, data)

    monkeypatch.setattr(record_file_module, "_belongs", lambda record, file_name: True)
    monkeypatch.setattr(store_module, "block_digest", unbound)


def part_read_from_the_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    span = Record.block_span
    monkeypatch.setattr(
        Record, "block_span", lambda self, first, count: (0, span(self, first, count)[1])
    )


def name_free_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """A record is put while the old file of its name is still being removed."""
    monkeypatch.setattr(threading.Condition, "wait_for", lambda self, predicate: True)


MUTANTS: tuple[Plant, ...] = (
    no_folder_sync,
    published_before_flushed,
    indexed_before_published,
    digest_skipped,
    short_write_ignored,
    key_not_bound,
    part_read_from_the_beginning,
    name_free_too_early,
)
