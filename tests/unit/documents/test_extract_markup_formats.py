"""HTML, EPUB and DOCX: text in the order of the document, headings, rows, and what is left out."""

from __future__ import annotations

import io

import docx
import pytest
from sample_files import IMAGE, bare_docx, sample_epub, word_xml, xhtml, zip_of

from kvasir.core.errors import UnreadableFile, UnsupportedFile
from kvasir.documents.allowance import Allowance
from kvasir.documents.limits import ExtractLimits
from kvasir.documents.reading import read
from kvasir.documents.values import Document, check

LIMITS = ExtractLimits()


def document_of(data: bytes | str, name: str) -> Document:
    if isinstance(data, str):
        data = data.encode("utf-8")
    (document,) = read(io.BytesIO(data), name, Allowance(LIMITS, len(data))).documents
    check(document)
    return document


def headings(document: Document) -> list[tuple[int, str, str]]:
    """Level, title, and the line of the text where each begins."""
    return [
        (h.level, h.title, document.text[h.start :].partition("\n")[0]) for h in document.headings
    ]


# --- HTML -----------------------------------------------------------------------------------------

PAGE = """<!DOCTYPE html><html><head><title>Not shown</title><style>p {}</style>
<script>alert("no")</script></head><body>
<h1>The <em>first</em>
 title</h1><p>One   two<br>three &amp; four&nbsp;five</p>after
<div><h2></h2><h3>Deeper</h3><ul><li>an item<li>another <b>bold</b>item</ul></div>
<table><tr><th>a</th><th>b</th></tr><tr><td><p>1</p><p>x</p></td><td></td></tr></table>
<pre>  kept
   as it is</pre><img src="http://example.org/x.png" alt="A picture"><!-- no -->tail
<svg><text>drawn</text></svg></body></html>"""


def test_html_is_set_in_blocks_lines_and_rows() -> None:
    document = document_of(PAGE, "page.html")
    assert document.text == (
        "The first title\n\nOne two\nthree & four\u00a0five\n\nafter\n\nDeeper\n\n"
        "- an item\n- another bolditem\n\na | b\n1 x | \n\n  kept\n   as it is\n\ntail\n"
    )
    assert headings(document) == [
        (1, "The first title", "The first title"), (3, "Deeper", "Deeper"),
    ]  # fmt: skip
    assert [row.reason for row in document.unread] == [
        'an image is not read: "A picture"', "an image is not read without a description",
    ]  # fmt: skip


def test_html_is_known_by_its_content() -> None:
    assert document_of(PAGE, "page").media_type == "text/html"
    assert document_of(PAGE, "notes.md").media_type == "text/markdown"


def test_html_in_its_declared_encoding() -> None:
    page = '<html><meta charset="ISO-8859-1"><p>Größe “x”</p></html>'
    document = document_of(page.encode("cp1252"), "page.html")
    assert document.text == "Größe “x”\n"
    assert document.encoding == "cp1252"
    # a declaration that cannot be true does not hold
    document = document_of(page.replace("ISO-8859-1", "utf-16").encode(), "page.html")
    assert document.text == "Größe “x”\n"
    document = document_of(page.replace("ISO-8859-1", "rot13").encode(), "page.html")
    assert document.text == "Größe “x”\n"


def test_html_without_text_is_unreadable() -> None:
    for page in ("<html></html>", "<html><script>x</script>", "<!DOCTYPE html>"):
        with pytest.raises(UnreadableFile, match="no text"):
            document_of(page, "page.html")


# --- EPUB -----------------------------------------------------------------------------------------

NAV = (
    '<ol><li><a href="one.xhtml">The <i>First</i></a><ol><li>'
    '<a href="one.xhtml#s%20b">Sub</a></li></ol></li>'
    '<li><a href="two.xhtml">The Second</a></li><li><a href="gone.xhtml">Gone</a></li></ol>'
)
CHAPTERS = {
    "one.xhtml": xhtml(
        "I", '<h1>I</h1><p>Caf&eacute;&nbsp;1<a id="x"/> it is</p><p id="s b">Sub b.</p>'
    ),
    "two.xhtml": xhtml("II", "<p>Second <img alt='a map'/> chapter.</p><script/><p>End.</p>"),
}  # fmt: skip


