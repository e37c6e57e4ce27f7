"""PDF: pages with their labels, headings from the outline, and page by page what was not read."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from sample_files import A4, SCAN, flate, image_at, page_text, pdf_of, sample_pdf

from kvasir.core.errors import UnreadableFile
from kvasir.documents.allowance import Allowance, Place
from kvasir.documents.limits import ExtractLimits
from kvasir.documents.reading import read
from kvasir.documents.values import Document, check

LIMITS = ExtractLimits()
LABELS = b"/PageLabels <</Nums [0 <</S /r>> 2 <</S /D>>]>>"
DATA = Path(os.environ.get("KVASIR_TEST_DATA", Path(__file__).parents[4] / "shared" / "data"))


def document_of(data: bytes, limits: ExtractLimits = LIMITS, **more: object) -> Document:
    allowance = Allowance(limits, len(data), **more)  # type: ignore[arg-type]
    (document,) = read(io.BytesIO(data), "a.pdf", allowance).documents
    check(document)
    return document


def real(name: str) -> Document:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{name} is not in the folder of test data")
    return document_of(path.read_bytes())


def outline(*entries: tuple[str, int, float]) -> dict[int, bytes]:
    """Objects of a flat outline: title, index of the page, height on it."""
    first, last = 100, 100 + len(entries) - 1
    objects = {99: b"<</Type /Outlines /First %d 0 R /Last %d 0 R>>" % (first, last)}
    for number, (title, page, top) in enumerate(entries, first):
        chain = b"/Next %d 0 R" % (number + 1) if number < last else b""
        objects[number] = b"<</Title (%b) /Parent 99 0 R %b /Dest [%d 0 R /XYZ 0 %d 0]>>" % (
            title.encode(), chain, 10 + 2 * page, top,
        )  # fmt: skip
    return objects


def test_every_page_has_its_printed_label_and_its_text() -> None:
    pages = [page_text([f"This is page {n}."]) for n in range(4)]
    document = document_of(sample_pdf(pages, catalog=LABELS))
    assert document.paged
    assert [page.label for page in document.pages] == ["i", "ii", "1", "2"]
    for number, page in enumerate(document.pages):
        assert document.text[page.start : page.end] == f"This is page {number}.\n"
    assert document.unread == ()


def test_lines_stay_lines_and_a_hyphen_at_their_end_stays() -> None:
    document = document_of(sample_pdf([page_text(["A line that is hyphen-", "ated here."])]))
    assert document.text == "A line that is hyphen-\nated here.\n"


def test_headings_begin_where_their_titles_stand_on_the_page() -> None:
    """Also below a running title, behind a number, and where the height decides between two."""
    pages = [
        page_text(["Wonders", "CHAPTER", "ONE", "WONDERS", "Prose on Wonders.", "1.1 More", "x"]),
        page_text(["Wonders", "Wonders", "again"]),
    ]
    entries = outline(("Wonders", 0, 780), ("More", 0, 780 - 4 * 14), ("Wonders", 1, 780 - 3))
    document = document_of(sample_pdf(pages, catalog=b"/Outlines 99 0 R", more=entries))
    found = [(h.level, h.title, document.text[h.start :].split("\n")[0]) for h in document.headings]
    assert found[0][:2] == (1, "Wonders")
    assert found[1] == (1, "More", "1.1 More")
    assert document.text[document.headings[2].start :] == "Wonders\nagain\n"
    assert [document.page_at(h.start).index for h in document.headings] == [0, 0, 1]


def test_an_outline_that_runs_in_circles_ends() -> None:
    entries = outline(("One", 0, 780), ("Two", 0, 780))
    entries[101] = entries[101].replace(b"/Parent", b"/Next 100 0 R /First 100 0 R /Parent")
    data = sample_pdf([page_text(["One", "Two"])], catalog=b"/Outlines 99 0 R", more=entries)
    assert [h.title for h in document_of(data).headings] == ["One", "Two"]


def test_scanned_pages_and_figures_are_unread_page_by_page() -> None:
    pages = [
        page_text(["Text."]),
        SCAN,
        page_text(["A figure:"]) + b" " + image_at(100, 100, 200, 150),
        page_text(["An ornament:"]) + b" " + image_at(100, 100, 20, 20),
        page_text(["A scan with its letters laid over it."]) + b" " + SCAN,
        b"100 100 m 300 300 l S",
        b"",
    ]
    document = document_of(sample_pdf(pages))
    assert [(row.page, row.what) for row in document.unread] == [
        (1, "page"), (2, "figure"), (5, "page"),
    ]  # fmt: skip
    assert "OCR" in document.unread[0].reason
    assert "200 x 150" in document.unread[1].reason
    assert len(document.pages) == 7
    assert document.text.strip().endswith("laid over it.")


def test_a_scan_alone_is_wholly_unreadable() -> None:
    with pytest.raises(UnreadableFile, match="OCR"):
        document_of(sample_pdf([SCAN, SCAN]))


def test_a_page_that_cannot_be_opened_costs_that_page() -> None:
    data = sample_pdf([page_text(["one"]), page_text(["two"]), page_text(["three"])])
    data = data.replace(b"12 0 obj\n<</Type /Page ", b"12 0 obj\n<</Type /Nope ")
    document = document_of(data)
    assert len(document.pages) == 3
    assert [(row.page, row.what) for row in document.unread] == [(1, "page")]
    assert document.text.startswith("one\n")
    assert document.text.endswith("three\n")


def test_a_page_is_skipped_for_the_reason_that_is_given_and_others_are_told() -> None:
    data = sample_pdf([page_text([f"page {n}"]) for n in range(3)])
    told: list[Place] = []
    document = document_of(data, skip={(0, 1): "it hung"}, tell=told.append)
    assert document.text == "page 0\npage 2\n"
    assert [(row.page, row.reason) for row in document.unread] == [(1, "it hung")]
    assert [place.unit for place in told] == [(0, -1), (0, 0), (0, 2)]
    assert told[-1].total == 3


def test_encrypted_and_damaged_files_are_told_apart() -> None:
    objects = {
        1: b"<</Type /Catalog /Pages 2 0 R>>",
        2: b"<</Type /Pages /Count 1 /Kids [5 0 R]>>",
        5: b"<</Type /Page /Parent 2 0 R /MediaBox [0 0 %d %d]>>" % A4,
        9: b"<</Filter /Standard /V 1 /R 2 /P -4 /O <%b> /U <%b>>>" % (b"41" * 32, b"42" * 32),
    }
    encrypted = pdf_of(objects, b"/Root 1 0 R /Encrypt 9 0 R /ID [<31> <31>]")
    with pytest.raises(UnreadableFile, match="password") as caught:
        document_of(encrypted)
    assert caught.value.code == "encrypted_file"
    with pytest.raises(UnreadableFile, match="damaged") as caught:
        document_of(b"%PDF-1.7\nnothing of it")
    assert caught.value.code == "damaged_file"


def test_filled_forms_are_mentioned() -> None:
    data = sample_pdf([page_text(["x"])], catalog=b"/AcroForm <</Fields []>>")
    assert [row.what for row in document_of(data).unread] == ["form"]


def test_text_in_a_font_without_meaning_is_unread() -> None:
    cmap = (
        b"/CIDInit /ProcSet findresource begin begincmap 1 begincodespacerange <00> <ff> "
        b"endcodespacerange 1 beginbfrange <00> <ff> <e000> endbfrange endcmap end"
    )
    font = b"<</Type /Font /Subtype /Type1 /BaseFont /Helvetica /ToUnicode 90 0 R>>"
    data = sample_pdf([page_text(["secret signs"]), page_text(["more of them"])])
    own = data.replace(b"3 0 obj\n<</Type", b"3 0 obj\n" + font + b"\nendobj\n7 0 obj\n<</Type")
    own = own.replace(b"trailer", b"90 0 obj\n" + flate(cmap) + b"\nendobj\ntrailer", 1)
    own = own[: own.rindex(b"startxref")] + b"startxref\n0\n%%EOF"  # the table is built anew
    with pytest.raises(UnreadableFile, match="fonts"):
        document_of(own)


def test_pages_beyond_the_limit_are_named() -> None:
    data = sample_pdf([page_text([f"page {n}"]) for n in range(5)])
    document = document_of(data, ExtractLimits(pages=3))
    assert len(document.pages) == 3
    assert [(row.page, row.reason) for row in document.unread] == [
        (None, "pages 4 to 5 of the file were not read")
    ]


def test_a_real_manual_with_its_headings_and_figures() -> None:
    document = real("documents/debian-policy.pdf")
    labels = [page.label for page in document.pages]
    assert len(labels) == 193
    assert labels[:3] + labels[9:12] == ["1", "2", "i", "viii", "1", "2"]
    assert len(document.text) > 480_000
    assert "\ufffe" not in document.text
    assert [row.page for row in document.unread] == [150, 151, 152, 153, 154, 155]
    by_title = {heading.title: heading for heading in document.headings}
    chapter, section = by_title["The Debian Archive"], by_title["Archive areas"]
    assert (chapter.level, section.level) == (1, 2)
    assert document.page_at(chapter.start).label == "7"
    assert document.text.startswith("CHAPTER\nTWO\nTHE DEBIAN ARCHIVE", chapter.start)
    assert document.text.startswith("2.2 Archive areas", section.start)
    placed = sum(
        heading.title.lower() in document.text[heading.start : heading.start + 200].lower()
        for heading in document.headings
    )
    assert placed > 0.9 * len(document.headings) > 300


def test_a_real_script_set_by_latex() -> None:
    document = real("documents/geotopo.pdf")
    assert len(document.pages) == 117
    assert [page.label for page in document.pages[:4]] == ["i", "ii", "iii", "1"]
    (heading,) = (h for h in document.headings if h.title.startswith("2 Mannigfaltigkeiten"))
    assert document.text.startswith("2 Mannigfaltigkeiten und\n", heading.start)
    assert document.page_at(heading.start).label == "25"
    assert {row.page for row in document.unread} == {23, 24, 30, 75}
