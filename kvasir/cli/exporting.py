"""Contexts to files and back.

Invariant: a file under its own name is whole; an export that ends early leaves nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from kvasir.cli import show
from kvasir.cli.context_client import Context, Contexts, pieces_of
from kvasir.core.errors import RequestError

SUFFIX = ".kvasir"


def default_file(context: Context) -> Path:
    """Where a context goes if nobody says it: after its name, in this folder."""
    stem = re.sub(r"[^\w.-]+", "-", context.called).strip("-.") or context.id
    return Path(stem + SUFFIX)


def write_export(contexts: Contexts, context: Context, target: Path, *, replace: bool) -> int:
    """Write ``context`` to ``target``; how many bytes. Raises ``RequestError`` where that cannot
    be written, or is there and not to be replaced."""
    if target.exists() and not replace:
        raise RequestError(
            f"{target} is there already\nnothing is replaced unasked\n"
            "name another file, or use --force"
        )
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    n_bytes = 0
    try:
        with part.open("xb") as stream, show.bar("exporting", "bytes") as update:
            for piece in contexts.exported(context.id):
                stream.write(piece)
                n_bytes += len(piece)
                update(n_bytes, max(n_bytes, context.n_bytes))
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(target)
    except OSError as error:
        raise RequestError(
            f"cannot write {target}: {error.strerror}\nnothing is left of it\n"
            "name a file in a folder that can be written and has room"
        ) from error
    finally:
        part.unlink(missing_ok=True)
    return n_bytes


def signer_here(home: Path) -> str:
    """The public key, in hex, with which this home signs."""
    from kvasir.contexts.portable import public_hex, signing_key

    return public_hex(signing_key(home / "signing.key"))


def signer_of(file: Path) -> str:
    """The public key, in hex, that signed an exported file. Raises ``RequestError``."""
    from kvasir.contexts.portable import PortableFile

    with PortableFile(file) as opened:
        return opened.signer


def read_export(contexts: Contexts, file: Path) -> Context:
    """The context in ``file``, taken in. Raises ``RequestError`` where it cannot be read."""
    try:
        total = file.stat().st_size
        with show.bar("importing", "bytes") as update:
            return contexts.take_in(_counted(file, total, update))
    except OSError as error:
        raise RequestError(
            f"cannot read {file}: {error.strerror}\nit must be a file that an export has written\n"
            "for example: kvasir contexts import report.kvasir"
        ) from error


def _counted(file: Path, total: int, update: show.Update) -> Iterator[bytes]:
    done = 0
    for piece in pieces_of(file):
        yield piece
        done += len(piece)
        update(done, total)
