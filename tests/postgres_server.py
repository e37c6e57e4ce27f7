"""A real PostgreSQL for tests: a cluster of its own in a temporary folder, on a socket in it.

Where the binaries are missing, tests that want it skip with the reason.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

USER = "kvasir"
_UNPRIVILEGED = ("postgres", "nobody")  # the server refuses to run as root
_START_S = 60.0


def folder_of_binaries() -> Path | None:
    """Where initdb and postgres are: what PATH leads to, else the newest that Debian keeps."""
    found = [Path(name).resolve().parent for name in [shutil.which("initdb")] if name]
    debian = Path("/usr/lib/postgresql").glob("*/bin")
    found += sorted(debian, key=lambda path: int(path.parent.name.split(".")[0]), reverse=True)
    for folder in found:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    return None


@dataclass
class Postgres:
    """A running server. ``new_database`` gives the URL of an empty database."""

    folder: Path  # of the socket
    made: int = 0

    def url(self, name: str = "postgres") -> str:
        return f"postgresql://{USER}@/{name}?host={self.folder}"

    def new_database(self) -> str:
        self.made += 1
        name = f"test_{self.made}"
        with self.connected() as connection:
            connection.autocommit = True
            connection.cursor().execute(f"CREATE DATABASE {name} TEMPLATE template0")
        return self.url(name)

    def connected(self) -> contextlib.closing[Any]:
        import pg8000.dbapi

        socket = f"{self.folder}/.s.PGSQL.5432"
        return contextlib.closing(pg8000.dbapi.connect(USER, unix_sock=socket, database="postgres"))


@contextlib.contextmanager
def running_postgres() -> Iterator[Postgres]:
    """A server for as long as the block lasts; skips the test where there is none."""
    binaries = folder_of_binaries()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed: no initdb in PATH or /usr/lib/postgresql")
    folder = Path(tempfile.mkdtemp(prefix="kvasir-pg-"))  # short, as names of sockets must be
    as_whom: dict[str, Any] = {}
    if os.getuid() == 0:
        user = _unprivileged()
        os.chown(folder, user.pw_uid, user.pw_gid)
        as_whom = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    data = folder / "data"
    quiet: dict[str, Any] = {"cwd": folder, "stdout": subprocess.DEVNULL, **as_whom}
    try:
        initdb = [binaries / "initdb", "-D", data, "-U", USER, "-A", "trust", "-E", "UTF8"]
        subprocess.run([*initdb, "--no-locale", "--no-sync"], check=True, **quiet)
        options = ["-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=200"]
        log = (folder / "log").open("wb")
        server = subprocess.Popen(
            [binaries / "postgres", "-D", data, "-k", folder, *options], stderr=log, **quiet
        )
        try:
            made = Postgres(folder)
            _wait(made, server)
            yield made
        finally:
            server.terminate()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
            log.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _unprivileged() -> pwd.struct_passwd:
    for name in _UNPRIVILEGED:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    pytest.skip("PostgreSQL does not run as root, and there is no other user to run it as")


def _wait(made: Postgres, server: subprocess.Popen[bytes]) -> None:
    import pg8000.dbapi

    until_s = time.monotonic() + _START_S
    while True:
        try:
            with made.connected():
                return
        except (pg8000.dbapi.Error, OSError):
            log = (made.folder / "log").read_text(errors="replace")
            assert server.poll() is None, f"PostgreSQL has ended: {log}"
            assert time.monotonic() < until_s, f"PostgreSQL does not answer: {log}"
        time.sleep(0.05)
