"""The home folder: one owner at a time, a secret of its own, a socket that commands talk through.

Invariant: whoever reads the secret, binds the socket or runs an engine on a home holds the
exclusive lock of that home (``OwnedHome``). The kernel releases the lock when its process ends,
however it ends, so a lock can never be stale; a socket can, and is removed by the next owner.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import socket
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kvasir.core.config import STORED_FOLDER
from kvasir.core.errors import ConfigError, HomeBusy

SECRET_BYTES = 32
# struct sockaddr_un holds 108 bytes on Linux and 104 on macOS, the closing zero included.
MAX_SOCKET_PATH_BYTES = 100


@dataclass(frozen=True, slots=True)
class Home:
    """The folder under which all data of one Kvasir lie, mode 0700. Made by ``open_home``."""

    path: Path

    @property
    def cache(self) -> Path:
        """Where models that were obtained are kept."""
        return self.path / "models"

    @property
    def stored(self) -> Path:
        """Where KV is kept on disk."""
        return self.path / STORED_FOLDER

    @property
    def socket_path(self) -> Path:
        """Where a running server listens: in the home, or where the home's record says."""
        record = self._socket_record
        if record.is_file():
            return Path(record.read_text(encoding="utf-8").strip())
        return self.path / "kvasir.sock"

    @property
    def _socket_record(self) -> Path:
        return self.path / "socket.path"

    def owner_pid(self) -> int | None:
        """The process that holds the lock at this moment, or None if nobody does."""
        try:
            fd = os.open(self.path / "lock", os.O_RDWR)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _pid_in(fd)
        finally:
            os.close(fd)
        return None

    @contextlib.contextmanager
    def own(self) -> Iterator[OwnedHome]:
        """Hold the exclusive lock. Raises ``HomeBusy`` with the owner's pid if it is taken."""
        fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = _pid_in(fd)
                raise HomeBusy(
                    f"the home folder {self.path} is in use by process {owner or 'unknown'}\n"
                    "one process at a time may run an engine on a home\n"
                    "use that server, stop it, or name another folder with --home"
                ) from None
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
            yield OwnedHome(self)
        finally:
            os.close(fd)


@dataclass(frozen=True, slots=True)
class OwnedHome:
    """A home whose lock this process holds."""

    home: Home

    def secret(self) -> bytes:
        """The home's 32 random bytes, made at the first call. Namespaces are derived from it.

        Raises ``ConfigError`` if the file is damaged: a new secret would orphan all that is kept.
        """
        path = self.home.path / "secret"
        if not path.exists():
            _write_private(path, secrets.token_bytes(SECRET_BYTES))
        if stat.S_IMODE(path.stat().st_mode) != 0o600:
            path.chmod(0o600)
        data = path.read_bytes()
        if len(data) != SECRET_BYTES:
            raise ConfigError(
                f"the secret of the home folder, {path}, has {len(data)} bytes instead of "
                f"{SECRET_BYTES}\nthe file was damaged or replaced\n"
                "restore it, or delete it to begin anew (what was kept under it is lost)"
            )
        return data

    @contextlib.contextmanager
    def bind_socket(self) -> Iterator[socket.socket]:
        """A bound Unix socket that only this user can reach; removed at the end. Until somebody
        listens on it, those who connect are told at once that nobody answers."""
        path = self._claim_socket_path()
        path.unlink(missing_ok=True)  # only the lock's holder may have one, and that is us
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.bind(str(path))
            path.chmod(0o600)
            yield sock
        finally:
            sock.close()
            path.unlink(missing_ok=True)

    def _claim_socket_path(self) -> Path:
        """The socket's path; where the home's own is too long for the system, one in a private
        temporary folder, recorded in the home so that commands find it."""
        home = self.home
        direct = home.path / "kvasir.sock"
        if len(os.fsencode(direct)) <= MAX_SOCKET_PATH_BYTES:
            home._socket_record.unlink(missing_ok=True)
            return direct
        if home._socket_record.is_file() and _is_private_folder(home.socket_path.parent):
            return home.socket_path
        path = Path(tempfile.mkdtemp(prefix="kvasir-")) / "kvasir.sock"
        if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
            raise ConfigError(
                f"no place for the server's socket: {direct} and {path} are both longer than "
                f"{MAX_SOCKET_PATH_BYTES} bytes\nthe system allows no longer socket names\n"
                "name a home folder with a shorter path with --home"
            )
        home._socket_record.unlink(missing_ok=True)
        _write_private(home._socket_record, os.fsencode(path))
        return path


def open_home(path: Path) -> Home:
    """The home at ``path``, created with mode 0700 where it is missing.

    Raises ``ConfigError`` if it cannot be created, belongs to another user, or is a folder with
    other things in it that others can read (its mode is not ours to change).
    """
    path = Path(os.path.abspath(path))
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = path.stat()
        if info.st_uid != os.getuid():
            raise ConfigError(
                f"the home folder {path} belongs to another user (uid {info.st_uid})\n"
                "it holds a secret and must be private\nname another folder with --home"
            )
        if stat.S_IMODE(info.st_mode) != 0o700:
            if any(path.iterdir()) and not (path / "lock").exists():
                raise ConfigError(
                    f"{path} has other things in it and mode {stat.S_IMODE(info.st_mode):04o}\n"
                    "a home folder must be private (mode 0700)\n"
                    f"name a folder of its own with --home, or run chmod 700 {path}"
                )
            path.chmod(0o700)
    except OSError as error:
        raise ConfigError(
            f"cannot use {path} as the home folder: {error.strerror}\n"
            "Kvasir keeps its lock, secret and models there\nname another folder with --home"
        ) from error
    return Home(path)


def _pid_in(fd: int) -> int | None:
    text = os.pread(fd, 32, 0).strip()
    return int(text) if text.isdigit() else None


def _is_private_folder(path: Path) -> bool:
    try:
        info = path.lstat()
    except OSError as error:
        if error.errno == errno.ENOENT:
            return False
        raise
    return (
        stat.S_ISDIR(info.st_mode)
        and info.st_uid == os.getuid()
        and stat.S_IMODE(info.st_mode) == 0o700
    )


def _write_private(path: Path, data: bytes) -> None:
    """Write ``data`` with mode 0600 so that ``path`` either has all of it or does not exist."""
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")  # mkstemp: 0600
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
