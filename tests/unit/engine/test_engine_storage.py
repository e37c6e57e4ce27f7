from __future__ import annotations

from pathlib import Path

import pytest
from mover_bench import LONG_S, REALM, shape

from kvasir.core.clock import SystemClock
from kvasir.core.config import STORED_FOLDER, Config
from kvasir.core.tiers import Tier
from kvasir.engine.storage import Cap, Storage, open_storage
from kvasir.tiers.device import DevicePool
from kvasir.tiers.record import VERSION

NONE = Cap(0, "none")


def opened(home: Path, *, host: Cap = NONE, disk: Cap = NONE) -> Storage | None:
    pool = DevicePool(shape(), "cpu")
    return open_storage(
        Config(home=home), REALM, shape(), pool, host, disk, lambda: None, SystemClock()
    )


def caps(storage: Storage) -> dict[Tier, int]:
    storage.close(LONG_S)
    return {shelf.tier: shelf.cap_bytes for shelf in storage.stored.shelves}


def test_the_tiers_are_as_large_as_was_decided_before(tmp_path: Path) -> None:
    """Not as large as they would be decided to be by now: what fills the disk meanwhile must not
    make them other than was told."""
    assert opened(tmp_path) is None
    storage = opened(tmp_path, host=Cap(1000, "so"), disk=Cap(2000, "so"))
    assert storage is not None
    assert caps(storage) == {Tier.HOST: 1000, Tier.DISK: 2000}


@pytest.mark.parametrize(("n_bytes", "room"), [(500, 1500), (5000, 0)])
def test_what_a_newer_servers_records_take_is_no_room(
    tmp_path: Path, n_bytes: int, room: int
) -> None:
    folder = tmp_path / STORED_FOLDER
    folder.mkdir()
    content = b"KVASIRKV" + (VERSION + 1).to_bytes(4, "little")
    (folder / ("0" * 64 + ".kv")).write_bytes(content.ljust(n_bytes))
    storage = opened(tmp_path, disk=Cap(2000, "so"))
    assert storage is not None
    assert caps(storage) == {Tier.DISK: room}
