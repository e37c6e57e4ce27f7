"""Bytes of a text file to characters: in which encoding, and what of it was not to be decoded.

Invariant: decoding never fails. A byte that has no meaning becomes U+FFFD and is counted.
"""

from __future__ import annotations

import codecs
from dataclasses import dataclass

from charset_normalizer import from_bytes

from kvasir.documents.media import MOST_CONTROLS, unsupported, utf16_of

_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # begins as the next one does
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_SAMPLE_BYTES = 64 * 1024
_CONTROLS = dict.fromkeys((*range(9), 11, *range(14, 27), *range(28, 32), 127))


@dataclass(frozen=True, slots=True)
class Decoded:
    """A text, the encoding it was in, and how many characters could not be decoded."""

    text: str
    encoding: str
    replaced: int = 0


def decode(data: bytes, *, declared: str | None = None) -> Decoded:
    """The text of ``data``: by its byte order mark, as ``declared``, as UTF-8, or in the encoding
    that its letters look like, in this order.

    Raises ``UnsupportedFile`` where the result is not text but control characters.
    """
    decoded = _decoded(data, declared)
    sample = decoded.text[:_SAMPLE_BYTES]
    if len(sample.translate(_CONTROLS)) < (1 - MOST_CONTROLS) * len(sample):
        raise unsupported("binary data (it holds many control characters)")
    return decoded


def _decoded(data: bytes, declared: str | None) -> Decoded:
    for bom, encoding in _BOMS:
        if data.startswith(bom):
            return _replacing(data[len(bom) :], encoding)
    known = _known(declared)
    if known is not None:
        return _replacing(data, known)
    try:
        return Decoded(data.decode("utf-8"), "utf-8")
    except UnicodeDecodeError as error:
        first_bad = error.start
    utf16 = utf16_of(data[:_SAMPLE_BYTES])
    if utf16 is not None:
        return _replacing(data, utf16)
    as_utf8 = _replacing(data, "utf-8")
    if 20 * as_utf8.replaced < sum(not c.isascii() for c in as_utf8.text):
        return as_utf8  # UTF-8 with a few damaged places
    return _replacing(data, _looks_like(data, first_bad))


def _known(declared: str | None) -> str | None:
    """The codec of that name, where it is one of text and is not UTF-16: a declaration that could
    be read byte by byte is wrong there."""
    if declared is None:
        return None
    try:
        codec = codecs.lookup(declared.strip())
        "".encode(codec.name)  # not all codecs are of text
    except (LookupError, ValueError):
        return None
    if codec.name.startswith(("utf-16", "utf-32", "utf-7", "idna", "punycode", "unicode", "raw")):
        return None
    return "cp1252" if codec.name in {"iso8859-1", "ascii"} else codec.name  # as browsers do


def _replacing(data: bytes, encoding: str) -> Decoded:
    text = data.decode(encoding, "replace")
    own = data.count("\ufffd".encode(encoding)) if encoding.startswith("utf") else 0
    return Decoded(text, encoding, max(0, text.count("\ufffd") - own))


def _looks_like(data: bytes, first_bad: int) -> str:
    """A guess by what is around the first letter outside ASCII, and after it."""
    start = max(0, first_bad - _SAMPLE_BYTES // 8)
    best = from_bytes(data[start : start + _SAMPLE_BYTES]).best()
    if best is None or best.encoding in {"ascii", "latin_1", "utf_8"}:
        return "cp1252"
    alike = best.could_be_from_charset  # the same letters for these bytes
    return "cp1252" if "cp1252" in alike else best.encoding
