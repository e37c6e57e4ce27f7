"""Which format a file has: told by its first bytes, and by its name only where those are text.

Invariant: what cannot become text is refused with the name of what it is.
"""

from __future__ import annotations

from pathlib import PurePosixPath

from kvasir.core.errors import UnreadableFile, UnsupportedFile

FIRST_BYTES = 8192  # how much of a file is looked at

PDF = "application/pdf"
DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
EPUB = "application/epub+zip"
ZIP = "application/zip"  # a collection, unless its content says otherwise
HTML = "text/html"
MARKDOWN = "text/markdown"
PLAIN = "text/plain"
CSV = "text/csv"
TSV = "text/tab-separated-values"
SOURCE = {
    "py": "text/x-python",
    "pyi": "text/x-python",
    "js": "text/javascript",
    "mjs": "text/javascript",
    "cjs": "text/javascript",
    "jsx": "text/javascript",
    "ts": "text/x-typescript",
    "tsx": "text/x-typescript",
    "go": "text/x-go",
    "rs": "text/x-rust",
    "c": "text/x-c",
    "h": "text/x-c",
    "cc": "text/x-c++",
    "cpp": "text/x-c++",
    "cxx": "text/x-c++",
    "hpp": "text/x-c++",
    "cs": "text/x-csharp",
    "java": "text/x-java",
    "kt": "text/x-kotlin",
    "swift": "text/x-swift",
    "php": "text/x-php",
    "rb": "text/x-ruby",
    "sh": "text/x-shellscript",
    "sql": "text/x-sql",
}
_BY_SUFFIX = SOURCE | {
    "md": MARKDOWN,
    "markdown": MARKDOWN,
    "mdown": MARKDOWN,
    "html": HTML,
    "htm": HTML,
    "xhtml": HTML,
    "csv": CSV,
    "tsv": TSV,
    "tab": TSV,
    "json": "application/json",
    "xml": "application/xml",
    "tex": "text/x-tex",
}
TEXTUAL = frozenset(_BY_SUFFIX.values()) | {PLAIN}
TAKEN = TEXTUAL | {PDF, DOCX, EPUB}  # of a document
WHAT_IS_TAKEN = (
    "what can be read is PDF, DOCX, HTML, EPUB, Markdown, plain text, source code, CSV, and a zip "
    "of such files"
)

_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89PNG\r\n", "a PNG image"),
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (0, b"GIF87a", "a GIF image"),
    (0, b"GIF89a", "a GIF image"),
    (0, b"II*\0", "a TIFF image"),
    (0, b"MM\0*", "a TIFF image"),
    (8, b"WEBP", "a WebP image"),
    (0, b"RIFF", "a sound, a video or an image (RIFF)"),
    (4, b"ftyp", "a video, a sound or an image (MP4, HEIF)"),
    (0, b"\x1aE\xdf\xa3", "a video (Matroska, WebM)"),
    (0, b"OggS", "a sound or a video (Ogg)"),
    (0, b"ID3", "a sound (MP3)"),
    (0, b"fLaC", "a sound (FLAC)"),
    (0, b"\x7fELF", "a program (ELF)"),
    (0, b"\xca\xfe\xba\xbe", "a program (Java class or Mach-O)"),
    (0, b"\xcf\xfa\xed\xfe", "a program (Mach-O)"),
    (0, b"\0asm", "a program (WebAssembly)"),
    (0, b"SQLite format 3\0", "a database (SQLite)"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"BZh", "a bzip2 archive"),
    (0, b"\xfd7zXZ\0", "an xz archive"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (0, b"Rar!\x1a\x07", "a RAR archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"wOFF", "a font"),
    (0, b"wOF2", "a font"),
    (0, b"GGUF", "the weights of a model (GGUF)"),
    (0, b"%!PS", "a PostScript file; convert it to PDF"),
    (0, b"{\\rtf", "an RTF file; save it as DOCX or PDF"),
    (0, b"AT&TFORM", "a DjVu file; convert it to PDF"),
    (0, b"ITSF", "a CHM file"),
)
_WITH_NUL: tuple[tuple[bytes, str], ...] = (  # too short to be sure of, so asked of binary files
    (b"MZ", "a program (Windows)"),
    (b"BM", "a BMP image"),
    (b"PAR1", "a table (Parquet)"),
)
_BOMS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
_CONTROLS = bytes(c for c in range(32) if c not in b"\t\n\r\f\b\x1b")
MOST_CONTROLS = 0.1  # of the characters of a text
MOST_ZEROS = 0.01  # a stray one is left out of the text


def unsupported(what: str) -> UnsupportedFile:
    """The error for a file that is ``what`` ("a PNG image")."""
    return UnsupportedFile(f"it is {what}", code="unsupported_file")


def suffix_of(name: str) -> str:
    """The last suffix of a file's name, in small letters and without its dot."""
    return PurePosixPath(name).suffix[1:].lower()


def media_type_of(name: str, first_bytes: bytes) -> str:
    """The media type of the file called ``name`` that begins with ``first_bytes`` (give at least
    ``FIRST_BYTES`` where there are so many). ``ZIP`` may prove to be a DOCX or EPUB when opened.

    Raises ``UnsupportedFile`` for what holds no text, ``UnreadableFile`` for an encrypted document
    of Office.
    """
    head = first_bytes[:FIRST_BYTES]
    if b"%PDF-" in head[:1024]:
        return PDF
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return ZIP
    if head.startswith(_OLE):
        raise _ole(name)
    for at, signature, what in _SIGNATURES:
        if head.startswith(signature, at):
            raise unsupported(what)
    if not head.startswith(_BOMS) and utf16_of(head) is None:
        _refuse_binary(head)
    return _text_type(name, head)


def _ole(name: str) -> UnsupportedFile | UnreadableFile:
    if suffix_of(name) in {"docx", "docm", "dotx"}:  # Office wraps what it encrypts
        return UnreadableFile("it is encrypted; save it without a password", code="encrypted_file")
    return unsupported("a document of an older Office; save it as DOCX or PDF")


def _refuse_binary(head: bytes) -> None:
    if b"\0" in head:
        for signature, what in _WITH_NUL:
            if head.startswith(signature):
                raise unsupported(what)
    if head.count(0) > MOST_ZEROS * len(head):
        raise unsupported("binary data (it holds zero bytes)")
    if head and len(head.translate(None, _CONTROLS)) < (1 - MOST_CONTROLS) * len(head):
        raise unsupported("binary data (it holds many control characters)")


def _text_type(name: str, head: bytes) -> str:
    named = _BY_SUFFIX.get(suffix_of(name))
    if named is not None:
        return named
    start = head.removeprefix(_BOMS[0]).lstrip()[:32].lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return HTML
    return PLAIN


def utf16_of(head: bytes) -> str | None:
    """ "utf-16-le" or "utf-16-be" where ``head`` looks like such text without a mark: every second
    byte of mostly Latin text is zero, and no other."""
    even, odd = head[0::2], head[1::2]
    if len(head) < 8:
        return None
    for zeros, others, encoding in ((odd, even, "utf-16-le"), (even, odd, "utf-16-be")):
        if zeros.count(0) > 0.4 * len(zeros) and not others.count(0):
            return encoding
    return None
