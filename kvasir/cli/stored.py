"""Stored KV as commands reach it: through the home's server, or in the folder under its lock.

Invariant: the folder is touched by this process only while it owns the home.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from kvasir.catalog.catalog import Catalog, open_catalog
from kvasir.cli import show
from kvasir.cli.client import Client
from kvasir.cli.connect import own_unless_served
from kvasir.cli.home import OwnedHome, open_home
from kvasir.core.config import CATALOG_FILE, Config, database_url
from kvasir.core.errors import ConfigError
from kvasir.core.tiers import KeptRecord, Tier
from kvasir.service.identity import Identity
from kvasir.service.inventory import inventory, kept_reply, tag_of
from kvasir.service.replies import CacheReply, KeptReply, Reply, VerifiedReply
from kvasir.text.transcript_db import FILE_NAME, forget
from kvasir.tiers.folder import Folder, RealFolder
from kvasir.tiers.record import Damaged, Record
from kvasir.tiers.record_file import look
from kvasir.tiers.store import RecordStore

_NO_CAP = 2**63  # a command drops nothing for want of room


class Verified(Reply):
    """What did not verify and is gone: records, and files that were not even recognised."""

    records: int
    bytes: int
    damaged: list[KeptReply]
    unreadable: int


class Stored(Protocol):
    """What commands do with stored KV."""

    def show(self) -> CacheReply:
        """Every record and the sums."""
        ...

    def verify(self) -> Verified:
        """Read every record again and drop what is damaged."""
        ...

    def clear(self, tier: str | None, tenant: str | None) -> int:
        """Forget it; how many records went. Raises ``KvasirError`` where nobody has that name."""
        ...


@contextlib.contextmanager
def open_stored(config: Config) -> Iterator[Stored]:
    """The stored KV of the home that ``config`` names.

    Raises ``HomeBusy`` if another process owns the home and answers nothing for a minute, and
    ``ConfigError`` if the folder cannot be read.
    """
    home = open_home(config.home)
    with contextlib.ExitStack() as stack:
        owned = own_unless_served(home, stack)
        if owned is None:
            yield ServedKv(stack.enter_context(Client(home.socket_path)))
        else:
            yield stack.enter_context(in_folder(config, owned))


class ServedKv:
    """Stored KV behind a running server, which also knows what of it is of use."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def show(self) -> CacheReply:
        return CacheReply.model_validate(self._client.stored())

    def verify(self) -> Verified:
        before = self.show()
        n_bytes = sum(record.bytes for record in before.records)
        show.note(
            f"the server reads {show.count(len(before.records), 'record')}, {show.size(n_bytes)}"
        )
        reply = VerifiedReply.model_validate(self._client.verify_stored())
        return Verified(
            records=len(before.records), bytes=n_bytes, damaged=reply.damaged, unreadable=0
        )

    def clear(self, tier: str | None, tenant: str | None) -> int:
        wanted = {"tier": tier, "tenant": tenant}
        only = {name: value for name, value in wanted.items() if value is not None}
        return int(self._client.clear_stored(**only)["cleared"])


class KvInFolder:
    """Stored KV that no server uses at the moment: that on disk. Only showing it leaves it as it
    is; else leftovers of a crash and what is no whole record go too."""

    def __init__(
        self, path: Path, folder: Folder, tenants: Mapping[bytes, str], transcripts: Path
    ) -> None:
        """``folder`` is that at ``path``."""
        self._path = path
        self._folder = folder
        self._transcripts = transcripts
        self._tenants = tenants

    def show(self) -> CacheReply:
        with _usable(self._path):
            kept = [
                _kept(found.record, found.time_s)
                for found in look(self._folder)
                if found.record is not None
            ]
        return inventory(kept, (), self._tenants, compared=False)

    def verify(self) -> Verified:
        store = self._open()
        unreadable = store.counts["damaged"]
        kept = [_kept(record, store.used_s(name)) for name, record in store.records.items()]
        n_bytes = sum(record.n_bytes for record in kept)
        damaged: list[KeptReply] = []
        done = 0
        with show.bar("verifying", "MiB") as update:
            for record in kept:
                update(done >> 20, n_bytes >> 20)
                try:
                    store.verify(record.name)
                except Damaged:
                    damaged.append(kept_reply(record, self._tenants, compared=False))
                done += record.n_bytes
        return Verified(records=len(kept), bytes=n_bytes, damaged=damaged, unreadable=unreadable)

    def clear(self, tier: str | None, tenant: str | None) -> int:
        tag = None if tenant is None else self._tag(tenant)
        if tier not in (None, Tier.DISK.value):
            return 0
        if tier is None:
            forget(self._transcripts, tag)
        store = self._open()
        gone = [
            name for name, record in store.records.items() if tag in (None, record.namespace_tag)
        ]
        for name in gone:
            store.drop(name)
        if store.counts["newer"]:
            files = show.count(store.counts["newer"], "file")
            show.note(f"left alone: {files} of a newer Kvasir; clear them with that one")
        return len(gone)

    def _tag(self, tenant: str) -> bytes:
        tag = tag_of(tenant, self._tenants)
        if tag is None:
            raise ConfigError(
                f"there is no tenant {tenant[:100]!r}\n"
                f"known are {', '.join(sorted(set(self._tenants.values())))}, and the tags that "
                "`kvasir cache size` shows\n"
                "name one of them, or the config file that has its key with --config"
            )
        return tag

    def _open(self) -> RecordStore:
        with _usable(self._path):
            return RecordStore(self._folder, _NO_CAP)


def _kept(record: Record, used_s: float) -> KeptRecord:
    return KeptRecord(
        tier=Tier.DISK,
        name=record.name,
        namespace_tag=record.namespace_tag,
        tokens=len(record.tokens),
        start=record.start,
        n_bytes=record.file_bytes,
        used_s=used_s,
        compute_s=record.compute_s,
        format_version=record.version,
        differs_in=(),
    )


@contextlib.contextmanager
def in_folder(config: Config, owned: OwnedHome) -> Iterator[KvInFolder]:
    """The stored KV in the folder of a home that this process owns."""
    path = owned.home.stored
    with _usable(path):
        folder = RealFolder(path)
    with contextlib.closing(folder):
        with _catalog(config, owned) as catalog:
            tenants = Identity(config.keys, owned.secret(), catalog).tenants()
        yield KvInFolder(path, folder, tenants, owned.home.path / FILE_NAME)


@contextlib.contextmanager
def _catalog(config: Config, owned: OwnedHome) -> Iterator[Catalog | None]:
    """The catalog, None where there is none yet: looking at what is stored makes none."""
    if not config.database and not (owned.home.path / CATALOG_FILE).exists():
        yield None
        return
    with contextlib.closing(open_catalog(database_url(config))) as catalog:
        yield catalog


@contextlib.contextmanager
def _usable(path: Path) -> Iterator[None]:
    """Say what to do where the folder at ``path`` cannot be read."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"cannot read the stored KV in {path}: {error.strerror or error}\n"
            "it must be a folder that belongs to you\n"
            "remove what lies there (stored KV is computed anew), or name another --home"
        ) from error
