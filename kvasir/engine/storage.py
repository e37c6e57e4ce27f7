"""Opens the stored tiers of a home: how large they may be, what is in them, and who carries."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from kvasir.core.clock import Clock
from kvasir.core.config import STORED_FOLDER, Config
from kvasir.core.errors import ConfigError
from kvasir.core.geometry import KvGeometry
from kvasir.core.realm import Realm
from kvasir.core.tiers import Tier
from kvasir.kv.moves import Mover
from kvasir.kv.shelf import Shelf
from kvasir.kv.stored import StoredRecord, StoredTiers, bytes_of_blocks
from kvasir.tiers.carry import BlockBytes
from kvasir.tiers.folder import RealFolder
from kvasir.tiers.mover import ThreadedMover
from kvasir.tiers.ram import RamFolder
from kvasir.tiers.record import differs_in, extent, size_of_record
from kvasir.tiers.record_file import SUFFIX
from kvasir.tiers.store import RecordStore

GIB = 2**30
_MOST_DISK_BYTES = 16 * GIB
_DISK_SHARE = 0.1  # of what is free
_HOST_SHARE = 0.25  # of the memory that is available beside a device with its own


@dataclass(frozen=True, slots=True)
class Cap:
    """How many bytes a tier may take, and why."""

    n_bytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class Storage:
    """The stored tiers of a running engine. ``close`` waits for what is queued, so many seconds."""

    stored: StoredTiers
    close: Callable[[float], None]


def stored_folder(config: Config) -> Path:
    """Where the disk tier's records lie."""
    return config.home / STORED_FOLDER


def disk_cap(config: Config) -> Cap:
    """What stored KV may take on the disk of the home."""
    if config.disk_gib >= 0:
        return Cap(int(config.disk_gib * GIB), f"disk_gib is {config.disk_gib:g}")
    path = stored_folder(config)
    used_bytes = 0
    for file in path.glob(f"*{SUFFIX}") if path.is_dir() else ():
        with contextlib.suppress(FileNotFoundError):  # a server may be evicting
            used_bytes += file.stat().st_size
    while not path.exists():
        path = path.parent
    # What is there already counts as free: the cap must not shrink because it is made use of.
    free_bytes = shutil.disk_usage(path).free + used_bytes
    reason = f"the smaller of 16 GiB and 10 % of the {free_bytes / GIB:.1f} GiB that are free"
    return Cap(min(_MOST_DISK_BYTES, int(_DISK_SHARE * free_bytes)), reason)


def host_cap(config: Config, *, device_has_memory: bool, available_bytes: int) -> Cap:
    """What KV may take in memory beside the device."""
    if config.host_gib >= 0:
        return Cap(int(config.host_gib * GIB), f"host_gib is {config.host_gib:g}")
    if not device_has_memory:
        return Cap(0, "the device's memory is the machine's own")
    share = int(_HOST_SHARE * available_bytes)
    return Cap(
        share, f"{_HOST_SHARE:.0%} of the {available_bytes / GIB:.1f} GiB that are available"
    )


def open_storage(
    config: Config,
    realm: Realm,
    geometry: KvGeometry,
    memory: BlockBytes,
    host: Cap,
    disk: Cap,
    on_moved: Callable[[], None],
    clock: Clock,
) -> Storage | None:
    """The tiers that ``host`` and ``disk`` have room for; None where there are none.

    Raises ``ConfigError`` where the folder cannot be used.
    """
    stores: dict[Tier, RecordStore] = {}
    if host.n_bytes:
        stores[Tier.HOST] = RecordStore(RamFolder(host.n_bytes), host.n_bytes)
    if disk.n_bytes:
        path = stored_folder(config)
        try:
            stores[Tier.DISK] = RecordStore(RealFolder(path), disk.n_bytes)
        except OSError as error:
            raise ConfigError(
                f"the folder of stored KV, {path}, cannot be used: {error.strerror or error}\n"
                "make it a folder of yours, or remove it (what is kept in it is lost)\n"
                "or start without: --disk-gib 0"
            ) from error
    if not stores:
        return None
    mover = ThreadedMover(stores, memory, realm, geometry, on_moved, clock=clock)
    stored = open_stored(stores, mover, geometry, realm)

    def close(timeout_s: float) -> None:
        mover.close(timeout_s)

    return Storage(stored, close)


def open_stored(
    stores: Mapping[Tier, RecordStore],
    mover: Mover,
    geometry: KvGeometry,
    realm: Realm,
    *,
    now_s: Callable[[], float] = time.time,
) -> StoredTiers:
    """The tiers of ``stores``, the fastest first, with what is in them. What a newer server's
    records take of a store is no room for others."""

    def record_bytes(n_blocks: int, n_tokens: int) -> int:
        return size_of_record(geometry, n_blocks, n_tokens)

    def bytes_of(n_blocks: int) -> int:
        return bytes_of_blocks(geometry, record_bytes, n_blocks)

    return StoredTiers(
        [Shelf(t, max(0, s.cap_bytes - s.newer_bytes), bytes_of) for t, s in stores.items()],
        mover,
        geometry,
        record_bytes=record_bytes,
        records=[found for tier, store in stores.items() for found in _records(tier, store, realm)],
        now_s=now_s,
    )


def _records(tier: Tier, store: RecordStore, realm: Realm) -> Iterator[StoredRecord]:
    for name, record in store.records.items():
        found = extent(record, store.used_s(name))
        yield StoredRecord(tier, found, differs_in(record, realm))
