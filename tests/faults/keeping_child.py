"""Keeps texts in the home that it is given, and says what it may rely on, until something ends it.

``keeping_child.py HOME EXPORTS FIRST HELD`` holds the texts of the numbers HELD, then reads or
imports text after text from number FIRST, each held, with as much besides that is not, and lets the
oldest go where there is no room to promise. Parcels of the texts to import lie in EXPORTS. All is
real but the runner, which is the tagged one.
"""

from __future__ import annotations

import itertools
import os
import random
import sys
import threading
import time
from pathlib import Path

from virtual_server import make_engine

from kvasir.core.config import Config
from kvasir.core.events import Event, Finished
from kvasir.core.requests import Request
from kvasir.engine.client import EngineClient

CAP_BYTES = 128 * 1024  # some twenty records
IMPORTED = 4  # every so many texts one comes as parcels, from those that were exported
EXPORTED = 5
NAMESPACE, THEIRS = b"ours", b"theirs"
_WAIT_S = 60.0


def text_of(which: int) -> list[int]:
    rng = random.Random(which)
    return [rng.randrange(256) for _ in range(rng.randrange(20, 120))]


def source_of(which: int) -> int | None:
    """The exported text that text ``which`` is; none where it is read."""
    return which // IMPORTED % EXPORTED if which % IMPORTED == 0 else None


def tokens_of(which: int) -> list[int]:
    source = source_of(which)
    return text_of(which if source is None else -1 - source)


def config_of(home: Path) -> Config:
    return Config(home=home, disk_gib=CAP_BYTES / 2**30)


def ask(client: EngineClient, tokens: list[int], namespace: bytes, name: str) -> None:
    ended = threading.Event()

    def deliver(event: Event) -> None:
        if isinstance(event, Finished):
            ended.set()

    client.submit(Request(id=name, namespace=namespace, tokens=tokens, max_tokens=0), deliver)
    if not ended.wait(_WAIT_S):
        raise RuntimeError("no answer")


def wait_durable(client: EngineClient, tokens: list[int], namespace: bytes) -> bool:
    """Whether all of it was stored; it ends when nothing is being saved any more."""
    until_s = time.monotonic() + _WAIT_S
    while time.monotonic() < until_s:
        found = client.residence(namespace, tokens)
        if found.durable or not found.saving:
            return found.durable
        time.sleep(0.001)
    raise RuntimeError("saving does not end")


def say(verb: str, which: int) -> None:
    os.write(1, f"{verb} {which}\n".encode())  # whole or not at all, whatever is killed


def keep(client: EngineClient, exports: Path, which: int) -> bool:
    """Have text ``which`` stored; whether all of it is."""
    tokens, source = tokens_of(which), source_of(which)
    if source is None:
        ask(client, tokens, NAMESPACE, f"r{which}")
        return wait_durable(client, tokens, NAMESPACE)
    for path in sorted(exports.glob(f"{source}-*")):
        client.accept(NAMESPACE, path.read_bytes())
    return client.residence(NAMESPACE, tokens).durable


def main() -> None:
    home, exports, first = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    held = [int(which) for which in sys.argv[4].split(",") if which]
    client, _, _, _ = make_engine(stored=config_of(home))
    for which in held:
        client.hold(str(which), NAMESPACE, [tokens_of(which)])
    say("begin", first)
    for which in itertools.count(first):
        tokens = tokens_of(which)
        while held and client.bytes_of(len(tokens)) + 8192 > client.room_bytes(NAMESPACE):
            oldest = held.pop(0)
            say("dropping", oldest)
            client.let_go(str(oldest))
            client.drop(NAMESPACE, [tokens_of(oldest)])
        client.hold(str(which), NAMESPACE, [tokens])
        held.append(which)
        if keep(client, exports, which):
            say("kept", which)
        ask(client, text_of(10**6 + which), NAMESPACE, f"other-{which}")


if __name__ == "__main__":
    main()
