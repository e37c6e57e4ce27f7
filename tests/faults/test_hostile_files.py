"""Bombs and hostile files of each format: a refusal with its reason, or partial text that says what
is missing; always in bounded time and memory, and never another exception."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sample_files import (
    A4,
    bare_docx,
    flate,
    page_text,
    pdf_of,
    sample_epub,
    sample_pdf,
    stream,
    word_xml,
    xhtml,
    zip_of,
)

from kvasir.core.errors import UnreadableFile, UnsupportedFile
from kvasir.documents.allowance import Allowance
from kvasir.documents.extract import extract
from kvasir.documents.limits import MIB, ExtractLimits
from kvasir.documents.reading import read
from kvasir.documents.values import Extraction, check

pytestmark = pytest.mark.timeout(90)

# Small, so that what oversteps them does so soon. wall_s bounds the whole of every test.
LIMITS = ExtractLimits(
    cpu_s=20, unit_cpu_s=5, wall_s=45, memory_bytes=768 * MIB, expansion_floor_bytes=4 * MIB
)
SECRET = "root:x:0:0"  # of a file that documents try to draw in
Outcome = Extraction | UnreadableFile | UnsupportedFile


def outcome_of(tmp_path: Path, data: bytes, name: str) -> Outcome:
    path = tmp_path / "upload"
    path.write_bytes(data)
    try:
        extraction = extract(path, name, LIMITS)
    except (UnreadableFile, UnsupportedFile) as error:
        return error
    assert sum(len(d.text.encode()) for d in extraction.documents) <= LIMITS.allowed_bytes(
        len(data)
    )
    assert SECRET not in "".join(d.text for d in extraction.documents)
    return extraction


def refused(tmp_path: Path, data: bytes, name: str) -> str:
    """The reason for which the file is refused."""
    outcome = outcome_of(tmp_path, data, name)
    assert isinstance(outcome, UnreadableFile)
    return str(outcome)


def read_in_part(tmp_path: Path, data: bytes, name: str) -> tuple[str, str]:
    """The text that was read, and the reasons for what was not."""
    outcome = outcome_of(tmp_path, data, name)
    assert isinstance(outcome, Extraction)
    rows = [row for d in outcome.documents for row in d.unread] + list(outcome.unread)
    return "\n".join(d.text for d in outcome.documents), "\n".join(row.reason for row in rows)


# --- archives -------------------------------------------------------------------------------------


def zeros(n_mib: int) -> bytes:
    """So many MiB of spaces, deflated as a raw stream."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return b"".join(packer.compress(b" " * MIB) for _ in range(n_mib)) + packer.flush()


def raw_zip(members: list[tuple[str, bytes, int, int]], *, overlapping: bool = False) -> bytes:
    """An archive of deflated streams: name, stream, the size and the checksum to declare. Where
    ``overlapping``, all entries name the first one's bytes."""
    out = bytearray()
    entries = bytearray()
    for number, (name, deflated, size, crc) in enumerate(members):
        offset = 0 if overlapping else len(out)
        sizes = struct.pack("<IIIHH", crc, len(deflated), size, len(name), 0)
        if not overlapping or number == 0:
            out += b"PK\3\4" + struct.pack("<HHHHH", 20, 0, 8, 0, 33) + sizes
            out += name.encode() + deflated
        entries += b"PK\1\2" + struct.pack("<HHHHHH", 20, 20, 0, 8, 0, 33) + sizes
        entries += struct.pack("<HHHII", 0, 0, 0, 0, offset) + name.encode()
    end = struct.pack("<HHHHIIH", 0, 0, len(members), len(members), len(entries), len(out), 0)
    return bytes(out + entries + b"PK\5\6" + end)


def test_a_bomb_in_a_zip_costs_its_member(tmp_path: Path) -> None:
    crc = 0
    for _ in range(300):
        crc = zlib.crc32(b" " * MIB, crc)
    good = zlib.compress(b"good", 9)[2:-4]
    members = [
        ("a.txt", good, 4, zlib.crc32(b"good")),
        ("bomb.txt", zeros(300), 300 * MIB, crc),
        ("liar.txt", zeros(300), 1000, crc),  # says that it is small
    ]
    text, reasons = read_in_part(tmp_path, raw_zip(members), "a.zip")
    assert text == "good"
    assert "bomb.txt" in reasons
    assert "liar.txt" in reasons


