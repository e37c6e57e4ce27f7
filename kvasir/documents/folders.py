"""Folders of one's own machine, packed as the collection that a server takes.

The same folder always gives the same bytes. Invariant: nothing outside of the folder is packed, no
link is followed, and what is left out is named.
"""

from __future__ import annotations

import os
import stat
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from kvasir.core.errors import RequestError
from kvasir.documents.archive import MemberRefused, hidden, safe_name
from kvasir.documents.extract import DEFAULT_LIMITS, Progress, extract
from kvasir.documents.limits import MIB, ExtractLimits
from kvasir.documents.media import FIRST_BYTES, ZIP, media_type_of
from kvasir.documents.values import Extraction, Unread

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can tell: times are no content
_PLAIN_FILE = (stat.S_IFREG | 0o644) << 16
_CHUNK_BYTES = MIB


def pack_folder(
    folder: Path, target: Path, limits: ExtractLimits = DEFAULT_LIMITS
) -> tuple[Unread, ...]:
    """Write what can be read below ``folder`` into the new zip ``target``; gives what is left out.

    Raises ``RequestError`` where that is more than an upload may be, or nothing, and ``OSError``.
    """
    left_out: list[Unread] = []
    n_hidden = n_packed = n_bytes = 0
    with zipfile.ZipFile(target, "x", zipfile.ZIP_STORED) as archive:
        for path in sorted(_files(folder), key=lambda path: _relative(path, folder)):
            name = _relative(path, folder)
            if hidden(name):
                n_hidden += 1
                continue
            try:
                safe_name(name, limits.depth)
                _refuse(path)
                n_bytes += _add(archive, path, name)
            except (RequestError, OSError) as error:
                left_out.append(Unread(None, "file", f"{_shown(name)}: {_reason(error)}"))
                continue
            n_packed += 1
            if n_packed > limits.members or n_bytes > limits.file_bytes:
                raise RequestError(
                    f"{folder} holds more than the {limits.members:,} files or "
                    f"{limits.file_bytes // MIB} MiB that a collection may have; name a folder "
                    "within it",
                    param="file",
                )
    if n_hidden:
        reason = f"{n_hidden:,} hidden files and folders (names with a dot first) are left out"
        left_out.insert(0, Unread(None, "file", reason))
    if not n_packed:
        reasons = "; ".join(row.reason for row in left_out[:3]) or "it is empty"
        raise RequestError(f"no file in {folder} can be read: {reasons}", param="file")
    return tuple(left_out)


def extract_folder(
    folder: Path, limits: ExtractLimits = DEFAULT_LIMITS, progress: Progress | None = None
) -> Extraction:
    """The documents below ``folder``, by the rules of ``extract`` for a zip of it. Raises what
    ``pack_folder`` and ``extract`` do."""
    with tempfile.TemporaryDirectory(prefix="kvasir-") as scratch:
        packed = Path(scratch) / "folder.zip"
        left_out = pack_folder(folder, packed, limits)
        extraction = extract(packed, f"{folder.resolve().name}.zip", limits, progress)
    return replace(extraction, unread=left_out + extraction.unread)


def _files(folder: Path) -> Iterator[Path]:
    """Files and links below ``folder``; a hidden folder is itself one entry, and is not entered."""
    for parent, folders, files in os.walk(folder, onerror=_raise):
        for name in list(folders):
            path = Path(parent, name)
            if path.is_symlink() or hidden(name):
                folders.remove(name)
                yield path
        for name in files:
            yield Path(parent, name)


def _raise(error: OSError) -> None:
    raise error


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _refuse(path: Path) -> None:
    """Raise for what a server would not read of a collection."""
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        raise MemberRefused("it is a link, and links are not followed")
    if not stat.S_ISREG(status.st_mode):
        raise MemberRefused("it is not a plain file")
    if not status.st_size:
        raise MemberRefused("it is empty")
    with path.open("rb") as stream:
        media_type = media_type_of(path.name, stream.read(FIRST_BYTES))
    if media_type == ZIP and path.suffix.lower() not in {".docx", ".epub"}:
        raise MemberRefused("an archive within a collection is not opened; upload it by itself")


def _add(archive: zipfile.ZipFile, path: Path, name: str) -> int:
    """Pack the file; gives its bytes."""
    info = zipfile.ZipInfo(name, _EPOCH)
    info.external_attr = _PLAIN_FILE
    info.create_system = 3  # Unix: whose attributes those are
    n_bytes = 0
    with path.open("rb") as source, archive.open(info, "w", force_zip64=True) as member:
        while chunk := source.read(_CHUNK_BYTES):
            member.write(chunk)
            n_bytes += len(chunk)
    return n_bytes


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"it cannot be read ({error.strerror})"
    return str(error)


def _shown(name: str) -> str:
    return name[:200].encode("utf-8", "replace").decode("utf-8")
