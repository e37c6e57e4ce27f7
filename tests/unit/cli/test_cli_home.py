"""The home folder: private, owned by one process at a time, whatever ends that process."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from kvasir.cli.home import MAX_SOCKET_PATH_BYTES, Home, open_home
from kvasir.core.errors import ConfigError, HomeBusy

_HOLD = """
import sys, time
from pathlib import Path
from kvasir.cli.home import open_home
with open_home(Path(sys.argv[1])).own() as owned:
    with owned.bind_socket() as sock:
        sock.listen()
        print("held", flush=True)
        time.sleep(60)
"""


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _holder(home: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(home)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_new_home_is_private(tmp_path: Path) -> None:
    home = open_home(tmp_path / "a" / "home")
    assert _mode(home.path) == 0o700


def test_a_home_that_others_may_read_is_closed_to_them(tmp_path: Path) -> None:
    home = open_home(tmp_path / "home")
    with home.own():
        home.path.chmod(0o755)
    assert _mode(open_home(home.path).path) == 0o700


def test_a_folder_with_other_things_in_it_keeps_its_mode_and_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="other things"):
        open_home(tmp_path)
    assert _mode(tmp_path) == 0o755


def test_a_file_cannot_be_a_home(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot use"):
        open_home(tmp_path / "file")


def test_the_second_owner_is_told_who_the_first_is(tmp_path: Path) -> None:
    home = open_home(tmp_path / "home")
    holder = _holder(home.path)
    try:
        assert home.owner_pid() == holder.pid
        with pytest.raises(HomeBusy, match=str(holder.pid)), home.own():
            pass
    finally:
        holder.kill()
        holder.wait()


def test_a_killed_owner_leaves_neither_lock_nor_socket_in_the_way(tmp_path: Path) -> None:
    home = open_home(tmp_path / "home")
    holder = _holder(home.path)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert home.owner_pid() is None
    assert home.socket_path.exists()  # stale
    with home.own() as owned, owned.bind_socket() as sock:
        sock.listen()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(home.socket_path))
    assert not home.socket_path.exists()


def test_the_lock_is_given_back(tmp_path: Path) -> None:
    home = open_home(tmp_path / "home")
    for _ in range(2):
        with home.own():
            assert home.owner_pid() == os.getpid()
        assert home.owner_pid() is None


def test_looking_for_an_owner_creates_nothing(tmp_path: Path) -> None:
    assert Home(tmp_path / "none").owner_pid() is None
    assert not (tmp_path / "none").exists()


def test_the_secret_is_made_once_and_is_private(tmp_path: Path) -> None:
    home = open_home(tmp_path / "home")
    with home.own() as owned:
        secret = owned.secret()
        assert owned.secret() == secret
    with home.own() as owned:
        assert owned.secret() == secret
    assert len(secret) == 32
    assert _mode(home.path / "secret") == 0o600
    with open_home(tmp_path / "other").own() as owned:
        assert owned.secret() != secret


def test_a_damaged_secret_is_not_replaced(tmp_path: Path) -> None:
    home = open_home(tmp_path / "home")
    with home.own() as owned:
        (home.path / "secret").write_bytes(b"short")
        with pytest.raises(ConfigError, match="5 bytes instead of 32"):
            owned.secret()
    assert (home.path / "secret").read_bytes() == b"short"


def test_the_socket_of_a_home_with_a_long_path_is_found(tmp_path: Path) -> None:
    home = open_home(tmp_path / ("long" * 25) / "home")
    assert len(os.fsencode(home.path)) > MAX_SOCKET_PATH_BYTES
    with home.own() as owned:
        for _ in range(2):
            with owned.bind_socket() as sock:
                sock.listen()
                path = Home(home.path).socket_path
                assert len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES
                assert _mode(path.parent) == 0o700
                with socket.socket(socket.AF_UNIX) as client:
                    client.connect(str(path))
    path.parent.rmdir()


def test_a_bound_socket_refuses_until_somebody_listens(tmp_path: Path) -> None:
    home = open_home(tmp_path / "home")
    with (
        home.own() as owned,
        owned.bind_socket(),
        socket.socket(socket.AF_UNIX) as client,
        pytest.raises(ConnectionRefusedError),
    ):
        client.connect(str(home.socket_path))