def test_many_members_that_each_expand_are_bounded_together(tmp_path: Path) -> None:
    data = zip_of({f"{n:02}.txt": f"{n} " + "x" * 3 * MIB for n in range(20)})
    text, reasons = read_in_part(tmp_path, data, "a.zip")
    assert len(text) < 2 * LIMITS.allowed_bytes(len(data))
    assert "19.txt" in reasons


def test_members_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    deflated = zlib.compress(b"x" * 1000, 9)[2:-4]
    shared = [(f"{n}.txt", deflated, 1000, zlib.crc32(b"x" * 1000)) for n in range(5000)]
    assert "overlap" in refused(tmp_path, raw_zip(shared, overlapping=True), "a.zip")


@pytest.mark.parametrize("size", [2**32 - 2, 2**31])
def test_huge_declared_sizes_are_not_believed(tmp_path: Path, size: int) -> None:
    deflated = zlib.compress(b"small", 9)[2:-4]
    data = raw_zip([("a.txt", deflated, size, zlib.crc32(b"small"))])
    assert "a.txt" in refused(tmp_path, data, "a.zip")


def test_archives_within_archives_are_not_opened(tmp_path: Path) -> None:
    inner = zip_of({"x.txt": "x"})
    for _ in range(20):
        inner = zip_of({"inner.zip": inner, "b.zip": inner[:20]})
    assert "archive within an archive" in refused(tmp_path, inner, "a.zip")


def test_a_table_of_contents_of_many_members_ends(tmp_path: Path) -> None:
    data = raw_zip([(f"{n}", b"\3\0", 0, 0) for n in range(40_000)])
    assert "no text was found" in refused(tmp_path, data, "a.zip")
    text, reasons = read_in_part(
        tmp_path, zip_of({f"{n:05}.txt": "x" for n in range(11_000)}), "a.zip"
    )
    assert len(text) == 2 * 10_000 - 1
    assert "1,000 further files" in reasons


def test_a_hostile_member_costs_itself(tmp_path: Path) -> None:
    """Also where it ends the process that reads the collection: then its page alone is lost."""
    data = zip_of(
        {
            "a.txt": "good",
            "b.docx": bare_docx(b"<a" * 50_000),
            "c.pdf": form_within_itself(),
            "d.md": "# d",
        }
    )
    text, reasons = read_in_part(tmp_path, data, "a.zip")
    assert text == "good\nbefore\n\n# d"
    assert "b.docx: its part word/document.xml is not sound XML" in reasons
    assert "ended the process" in reasons


# --- XML in DOCX and EPUB -------------------------------------------------------------------------

LAUGHS = (
    "<!DOCTYPE x ["
    + "<!ENTITY l0 'ha'>"
    + "".join(f"<!ENTITY l{n} '{f'&l{n - 1};' * 10}'>" for n in range(1, 12))
    + "]>"
)
OUTSIDE = (
    '<!DOCTYPE x [<!ENTITY out SYSTEM "file:///etc/passwd">'
    '<!ENTITY % p SYSTEM "file:///etc/passwd"> %p;]>'
)


@pytest.mark.parametrize(("doctype", "entity"), [(LAUGHS, "l11"), (OUTSIDE, "out")])
def test_entities_are_never_expanded(tmp_path: Path, doctype: str, entity: str) -> None:
    body = f"<w:p><w:r><w:t>seen &{entity};</w:t></w:r></w:p><w:p w:x='&{entity};'/>"
    outcome = outcome_of(tmp_path, bare_docx(word_xml(body, doctype)), "a.docx")
    if isinstance(outcome, Extraction):
        assert len(outcome.documents[0].text) < 100
    chapter = xhtml("x", f"<p>seen &{entity};</p>").replace("<!DOCTYPE html>", doctype)
    text, _ = read_in_part(tmp_path, sample_epub({"a.xhtml": chapter}), "a.epub")
    assert "seen" in text
    assert len(text) < 100
    page = f"{doctype}<html><p>seen &{entity};</p></html>"
    text, _ = read_in_part(tmp_path, page.encode(), "a.html")
    assert "seen" in text
    assert len(text) < 2000


def test_entities_of_a_files_own_are_not_expanded_either(tmp_path: Path) -> None:
    doctype = "<!DOCTYPE x [<!ENTITY e 'EXPANDED'>]>"
    body = "<w:p><w:r><w:t>seen &e; after</w:t></w:r></w:p>"
    assert "entities" in refused(tmp_path, bare_docx(word_xml(body, doctype)), "a.docx")
    chapter = xhtml("x", "<p>seen &e; after</p>").replace("<!DOCTYPE html>", doctype)
    text, _ = read_in_part(tmp_path, sample_epub({"a.xhtml": chapter}), "a.epub")
    assert text == "seen &e; after\n\n"


