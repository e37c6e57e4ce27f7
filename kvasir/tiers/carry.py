"""Carrying out one move: bytes between the pool's blocks and a record store.

Who decides what is moved, and on which thread it happens, is not known here. Invariant: a load that
reports no problem has put verified bytes into every plane of its blocks; a save that reports none
is kept by its store.

Torch-free. One thread may load while another one saves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from kvasir.core.geometry import KvGeometry
from kvasir.core.realm import Realm
from kvasir.core.tiers import Tier
from kvasir.kv.keys import KEY_BYTES, NO_PARENT
from kvasir.kv.moves import Extent, Load, Moved, Save
from kvasir.tiers.record import Damaged, Record
from kvasir.tiers.store import RecordStore, StoreDegraded, StoreFull

_KEPT_STAGING_BYTES = 64 * 2**20


class BlockBytes(Protocol):
    """The bytes of the pool's blocks. One thread may gather while another one scatters."""

    def gather(self, blocks: Sequence[int], n_tokens: int, into: memoryview) -> None:
        """Copy the first ``n_tokens`` tokens of ``blocks`` out of every plane, plane after plane in
        the canonical order, and return when they are copied."""
        ...

    def scatter(self, plane: int, blocks: Sequence[int], data: memoryview) -> None:
        """Copy ``data``, the tokens of ``blocks``, into one plane, and return when it is done; the
        last block may get fewer tokens than it holds."""
        ...


class Carrier:
    """Loads and saves, one of each at a time."""

    def __init__(
        self,
        stores: Mapping[Tier, RecordStore],
        memory: BlockBytes,
        realm: Realm,
        geometry: KvGeometry,
        wall_s: Callable[[], float],
    ) -> None:
        """``wall_s`` gives Unix time."""
        self._stores = stores
        self._memory = memory
        self._realm_tag = realm.tag
        self._geometry = geometry
        self._wall_s = wall_s
        self._staging = memoryview(b"")

    def load(self, load: Load) -> Moved:
        """Carry out ``load``. Raises whatever goes wrong beside a record that is damaged or gone;
        then nothing is known of the record."""
        store = self._stores[load.tier]
        try:
            if load.blocks:
                self._read(store, load)
            elif load.into is not None:
                _read_into(store, load, load.into)
            else:
                store.verify(load.record)
        except KeyError:
            return Moved(id=load.id, problem="the record is not there any more")
        except Damaged as damage:
            problem = f"the record is damaged: {damage}"
            return Moved(id=load.id, problem=problem, damaged=True)
        return Moved(id=load.id)

    def save(self, save: Save) -> Moved:
        """Carry out ``save``. Raises ``ValueError`` where the extent does not fit the blocks."""
        extent, geometry = save.extent, self._geometry
        if extent.block_tokens != geometry.block_tokens:
            raise ValueError(f"blocks of {extent.block_tokens} tokens are not those of the pool")
        n_tokens = len(extent.tokens)
        if save.planes is not None:
            planes = save.planes
        else:
            planes = self._room(n_tokens * geometry.token_bytes)
            self._memory.gather(save.blocks, n_tokens, planes)
        try:
            name = self._stores[save.tier].put(self._record(extent), planes)
        except (StoreFull, StoreDegraded) as refusal:
            return Moved(id=save.id, problem=str(refusal))
        return Moved(id=save.id, record=name)

    def _read(self, store: RecordStore, load: Load) -> None:
        n_planes = 2 * self._geometry.n_layers
        seen = 0

        def take(plane: int, data: memoryview) -> None:
            nonlocal seen
            self._memory.scatter(plane, load.blocks, data)
            seen += 1

        store.read(load.record, load.first, len(load.blocks), take)
        if seen != n_planes:
            raise ValueError(f"the record has {seen} planes, the model {n_planes}")

    def _record(self, extent: Extent) -> Record:
        geometry = self._geometry
        n_planes = 2 * geometry.n_layers
        return Record(
            realm=self._realm_tag,
            namespace_tag=extent.namespace_tag,
            parent=bytes(KEY_BYTES) if extent.parent == NO_PARENT else extent.parent,
            start=extent.start,
            keys=extent.keys,
            tokens=extent.tokens,
            block_tokens=extent.block_tokens,
            n_planes=n_planes,
            plane_bytes=len(extent.tokens) * geometry.token_bytes // n_planes,
            created_s=self._wall_s(),
            compute_s=extent.compute_s,
        )

    def _room(self, n_bytes: int) -> memoryview:
        """Memory for all planes of a record; kept for the next one unless it is unusually large."""
        if n_bytes <= len(self._staging):
            return self._staging[:n_bytes]
        room = np.empty(n_bytes, np.uint8).data
        if n_bytes <= _KEPT_STAGING_BYTES:
            self._staging = room
        return room


def _read_into(store: RecordStore, load: Load, into: memoryview) -> None:
    """Read planes one after another into ``into``, which they have to fill."""
    at = 0

    def take(_: int, data: memoryview) -> None:
        nonlocal at
        if at + len(data) > len(into):
            raise ValueError("the record has more bytes than were asked for")
        into[at : at + len(data)] = data
        at += len(data)

    store.read(load.record, load.first, load.count, take)
    if at != len(into):
        raise ValueError(f"{at} bytes of the record were read, and {len(into)} asked for")
