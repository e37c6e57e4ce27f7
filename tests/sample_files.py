"""Files that tests make themselves: PDFs written by hand, EPUBs, archives. Deterministic."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence

A4 = (595, 842)


def pdf_of(objects: Mapping[int, bytes], trailer: bytes = b"/Root 1 0 R") -> bytes:
    """A PDF of these numbered objects, with a sound table of where they are."""
    out = bytearray(b"%PDF-1.7\n")
    offsets = {}
    for number, body in objects.items():
        offsets[number] = len(out)
        out += b"%d 0 obj\n%b\nendobj\n" % (number, body)
    table = len(out)
    size = max(objects) + 1
    out += b"xref\n0 %d\n" % size
    for number in range(size):
        if number in offsets:
            out += b"%010d 00000 n \n" % offsets[number]
        else:
            out += b"0000000000 65535 f \n"
    out += b"trailer\n<</Size %d %b>>\nstartxref\n%d\n%%%%EOF\n" % (size, trailer, table)
    return bytes(out)


def stream(data: bytes, extra: bytes = b"") -> bytes:
    """A stream object."""
    return b"<</Length %d %b>>\nstream\n%b\nendstream" % (len(data), extra, data)


def flate(data: bytes) -> bytes:
    """A compressed stream object."""
    return stream(zlib.compress(data, 9), b"/Filter /FlateDecode")


IMAGE = stream(b"\x80", b"/Type /XObject /Subtype /Image /Width 1 /Height 1 /BitsPerComponent 8 "
               b"/ColorSpace /DeviceGray")  # fmt: skip


def page_text(lines: Sequence[str], top: int = 780) -> bytes:
    """What draws these lines below each other."""
    shown = b"".join(b"(%b) Tj T* " % line.encode("cp1252") for line in lines)
    return b"BT /F1 12 Tf 14 TL 72 %d Td %b ET" % (top, shown)


def image_at(left: int, bottom: int, width: int, height: int) -> bytes:
    """What draws the image ``IMAGE``."""
    return b"q %d 0 0 %d %d %d cm /Im1 Do Q" % (width, height, left, bottom)


SCAN = image_at(0, 0, *A4)


def sample_pdf(
    pages: Sequence[bytes], *, catalog: bytes = b"", more: Mapping[int, bytes] | None = None
) -> bytes:
    """A PDF of these contents. Pages are the objects 10, 12, 14, …; ``more`` are others."""
    objects = {
        1: b"<</Type /Catalog /Pages 2 0 R %b>>" % catalog,
        3: b"<</Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding>>",
        4: IMAGE,
    }
    kids = []
    for number, contents in enumerate(pages):
        page = 10 + 2 * number
        kids.append(b"%d 0 R" % page)
        objects[page] = (
            b"<</Type /Page /Parent 2 0 R /MediaBox [0 0 %d %d] /Contents %d 0 R "
            b"/Resources <</Font <</F1 3 0 R>> /XObject <</Im1 4 0 R>>>>>>" % (*A4, page + 1)
        )
        objects[page + 1] = stream(contents)
    objects[2] = b"<</Type /Pages /Count %d /Kids [%b]>>" % (len(pages), b" ".join(kids))
    return pdf_of({**objects, **(more or {})})


def zip_of(
    members: Mapping[str, bytes | str] | Sequence[tuple[zipfile.ZipInfo | str, bytes | str]],
    method: int = zipfile.ZIP_DEFLATED,
) -> bytes:
    """An archive of these members, in this order."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in members.items() if isinstance(members, Mapping) else members:
            archive.writestr(name, data, method)
    return out.getvalue()


_XHTML = (
    '<?xml version="1.0" encoding="utf-8"?>\n<!DOCTYPE html>\n'
    '<html xmlns="http://www.w3.org/1999/xhtml"><head><title>{title}</title></head>'
    "<body>{body}</body></html>"
)
_CONTAINER = (
    '<?xml version="1.0"?><container xmlns="urn:oasis:names:tc:opendocument:xmlns:container" '
    'version="1.0"><rootfiles><rootfile full-path="OEBPS/book.opf" '
    'media-type="application/oebps-package+xml"/></rootfiles></container>'
)


def xhtml(title: str, body: str) -> str:
    """A chapter."""
    return _XHTML.format(title=title, body=body)


def sample_epub(
    chapters: Mapping[str, str], *, nav: str | None = None, more: Mapping[str, bytes | str] = {}
) -> bytes:
    """A book of these files of XHTML, in this order; ``nav`` is the list of its contents."""
    items = "".join(
        f'<item id="c{n}" href="{name}" media-type="application/xhtml+xml"/>'
        for n, name in enumerate(chapters)
    )
    if nav is not None:
        items += (
            '<item id="nav" href="nav.xhtml" properties="nav" media-type="application/xhtml+xml"/>'
        )
    spine = "".join(f'<itemref idref="c{n}"/>' for n in range(len(chapters)))
    opf = (
        '<?xml version="1.0"?><package xmlns="http://www.idpf.org/2007/opf" version="3.0">'
        f"<manifest>{items}</manifest><spine>{spine}</spine></package>"
    )
    members: dict[str, bytes | str] = {
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": _CONTAINER,
        "OEBPS/book.opf": opf,
        **{f"OEBPS/{name}": text for name, text in chapters.items()},
        **more,
    }
    if nav is not None:
        members["OEBPS/nav.xhtml"] = xhtml(
            "Contents",
            f'<nav xmlns:epub="http://www.idpf.org/2007/ops" epub:type="toc">{nav}</nav>',
        )
    return zip_of(members)


_WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
_TYPES = "http://schemas.openxmlformats.org/package/2006/content-types"
_RELATIONS = "http://schemas.openxmlformats.org/package/2006/relationships"
_OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"


def bare_docx(document: bytes | str) -> bytes:
    """A DOCX whose main part is ``document``, and nothing else in it."""
    return zip_of(
        {
            "[Content_Types].xml": f'<Types xmlns="{_TYPES}"/>',
            "_rels/.rels": (
                f'<Relationships xmlns="{_RELATIONS}"><Relationship Id="r1" '
                f'Type="{_OFFICE}/officeDocument" Target="word/document.xml"/></Relationships>'
            ),
            "word/document.xml": document,
        }
    )


def word_xml(body: str, before: str = "") -> str:
    """A main part of a DOCX with this body; ``before`` stands before its root."""
    return f'{before}<w:document xmlns:w="{_WORD}"><w:body>{body}</w:body></w:document>'
