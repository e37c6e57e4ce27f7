"""A whole server without weights on the home it is given: ``serving_child.py HOME``.

All that ``kvasir serve`` has is real (home, lock, sockets, HTTP, scheduler, cache, disk tier), only
the runner is the tagged one. Pool and disk are so small that KV is evicted from both all the time.
It says ``ready PORT``, and ends when its stdin does, so that it never outlives who started it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import threading
from pathlib import Path

from virtual_server import make_engine, make_served

from kvasir.cli.home import open_home
from kvasir.cli.listener import Listener, bind_tcp
from kvasir.core.config import Config
from kvasir.service.app import create_app

KEYS = {"alice-1": "alice", "alice-2": "alice", "bob-1": "bob", "carol-1": "carol", "mark": "mark"}
CAP_BYTES = 96 * 1024  # some twenty records
N_BLOCKS = 96
WINDOW = 1024


def config_of(home: Path) -> Config:
    return Config(
        home=home,
        port=0,
        keys={hashlib.sha256(key.encode()).hexdigest(): tenant for key, tenant in KEYS.items()},
        disk_gib=CAP_BYTES / 2**30,
        audit_one_in=4,
    )


def end_with_stdin() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def say_ready(port: int) -> None:
    os.write(1, f"ready {port}\n".encode())


def main() -> None:
    logging.basicConfig(level=logging.WARNING)
    threading.Thread(target=end_with_stdin, daemon=True).start()
    config = config_of(Path(sys.argv[1]))
    home = open_home(config.home)
    with home.own() as owned, bind_tcp(config.host, 0) as tcp, owned.bind_socket() as unix:
        client, _, _, geometry = make_engine(n_blocks=N_BLOCKS, window=WINDOW, stored=config)
        served = make_served(client, geometry, WINDOW, secret=owned.secret())
        Listener(
            create_app(served, config),
            [tcp, unix],
            grace_s=0.0,
            stop_engine=client.stop,
            on_ready=lambda: say_ready(tcp.getsockname()[1]),
        ).listen()


if __name__ == "__main__":
    main()
