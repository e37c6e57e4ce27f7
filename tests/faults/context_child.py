"""Servers without weights, each in a process of its own, one after the other: ``context_child.py``.

It reads homes from stdin, a line each. For each it forks a whole server on that home, which says
``ready PORT PID``, and when that one has ended, however it did, it says ``ended STATUS`` and reads
the next. Everything is imported before the first fork, so that a start costs what opening the home
costs. All that ``kvasir serve`` has is real, only the runner is the tagged one, and a little slow.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import threading
import time
from pathlib import Path

from virtual_server import make_engine, make_served

from kvasir.cli.home import open_home
from kvasir.cli.listener import Listener, bind_tcp
from kvasir.core.config import Config
from kvasir.service.app import create_app

KEYS = {"alice-1": "alice", "bob-1": "bob"}
WINDOW = 2048
N_BLOCKS = 256  # fewer than all contexts have: they come from the disk again
STEP_TOKENS = 192
PACE_S = 0.004  # of a step
DISK_GIB = 0.0625  # more than all of it takes


def config_of(home: Path) -> Config:
    return Config(
        home=home,
        port=0,
        keys={hashlib.sha256(key.encode()).hexdigest(): tenant for key, tenant in KEYS.items()},
        disk_gib=DISK_GIB,
        audit_one_in=4,
    )


def end_with(parent: int) -> None:
    """A server never outlives who started it."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(0)


def serve(path: Path, parent: int) -> None:
    logging.basicConfig(level=logging.WARNING)
    threading.Thread(target=end_with, args=(parent,), daemon=True).start()
    config = config_of(path)
    home = open_home(config.home)
    with home.own() as owned, bind_tcp(config.host, 0) as tcp, owned.bind_socket() as unix:
        client, _, runner, geometry = make_engine(
            n_blocks=N_BLOCKS, window=WINDOW, stored=config, max_step_tokens=STEP_TOKENS
        )
        runner.pace_s = PACE_S
        served = make_served(client, geometry, WINDOW, secret=owned.secret(), home=path)
        Listener(
            create_app(served, config),
            [tcp, unix],
            grace_s=0.0,
            stop_engine=client.stop,
            on_ready=lambda: say(f"ready {tcp.getsockname()[1]} {os.getpid()}"),
        ).listen()


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())


def awaited(pid: int, driver: int) -> int:
    """The status with which ``pid`` ends, which it does at the latest with the driver."""
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status
        if os.getppid() != driver:
            os._exit(1)
        time.sleep(0.005)


def main() -> None:
    driver, parent = os.getppid(), os.getpid()
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            try:
                serve(Path(line.strip()), parent)
            finally:
                os._exit(1)
        say(f"ended {os.waitstatus_to_exitcode(awaited(pid, driver))}")


if __name__ == "__main__":
    main()
