"""Uses a store in the folder it is given, and says what it may rely on, until something ends it.

forever FOLDER FIRST   keeps record after record, from number FIRST, and drops the oldest
script FOLDER          a fixed course through all that a store does
fill FOLDER            keeps records until the disk is full, makes room, and keeps one more
overfill FOLDER        the same, with a disk that does not say how full it is
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from store_samples import sample, served

from kvasir.tiers.folder import RealFolder
from kvasir.tiers.record import Record
from kvasir.tiers.store import RecordStore, StoreDegraded, StoreFull

PLANE_BYTES = 24_000
CAP = 1_000_000
SCRIPT = (
    "put 0", "put 1", "read 0", "drop 0", "put 2", "use 1", "read 2", "reopen", "read 1", "put 3",
    "put 0", "drop 1", "reopen", "read 0", "read 3",
)  # fmt: skip


def made(which: int) -> tuple[Record, bytes]:
    return sample(which, PLANE_BYTES)


def say(verb: str, which: int = 0) -> None:
    os.write(1, f"{verb} {which}\n".encode())  # whole or not at all, whatever is killed


def number(store: RecordStore, name: str) -> int:
    return store.records[name].tokens[0]


def forever(folder: RealFolder, first: int) -> None:
    store = RecordStore(folder, CAP)
    for which in range(first, 1 << 30):
        while True:
            try:
                store.put(*made(which))
                break
            except StoreFull:
                oldest = next(iter(store.records))
                say("dropping", number(store, oldest))
                store.drop(oldest)
        say("kept", which)


def script(folder: RealFolder) -> None:
    """What cannot be read is given up, and said to be lost; the store has counted it."""
    say("begin")
    store = RecordStore(folder, CAP)
    promised: set[int] = set()
    for step in SCRIPT:
        verb, _, which = step.partition(" ")
        if verb == "reopen":
            store = RecordStore(folder, CAP)
        elif verb == "put":
            try:
                store.put(*made(int(which)))
            except StoreDegraded:
                say("degraded")
                continue
            promised.add(int(which))
            say("kept", int(which))
        elif verb == "drop":
            promised.discard(int(which))
            say("dropping", int(which))
            store.drop(made(int(which))[0].name)
        elif verb == "use":
            store.use(made(int(which))[0].name, 1e9)
        else:
            served(store, made(int(which)))
        lost = {which for which in promised if made(which)[0].name not in store.records}
        if len(lost) > store.counts["damaged"]:
            say("unaccounted")
        for one in lost:
            say("lost", one)
        promised -= lost
    say("end")


def fill(folder: RealFolder, *, unaware: bool) -> None:
    if unaware:
        folder.free_bytes = lambda: 2**40  # type: ignore[method-assign]
    store = RecordStore(folder, CAP)
    which = 0
    try:
        while True:
            store.put(*made(which))
            say("kept", which)
            which += 1
    except (StoreDegraded, StoreFull) as error:
        say(type(error).__name__)
    if not unaware:
        store.drop(made(0)[0].name)
        say("again", store.put(*made(0)) == made(0)[0].name)
    for one in range(which):
        if served(store, made(one)):
            say("served", one)
    say("files", len(folder.names()))
    again = RecordStore(folder, CAP)
    say("found", len(again.records))


def main() -> None:
    folder = RealFolder(Path(sys.argv[2]))
    if sys.argv[1] == "forever":
        forever(folder, int(sys.argv[3]))
    elif sys.argv[1] == "script":
        script(folder)
    else:
        fill(folder, unaware=sys.argv[1] == "overfill")


if __name__ == "__main__":
    main()