def test_deep_xml_is_refused(tmp_path: Path) -> None:
    for depth in (400, 100_000):
        deep = "<w:sdt>" * depth + "</w:sdt>" * depth
        assert "XML" in refused(tmp_path, bare_docx(word_xml(deep)), "a.docx")
    deep = "<w:tbl><w:tr><w:tc>" * 80 + "<w:p><w:r><w:t>x</w:t></w:r></w:p>"
    whole = deep + "</w:tc></w:tr></w:tbl>" * 80
    text, _ = read_in_part(tmp_path, bare_docx(word_xml(whole)), "a.docx")
    assert text == "x\n\n"


def test_a_bomb_within_a_document_is_refused(tmp_path: Path) -> None:
    spaces = word_xml("<w:p/>").encode() + b" " * (40 * MIB)
    assert "unpacked" in refused(tmp_path, bare_docx(spaces), "a.docx")
    chapter = xhtml("x", "<p>x</p>" + " " * (40 * MIB))
    assert "unpacked" in refused(tmp_path, sample_epub({"a.xhtml": chapter}), "a.epub")


def test_a_book_that_lists_one_chapter_endlessly_is_bounded(tmp_path: Path) -> None:
    chapter = xhtml("x", "<p>" + "word " * 20_000 + "</p>")
    book = sample_epub({"a.xhtml": chapter})
    opf = zipfile.ZipFile(io.BytesIO(book)).read("OEBPS/book.opf").decode()
    endless = opf.replace("</spine>", '<itemref idref="c0"/>' * 100_000 + "</spine>")
    outcome = outcome_of(
        tmp_path, sample_epub({"a.xhtml": chapter}, more={"OEBPS/book.opf": endless}), "a.epub"
    )
    assert isinstance(outcome, UnreadableFile)


def test_a_books_paths_stay_in_the_archive(tmp_path: Path) -> None:
    for target in ("../../../../../etc/passwd", "/etc/passwd", "file:///etc/passwd"):
        book = sample_epub({"a.xhtml": xhtml("x", "<p>kept</p>")})
        opf = zipfile.ZipFile(io.BytesIO(book)).read("OEBPS/book.opf").decode()
        item = f'<item id="evil" href="{target}" media-type="application/xhtml+xml"/></manifest>'
        opf = opf.replace("</manifest>", item).replace(
            "</spine>", '<itemref idref="evil"/></spine>'
        )
        data = sample_epub({"a.xhtml": xhtml("x", "<p>kept</p>")}, more={"OEBPS/book.opf": opf})
        text, reasons = read_in_part(tmp_path, data, "a.epub")
        assert text == "kept\n\n"
        assert "missing" in reasons


# --- HTML, tables, text ---------------------------------------------------------------------------


def test_deep_html_is_read_as_far_as_the_parser_goes(tmp_path: Path) -> None:
    page = "<p>before</p>" + "<div>" * 100_000 + "deep" + "</div>" * 100_000
    text, reasons = read_in_part(tmp_path, page.encode(), "a.html")
    assert text.startswith("before")
    assert "nested too deeply" in reasons


@pytest.mark.parametrize(
    "page",
    [
        b"<b>" * 1_000_000 + b"x", b"<p a='" * 300_000, b"<a " + b"x=1 " * 300_000 + b">x",
        b"<table>" * 50_000 + b"x", b"<" * 2_000_000, b"<!--" * 500_000, b"<p>x" * 500_000,
        b"&" * 1_000_000, b"<select>" * 100_000 + b"x", b"<h1>" * 100_000 + b"x",
        b"<tr><td>" * 200_000 + b"x", b"<svg>" * 100_000 + b"x", b"<pre>" * 100_000 + b"x",
    ],
)  # fmt: skip
def test_broken_html_ends(tmp_path: Path, page: bytes) -> None:
    outcome_of(tmp_path, b"<html><p>x</p>" + page, "a.html")


