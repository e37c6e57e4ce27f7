"""The texts that the home keeps: uploaded files as they came, what was extracted, definitions.

Invariants: a file is there whole or not at all (written beside, synced, renamed, folder synced), so
whatever the catalog names was durable before it was named; names are made here and never come from
outside; what no row names is collected at the next start.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from kvasir.core.errors import KvasirError

_FILES, _CONTEXTS = "files", "contexts"  # folders of a home
_ID = re.compile(r"(file|ctx)-?_?[0-9a-f]{24,64}")


class StoreBroken(KvasirError):
    """Something that was kept cannot be read any more."""


class TextStore:
    """Two folders of a home: ``files`` for uploads and ``contexts`` for definitions."""

    def __init__(self, home: Path) -> None:
        """``home`` must be a folder. What a crash left half written is removed."""
        self.files = _folder(home / _FILES)
        self.contexts = _folder(home / _CONTEXTS)
        for folder in (self.files, self.contexts):
            for left in folder.glob("*.part"):
                left.unlink(missing_ok=True)

    # bytes of files ------------------------------------------------------------------------------

    def upload_path(self, file_id: str) -> Path:
        """Where the bytes of an uploaded file are."""
        return self.files / f"{_checked(file_id)}.data"

    @contextlib.contextmanager
    def writing(self, target: Path) -> Iterator[BinaryIO]:
        """Write ``target``: it is there, durable, when the block has ended, and not at all where
        the block raises."""
        part = target.with_name(f"{target.name}.{secrets.token_hex(8)}.part")
        try:
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            os.rename(part, target)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        _sync_folder(target.parent)

    def adopt(self, path: Path, file_id: str) -> None:
        """Make the file at ``path``, which lies in ``files``, the bytes of an uploaded file."""
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
        os.rename(path, self.upload_path(file_id))
        _sync_folder(self.files)

    def part_path(self) -> Path:
        """A place in ``files`` for an upload that is still coming; a crash removes it."""
        return self.files / f"{secrets.token_hex(16)}.part"

    # JSON ----------------------------------------------------------------------------------------

    def put_extracted(self, file_id: str, data: Mapping[str, Any]) -> None:
        """Keep what was extracted from a file."""
        self._put(self.files / f"{_checked(file_id)}.json", data)

    def extracted(self, file_id: str) -> dict[str, Any]:
        """What was extracted from a file. Raises ``StoreBroken``."""
        return self._get(self.files / f"{_checked(file_id)}.json")

    def put_definition(self, context_id: str, data: Mapping[str, Any]) -> None:
        """Keep what a context is made of."""
        self._put(self.contexts / f"{_checked(context_id)}.json", data)

    def definition(self, context_id: str) -> dict[str, Any]:
        """What a context is made of. Raises ``StoreBroken``."""
        return self._get(self.contexts / f"{_checked(context_id)}.json")

    def put_tree(self, context_id: str, branches: Sequence[Mapping[str, Any]]) -> None:
        """Keep the tree of a context's summaries."""
        self._put(self.contexts / f"{_checked(context_id)}.tree.json", {"branches": list(branches)})

    def has_tree(self, context_id: str) -> bool:
        """Whether the tree of a context's summaries was made."""
        return (self.contexts / f"{_checked(context_id)}.tree.json").exists()

    def tree(self, context_id: str) -> list[dict[str, Any]]:
        """The tree of a context's summaries; empty where it was not made."""
        if not self.has_tree(context_id):
            return []
        branches = self._get(self.contexts / f"{_checked(context_id)}.tree.json")["branches"]
        return list(branches)

    def _put(self, target: Path, data: Mapping[str, Any]) -> None:
        with self.writing(target) as stream:
            stream.write(json.dumps(data, ensure_ascii=True, allow_nan=False).encode("ascii"))

    def _get(self, path: Path) -> dict[str, Any]:
        try:
            data = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise StoreBroken(
                f"{path.name} in the home cannot be read ({type(error).__name__}), though the "
                "database names it. Was it removed or damaged by hand? Delete what it belongs to "
                "and upload it again."
            ) from error
        if not isinstance(data, dict):
            raise StoreBroken(f"{path.name} in the home does not hold what it should.")
        return data

    # removal -------------------------------------------------------------------------------------

    def remove_file(self, file_id: str) -> None:
        """Remove a file's bytes and text; no error where they are gone."""
        for suffix in ("data", "json"):
            (self.files / f"{_checked(file_id)}.{suffix}").unlink(missing_ok=True)

    def remove_context(self, context_id: str) -> None:
        """Remove a context's definition; no error where it is gone."""
        for suffix in ("json", "tree.json"):
            (self.contexts / f"{_checked(context_id)}.{suffix}").unlink(missing_ok=True)

    def collect(self, files: Iterable[str], contexts: Iterable[str]) -> int:
        """Remove what belongs to none of the given ids; how many were removed. For the start, when
        nobody is writing."""
        removed = 0
        for folder, known in ((self.files, set(files)), (self.contexts, set(contexts))):
            for path in folder.iterdir():
                if path.name.partition(".")[0] not in known and path.is_file():
                    path.unlink(missing_ok=True)
                    removed += 1
        return removed


def has_texts(home: Path) -> bool:
    """Whether files or contexts lie in ``home``."""
    folders = [home / name for name in (_FILES, _CONTEXTS)]
    found = (path for folder in folders if folder.is_dir() for path in folder.iterdir())
    return any(path.suffix != ".part" for path in found)


def _checked(id_: str) -> str:
    if not _ID.fullmatch(id_):
        raise ValueError(f"{id_[:80]!r} is not an id that was made here")
    return id_


def _folder(path: Path) -> Path:
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
