"""Keeps records in the folder it is given until it is killed; says which are acknowledged."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

from kvasir.tiers.folder import RealFolder
from kvasir.tiers.record import Record
from kvasir.tiers.store import RecordStore, StoreFull

PLANE_BYTES = 20_000
CAP = 1_000_000


def sample(which: int) -> tuple[Record, list[bytes]]:
    rng = random.Random(which)
    made = Record(
        realm=bytes(32),
        namespace_tag=bytes(16),
        parent=bytes(32),
        keys=(rng.randbytes(32),),
        tokens=(which,),
        block_tokens=4,
        n_planes=2,
        plane_bytes=PLANE_BYTES,
        created_s=0.0,
    )
    return made, [rng.randbytes(PLANE_BYTES) for _ in range(2)]


def say(verb: str, which: int) -> None:
    os.write(1, f"{verb} {which}\n".encode())  # whole or not at all, whatever is killed


def main() -> None:
    store = RecordStore(RealFolder(Path(sys.argv[1])), CAP)
    for which in range(int(sys.argv[2]), 1 << 30):
        record, planes = sample(which)
        while True:
            try:
                store.put(record, planes)
                break
            except StoreFull:
                oldest = next(iter(store.records))
                say("dropping", store.records[oldest].tokens[0])
                store.drop(oldest)
        say("kept", which)


if __name__ == "__main__":
    main()