def test_a_table_of_a_million_columns_is_text(tmp_path: Path) -> None:
    row = ",".join(f"c{n}" for n in range(1_000_000))
    text, _ = read_in_part(tmp_path, f"{row}\n{row}\n".encode(), "a.csv")
    assert len(text) == 2 * (len(row) + 1)
    outcome_of(tmp_path, b'"' * 3_000_001, "a.csv")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("CHAPTER I\n\n" * 200_000, "a.txt"), ("\f" * 2_000_000 + "x", "a.txt"),
        ("# h\n" * 500_000, "a.md"), ("a\n" * 300_000 + "===", "a.md"),
        ("`" * 1_000_000, "a.md"), ("def f(" * 300_000, "a.py"), ("int a " * 500_000, "a.c"),
        ("int a(x\n" * 300_000, "a.c"), ("CHAPTER " + "I" * 5_000_000, "a.txt"),
        ("x" * 8 * MIB, "a.txt"), ("\n" * 3_000_000 + "x", "a.txt"),
    ],
)  # fmt: skip
def test_odd_texts_lose_nothing(tmp_path: Path, text: str, name: str) -> None:
    read_text, _ = read_in_part(tmp_path, text.encode(), name)
    assert read_text == text


# --- PDF ------------------------------------------------------------------------------------------


def test_a_million_pages_are_bounded(tmp_path: Path) -> None:
    page = (
        b"<</Type /Page /Parent 2 0 R /MediaBox [0 0 %d %d] /Contents 5 0 R /Resources <<>>>>" % A4
    )
    objects = {
        1: b"<</Type /Catalog /Pages 2 0 R>>",
        2: b"<</Type /Pages /Count 1000000 /Kids [" + b"3 0 R " * 1_000_000 + b"]>>",
        3: page,
        5: stream(page_text(["one and the same"])),
    }
    outcome_of(tmp_path, pdf_of(objects), "a.pdf")
    few = pdf_of({**objects, 2: b"<</Type /Pages /Count 1000000 /Kids [3 0 R]>>"})
    outcome = outcome_of(tmp_path, few, "a.pdf")
    if isinstance(outcome, Extraction):
        assert len(outcome.documents[0].pages) <= LIMITS.pages
        assert outcome.documents[0].unread


@pytest.mark.parametrize(
    "pages",
    [
        b"<</Type /Pages /Count 3 /Kids [2 0 R 3 0 R]>>",
        b"<</Type /Pages /Count 2147483647 /Kids [3 0 R]>>",
        b"<</Type /Pages /Count -7 /Kids [3 0 R]>>",
        b"<</Type /Pages /Count 99 /Kids 2 0 R>>",
        b"<</Type /Pages /Count 3 /Kids [" + b"[" * 100_000 + b"]>>",
        b"<<" * 100_000,
    ],
)
def test_page_trees_that_lie_or_run_in_circles_end(tmp_path: Path, pages: bytes) -> None:
    page = b"<</Type /Page /Parent 2 0 R /MediaBox [0 0 %d %d]>>" % A4
    data = pdf_of({1: b"<</Type /Catalog /Pages 2 0 R>>", 2: pages, 3: page})
    outcome_of(tmp_path, data, "a.pdf")


def test_a_bomb_in_a_page_costs_that_page_at_most(tmp_path: Path) -> None:
    data = sample_pdf([page_text(["before"]), b"", page_text(["after"])])
    at = data.index(b"13 0 obj\n")
    packed = zlib.compress(b"0 0 m " * 10 * MIB, 9)
    packed = zlib.compress(packed, 9)
    bomb = stream(packed, b"/Filter [/FlateDecode /FlateDecode]")
    end = data.index(b"endobj", at)
    data = data[: at + 9] + bomb + b"\n" + data[end:]
    outcome = outcome_of(tmp_path, data, "a.pdf")
    if isinstance(outcome, Extraction):
        assert outcome.documents[0].text.startswith("before")


@pytest.mark.parametrize(
    "contents",
    [
        b"q " * 1_000_000, b"[" * 1_000_000, b"(" * 1_000_000, b"/Im1 Do " * 200_000,
        b"BT /F1 12 Tf " + b"(x) Tj " * 200_000 + b"ET", b"<</a " * 300_000,
        b"BT /F1 1e38 Tf 1e38 0 0 1e38 1e38 1e38 Tm (x) Tj ET",
        b"BI /W 99999999 /H 99999999 ID x EI",
    ],
)  # fmt: skip
def test_odd_contents_of_pages_end(tmp_path: Path, contents: bytes) -> None:
    outcome_of(tmp_path, sample_pdf([page_text(["before"]), contents]), "a.pdf")


def form_within_itself() -> bytes:
    """A PDF whose second page draws a form that draws itself, at which pdfium runs out of stack."""
    form = stream(
        b"/Fm0 Do /Fm0 Do",
        b"/Type /XObject /Subtype /Form /BBox [0 0 9 9] /Resources <</XObject <</Fm0 50 0 R>>>>",
    )
    return sample_pdf([page_text(["before"]), b"/Im1 Do"], more={4: form, 50: form})


