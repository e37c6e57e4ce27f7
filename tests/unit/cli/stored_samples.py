"""A home with stored KV in it, made by the real store."""

from __future__ import annotations

import contextlib
import hmac
import random

from kvasir.cli.home import Home
from kvasir.core.realm import Realm, namespace_tag
from kvasir.tiers.folder import RealFolder
from kvasir.tiers.record import Record
from kvasir.tiers.store import RecordStore

BLOCK_TOKENS = 4
REALM = Realm(weights="w", numerics="n", tokenizer="t", layout="l")


def tag(home: Home, tenant: str) -> bytes:
    with home.own() as owned:
        return namespace_tag(hmac.digest(owned.secret(), tenant.encode(), "sha256"))


def keep(
    home: Home, which: int, *, namespace_tag: bytes, realm: Realm = REALM, compute_s: float = 2.0
) -> str:
    """Store two blocks; gives the record's name."""
    rng = random.Random(which)
    record = Record(
        realm=realm.tag,
        namespace_tag=namespace_tag,
        parent=bytes(32),
        start=0,
        keys=(rng.randbytes(32), rng.randbytes(32)),
        tokens=tuple(rng.randrange(1000) for _ in range(2 * BLOCK_TOKENS)),
        block_tokens=BLOCK_TOKENS,
        n_planes=2,
        plane_bytes=800,
        created_s=1000.0 * which,
        compute_s=compute_s,
    )
    with contextlib.closing(RealFolder(home.stored)) as folder:
        store = RecordStore(folder, 2**40)
        name = store.put(record, rng.randbytes(1600))
        store.use(name, 1000.0 * which)
    return name