def test_a_books_chapters_come_in_order_under_their_listed_titles() -> None:
    document = document_of(sample_epub(CHAPTERS, nav=NAV), "book.epub")
    assert document.media_type == "application/epub+zip"
    assert document.text == "I\n\nCafé\u00a01 it is\n\nSub b.\n\nSecond chapter.\n\nEnd.\n\n"
    assert headings(document) == [
        (1, "The First", "I"), (2, "Sub", "Sub b."), (1, "The Second", "Second chapter."),
    ]  # fmt: skip
    assert [row.reason for row in document.unread] == ['an image is not read: "a map"']


def test_without_a_list_a_books_own_headings_count() -> None:
    assert headings(document_of(sample_epub(CHAPTERS), "b")) == [(1, "I", "I")]


def test_an_older_book_lists_its_chapters_in_another_way() -> None:
    ncx = (
        '<ncx xmlns="http://www.daisy.org/z3986/2005/ncx/"><navMap><navPoint><navLabel><text>A</text>'
        '</navLabel><content src="one.xhtml"/><navPoint><navLabel><text>B</text></navLabel>'
        '<content src="two.xhtml"/></navPoint></navPoint></navMap></ncx>'
    )
    opf = (
        '<package xmlns="http://www.idpf.org/2007/opf" version="2.0"><manifest>'
        '<item id="1" href="one.xhtml" media-type="application/xhtml+xml"/>'
        '<item id="2" href="two.xhtml" media-type="application/xhtml+xml"/>'
        '<item id="n" href="toc.ncx" media-type="application/x-dtbncx+xml"/></manifest>'
        '<spine toc="n"><itemref idref="1"/><itemref idref="2"/><itemref idref="3"/></spine>'
        "</package>"
    )
    book = sample_epub(CHAPTERS, more={"OEBPS/book.opf": opf, "OEBPS/toc.ncx": ncx})
    document = document_of(book, "b.epub")
    assert headings(document) == [(1, "A", "I"), (2, "B", "Second chapter.")]
    assert [row.what for row in document.unread] == ["figure", "chapter"]  # 3 is not there


def test_a_broken_chapter_costs_that_chapter_at_most() -> None:
    chapters = {**CHAPTERS, "bad.xhtml": "<html><body><p>not closed <b>but told"}
    document = document_of(sample_epub(chapters), "b.epub")
    assert document.text.endswith("End.\n\nnot closed but told\n\n")


def test_a_locked_book_is_refused_and_disguised_fonts_are_not() -> None:
    def locked(algorithm: str) -> bytes:
        lock = (
            '<encryption xmlns="urn:oasis:names:tc:opendocument:xmlns:container" '
            'xmlns:e="http://www.w3.org/2001/04/xmlenc#"><e:EncryptedData>'
            f'<e:EncryptionMethod Algorithm="{algorithm}"/></e:EncryptedData></encryption>'
        )
        return sample_epub(CHAPTERS, more={"META-INF/encryption.xml": lock})

    with pytest.raises(UnreadableFile, match="DRM") as caught:
        document_of(locked("http://www.w3.org/2001/04/xmlenc#aes128-cbc"), "b.epub")
    assert caught.value.code == "encrypted_file"
    assert document_of(locked("http://www.idpf.org/2008/embedding"), "b.epub").text


# --- DOCX -----------------------------------------------------------------------------------------


def word_document() -> bytes:
    document = docx.Document()
    document.add_heading("The title", 0)
    document.add_heading("Part one", 1)
    document.add_paragraph("First paragraph,\twith a tab\nand a line.")
    table = document.add_table(2, 2)
    for number, cell in enumerate(c for row in table.rows for c in row.cells):
        cell.text = f"cell {number}"
    document.add_heading("Below it", 2)
    document.add_paragraph("listed", style="List Number")
    mine = document.styles.add_style("Mine", docx.enum.style.WD_STYLE_TYPE.PARAGRAPH)
    mine.base_style = document.styles["Heading 3"]
    document.add_paragraph("By inheritance", style="Mine")
    document.add_picture(io.BytesIO(PNG))
    document.sections[0].header.paragraphs[0].text = "on every page"
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()


PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010800000000"
    "3a7e9b550000000a49444154789c63680000008200817750a5e90000000049454e44ae426082"
)


def test_word_paragraphs_tables_and_headings_in_their_order() -> None:
    document = document_of(word_document(), "a.docx")
    assert document.text == (
        "The title\nPart one\nFirst paragraph,\twith a tab\nand a line.\n"
        "cell 0 | cell 1\ncell 2 | cell 3\n\nBelow it\nlisted\nBy inheritance\n\n"
    )
    assert headings(document) == [
        (1, "The title", "The title"), (1, "Part one", "Part one"), (2, "Below it", "Below it"),
        (3, "By inheritance", "By inheritance"),
    ]  # fmt: skip
    assert [row.what for row in document.unread] == ["figure", "part"]
    assert "headers" in document.unread[1].reason


def test_word_text_is_taken_once_and_deleted_text_is_not() -> None:
    body = (
        "<w:p><w:r><w:t>kept</w:t></w:r><w:del><w:r><w:delText>gone</w:delText></w:r></w:del>"
        "<w:ins><w:r><w:t xml:space='preserve'> new</w:t></w:r></w:ins>"
        "<w:r><w:noBreakHyphen/><w:sym w:char='2192'/><w:br/>"
        "<w:footnoteReference w:id='2'/></w:r></w:p>"
        "<w:sdt><w:sdtContent><w:p><w:r><w:t>in a control</w:t></w:r></w:p></w:sdtContent></w:sdt>"
        "<w:p><w:pPr><w:outlineLvl w:val='1'/><w:numPr/></w:pPr>"
        "<w:r><w:t>Level two</w:t></w:r></w:p>"
    )
    document = document_of(bare_docx(word_xml(body)), "a.docx")
    assert document.text == "kept new-→\n[^2]\nin a control\nLevel two\n"
    assert headings(document) == [(2, "Level two", "Level two")]
    assert [row.what for row in document.unread] == ["numbers"]


def test_word_footnotes_follow_the_text() -> None:
    word = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    relations = "http://schemas.openxmlformats.org/package/2006/relationships"
    notes = (
        f'<w:footnotes xmlns:w="{word}"><w:footnote w:type="separator" w:id="0"><w:p/></w:footnote>'
        '<w:footnote w:id="2"><w:p><w:r><w:t>A note.</w:t></w:r></w:p></w:footnote></w:footnotes>'
    )
    body = "<w:p><w:r><w:t>Text</w:t><w:footnoteReference w:id='2'/></w:r></w:p>"
    members = {
        "[Content_Types].xml": "<Types/>",
        "_rels/.rels": f'<Relationships xmlns="{relations}"><Relationship Id="1" '
        f'Type="{office}/officeDocument" Target="/word/main.xml"/></Relationships>',
        "word/_rels/main.xml.rels": f'<Relationships xmlns="{relations}"><Relationship Id="1" '
        f'Type="{office}/footnotes" Target="notes.xml"/></Relationships>',
        "word/main.xml": word_xml(body),
        "word/notes.xml": notes,
    }
    assert document_of(zip_of(members), "a.docx").text == "Text[^2]\n\n[^2]: A note.\n"
    del members["word/notes.xml"]
    with pytest.raises(UnreadableFile, match=r"notes\.xml is missing"):
        document_of(zip_of(members), "a.docx")


def test_other_documents_of_offices_are_named() -> None:
    for members, what in (
        ({"[Content_Types].xml": "", "xl/workbook.xml": ""}, "Excel"),
        ({"[Content_Types].xml": "", "ppt/presentation.xml": ""}, "PowerPoint"),
        ({"mimetype": "application/vnd.oasis.opendocument.text"}, "OpenDocument"),
    ):
        with pytest.raises(UnsupportedFile, match=what):
            document_of(zip_of(members), "a.zip")
    office = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600
    with pytest.raises(UnsupportedFile, match="older Office"):
        document_of(office, "a.doc")
    with pytest.raises(UnreadableFile, match="encrypted"):
        document_of(office, "a.docx")


def test_an_image_is_an_image_whatever_it_is_called() -> None:
    with pytest.raises(UnsupportedFile, match="PNG"):
        document_of(PNG, "a.docx")
    assert IMAGE.startswith(b"<<")
