"""Uploads: multipart bodies streamed to disk, bounded while they arrive.

Invariant: no more of a body than a chunk is in memory, no more than the cap ever on disk, and what
was written is removed unless somebody takes it over.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import logging
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from fastapi import Request
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from kvasir.service.errors import ApiError, bad_request

log = logging.getLogger(__name__)

MAX_FIELD_BYTES = 16 * 1024
_MAX_FIELDS = 32
_MAX_NAME_CHARS = 255
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_IDLE_S = 60.0  # without a byte, the client is gone


@dataclass(slots=True)
class Received:
    """A form that has come: its fields, and its one file in ``path``."""

    path: Path
    fields: dict[str, str] = field(default_factory=dict)
    filename: str = ""
    n_bytes: int = 0
    sha256: str = ""


@contextlib.asynccontextmanager
async def received_form(request: Request, path: Path, cap_bytes: int) -> AsyncIterator[Received]:
    """The multipart form of ``request``, whose field ``file`` is written to ``path``; what is still
    there at the end of the block is removed. Raises ``ApiError`` 400, 408, 413 or 415."""
    boundary = _boundary(request)
    with _taken_back(path):
        with path.open("xb") as target:
            form = _Form(target, cap_bytes)
            parser = MultipartParser(boundary, form.callbacks())  # type: ignore[arg-type]
            try:
                async for chunk in chunks_of(request):
                    parser.write(chunk)
                parser.finalize()
            except MultipartParseError as error:
                raise bad_request(f"The form is not well-formed: {error}.", "file") from None
        yield form.finished(path)


@contextlib.asynccontextmanager
async def received_body(request: Request, path: Path, cap_bytes: int) -> AsyncIterator[Received]:
    """The body of ``request`` as it is, written to ``path``, as ``received_form`` does."""
    digest = hashlib.sha256()
    n_bytes = 0
    with _taken_back(path):
        with path.open("xb") as target:
            async for chunk in chunks_of(request):
                n_bytes += len(chunk)
                if n_bytes > cap_bytes:
                    raise too_large(cap_bytes)
                digest.update(chunk)
                target.write(chunk)
        yield Received(path, n_bytes=n_bytes, sha256=digest.hexdigest())


@contextlib.contextmanager
def _taken_back(path: Path) -> Iterator[None]:
    """What is still at ``path`` at the end of the block goes. A full disk is a 507."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        log.exception("there is no room for an upload")
        raise ApiError(
            507,
            "The disk of this server has no room for it. Delete files or contexts, or ask whoever "
            "runs it to make room.",
            param="file",
            code="storage_full",
        ) from error
    finally:
        path.unlink(missing_ok=True)


async def chunks_of(request: Request) -> AsyncIterator[bytes]:
    """The body's chunks. Raises ``ApiError`` 408 where none comes for a minute."""
    stream = request.stream().__aiter__()
    while True:
        try:
            async with asyncio.timeout(_IDLE_S):
                chunk = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise ApiError(
                408, f"Nothing of the upload came for {_IDLE_S:g} s.", code="request_timeout"
            ) from None
        yield chunk


def too_large(cap_bytes: int) -> ApiError:
    """An upload that is larger than is accepted."""
    return ApiError(
        413,
        f"The file is larger than the {cap_bytes // 2**20} MiB that are accepted. Send it in "
        "parts, or start the server with a larger --max-file-mib.",
        param="file",
        code="file_too_large",
    )


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not 0 < len(boundary) <= 200:
        raise ApiError(
            415,
            "Send the file as multipart/form-data, in a field named file.",
            code="unsupported_media_type",
        )
    return boundary


class _Form:
    """Takes a parser's callbacks."""

    def __init__(self, target: BinaryIO, cap_bytes: int) -> None:
        self._target = target
        self._cap_bytes = cap_bytes
        self._digest = hashlib.sha256()
        self._n_bytes = 0
        self._fields: dict[str, str] = {}
        self._filename: str | None = None
        self._header = b""
        self._value = b""
        self._headers: dict[bytes, bytes] = {}
        self._name = ""
        self._is_file = False
        self._text = bytearray()

    def callbacks(self) -> dict[str, object]:
        """As python-multipart wants them."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._data,
            "on_part_end": self._end,
        }

    def finished(self, path: Path) -> Received:
        """What came. Raises a 400 where there was no file."""
        if self._filename is None:
            raise bad_request(
                "There is no file in the form: send it in a field named file, with a file name.",
                "file",
                "missing_required_parameter",
            )
        return Received(path, self._fields, self._filename, self._n_bytes, self._digest.hexdigest())

    def _begin(self) -> None:
        self._headers, self._text = {}, bytearray()
        self._header, self._value = b"", b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self._headers[self._header.lower()] = self._value
        self._header, self._value = b"", b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._name = options.get(b"name", b"").decode("utf-8", errors="replace")
        self._is_file = self._name == "file" and b"filename" in options
        if not self._is_file:
            if len(self._fields) >= _MAX_FIELDS or b"filename" in options:
                raise bad_request("The form has fields that are not expected here.", "file")
            return
        if self._filename is not None:
            raise bad_request("One file fits in a request; a zip is a collection.", "file")
        self._filename = clean_name(options[b"filename"].decode("utf-8", errors="replace"))

    def _data(self, data: bytes, start: int, end: int) -> None:
        part = data[start:end]
        if not self._is_file:
            self._text += part
            if len(self._text) > MAX_FIELD_BYTES:
                raise bad_request(f"The field {self._name[:40]!r} is too long.", self._name[:40])
            return
        self._n_bytes += len(part)
        if self._n_bytes > self._cap_bytes:
            raise too_large(self._cap_bytes)
        self._digest.update(part)
        self._target.write(part)

    def _end(self) -> None:
        if not self._is_file:
            self._fields[self._name] = self._text.decode("utf-8", errors="replace")


def clean_name(name: str) -> str:
    """A file's name as it is shown and put into prompts: without folders, printable, bounded."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    shown = "".join(c for c in last if c.isprintable()).strip(". ")
    if len(shown) > _MAX_NAME_CHARS:
        stem, dot, suffix = shown.rpartition(".")
        keep = _MAX_NAME_CHARS - len(suffix) - 1
        shown = f"{stem[:keep]}.{suffix}" if dot and keep > 0 else shown[:_MAX_NAME_CHARS]
    return shown or "file"