def test_forms_within_themselves_end(tmp_path: Path) -> None:
    text, _ = read_in_part(tmp_path, form_within_itself(), "a.pdf")
    assert text.startswith("before")


def test_tables_of_objects_that_run_in_circles_end(tmp_path: Path) -> None:
    sound = sample_pdf([page_text(["x"])])
    table = sound.rindex(b"xref\n0")
    outcome_of(tmp_path, sound.replace(b"trailer\n<<", b"trailer\n<</Prev %d " % table), "a.pdf")
    outcome_of(tmp_path, sound.replace(b"xref\n0 ", b"xref\n0 4294967295"), "a.pdf")
    outcome_of(tmp_path, sound.replace(b"/Size ", b"/Size 99999999"), "a.pdf")
    outcome_of(tmp_path, sound.replace(b"/Length ", b"/Length 99999999"), "a.pdf")
    outcome_of(tmp_path, sound[: len(sound) // 2], "a.pdf")
    labels = b"/PageLabels 60 0 R"
    circle = {60: b"<</Kids [60 0 R] /Limits [0 9]>>"}
    outcome_of(tmp_path, sample_pdf([page_text(["x"])], catalog=labels, more=circle), "a.pdf")
    outcome_of(tmp_path, sample_pdf([page_text(["x"])], more={5: flate(b"0 " * MIB)}), "a.pdf")


# --- whatever comes -------------------------------------------------------------------------------

NAMES = [f"a.{suffix}" for suffix in ("docx", "epub", "zip", "html", "md", "txt", "csv", "py")]
STARTS = [b"", b"PK\x03\x04", b"<html>", b"\xff\xfe", b"CHAPTER I\n"]
SOUND: dict[str, Callable[[], bytes]] = {
    "docx": lambda: bare_docx(word_xml("<w:p><w:r><w:t>x</w:t></w:r></w:p>")),
    "epub": lambda: sample_epub(
        {"a.xhtml": xhtml("t", "<h1>t</h1>")}, nav='<a href="a.xhtml">A</a>'
    ),
    "zip": lambda: zip_of({"a.txt": "a", "b.html": "<p>b"}),
    "html": lambda: b"<html><h1>t</h1><table><tr><td>a<td>b</table></html>",
}
SOUND_PDF = sample_pdf([page_text(["one"]), page_text(["two"])])
IN_PROCESSES = settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def in_this_process(data: bytes, name: str) -> None:
    """Read without a process of its own: quick, and for readers that cannot end it (no PDF)."""
    limits = ExtractLimits(expansion_floor_bytes=MIB, pages=50)
    try:
        extraction = read(io.BytesIO(data), name, Allowance(limits, len(data)))
    except (UnreadableFile, UnsupportedFile):
        return
    for document in extraction.documents:
        check(document)
        assert document.text.encode().decode() == document.text


def damaged(draw: st.DrawFn, sound: bytes) -> bytes:
    """``sound`` with some bytes changed, some cut out, some put in."""
    data = bytearray(sound)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 8))] = draw(st.binary(max_size=8))
    return bytes(data)


@st.composite
def damaged_files(draw: st.DrawFn) -> tuple[bytes, str]:
    kind = draw(st.sampled_from(sorted(SOUND)))
    return damaged(draw, SOUND[kind]()), f"a.{kind}"


@given(data=st.binary(max_size=400), start=st.sampled_from(STARTS), name=st.sampled_from(NAMES))
@settings(max_examples=300, deadline=None)
def test_any_bytes_give_documents_or_a_refusal(data: bytes, start: bytes, name: str) -> None:
    if b"%PDF-" not in data:
        in_this_process(start + data, name)


@given(file=damaged_files())
@settings(max_examples=300, deadline=None)
def test_damaged_files_give_documents_or_a_refusal(file: tuple[bytes, str]) -> None:
    in_this_process(*file)


@given(data=st.binary(min_size=1, max_size=3000), name=st.sampled_from([*NAMES, "a.pdf"]))
@IN_PROCESSES
def test_any_bytes_leave_the_server_as_it_was(tmp_path: Path, data: bytes, name: str) -> None:
    outcome_of(tmp_path, data, name)


@given(data=st.composite(damaged)(SOUND_PDF))
@IN_PROCESSES
def test_damaged_pdfs_leave_the_server_as_it_was(tmp_path: Path, data: bytes) -> None:
    outcome_of(tmp_path, data or b"x", "a.pdf")
