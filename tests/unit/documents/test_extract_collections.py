"""Zips and folders: members in the order of their names, and every one that is left out named."""

from __future__ import annotations

import io
import os
import stat
import zipfile
from pathlib import Path

import pytest
from sample_files import page_text, sample_pdf, zip_of

from kvasir.core.errors import RequestError, UnreadableFile
from kvasir.documents.allowance import Allowance
from kvasir.documents.folders import extract_folder, pack_folder
from kvasir.documents.limits import ExtractLimits
from kvasir.documents.reading import read
from kvasir.documents.values import Extraction

LIMITS = ExtractLimits()


def collection_of(data: bytes, limits: ExtractLimits = LIMITS) -> Extraction:
    return read(io.BytesIO(data), "files.zip", Allowance(limits, len(data)))


def names(extraction: Extraction) -> list[str]:
    return [document.name for document in extraction.documents]


def reasons(extraction: Extraction) -> str:
    return "\n".join(row.reason for row in extraction.unread)


def test_members_come_by_name_each_in_its_format() -> None:
    data = zip_of(
        {
            "b.md": "# B",
            "a/z.txt": "z",
            "a/b.pdf": sample_pdf([page_text(["p"])]),
            "Ä.txt": "umlaut",
            "empty/": b"",
        }
    )
    extraction = collection_of(data)
    assert names(extraction) == ["a/b.pdf", "a/z.txt", "b.md", "Ä.txt"]
    assert [d.media_type for d in extraction.documents[:3]] == [
        "application/pdf", "text/plain", "text/markdown",
    ]  # fmt: skip
    assert extraction.unread == ()
    assert extraction.n_chars == len("p\nz# Bumlaut")


def test_what_is_not_read_is_named_with_its_reason() -> None:
    extraction = collection_of(
        zip_of(
            {
                "a.txt": "text",
                "pic.png": b"\x89PNG\r\n\x1a\n",
                "bad.pdf": b"%PDF-1.7",
                "empty.txt": b"",
                "inner.zip": zip_of({"x.txt": "x"}),
                ".git/config": "x",
                "__MACOSX/a.txt": "x",
                "d/.DS_Store": "x",
            }
        )
    )
    assert names(extraction) == ["a.txt"]
    said = reasons(extraction)
    assert "pic.png: it is a PNG image" in said
    assert "bad.pdf: it is damaged" in said
    assert "empty.txt: no text" in said
    assert "inner.zip: an archive within an archive" in said
    assert said.count("hidden") == 1
    assert "3 hidden files" in said


@pytest.mark.parametrize(
    "name",
    [
        "../up.txt", "a/../../up.txt", "/etc/passwd", "C:/x.txt", "c:x.txt", "..\\up.txt",
        "\\\\host\\share.txt", "a\x1b[31m.txt", "a\u202etxt.exe", "x" * 2000, "/".join("d" * 40),
    ],
)  # fmt: skip
def test_names_that_lead_elsewhere_cost_their_member(name: str) -> None:
    extraction = collection_of(zip_of({name: "evil", "good.txt": "good"}))
    assert names(extraction) == ["good.txt"]
    assert len(extraction.unread) == 1


def test_the_same_name_twice_is_read_once() -> None:
    data = zip_of([("a.txt", "first"), ("./a.txt", "second"), ("b//c.txt", "third")])
    extraction = collection_of(data)
    assert [(d.name, d.text) for d in extraction.documents] == [
        ("a.txt", "first"),
        ("b/c.txt", "third"),
    ]
    assert "another file of this name" in reasons(extraction)


def test_links_devices_and_locked_members_are_not_read() -> None:
    link, pipe = zipfile.ZipInfo("link.txt"), zipfile.ZipInfo("pipe.txt")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    pipe.external_attr = (stat.S_IFIFO | 0o600) << 16
    data = bytearray(
        zip_of([(link, "/etc/passwd"), (pipe, "x"), ("a.txt", "a"), ("l.txt", "locked")])
    )
    at = data.rindex(b"PK\x01\x02")  # the last member's entry in the table of contents
    data[at + 8] |= 1
    extraction = collection_of(bytes(data))
    assert names(extraction) == ["a.txt"]
    for reason in ("it is a link", "not a plain file", "encrypted"):
        assert reason in reasons(extraction)


def test_names_without_the_flag_are_utf8_where_they_can_be() -> None:
    data = zip_of({"Größe.txt": "x"})
    flagged = zipfile.ZipFile(io.BytesIO(data)).infolist()[0].flag_bits
    assert flagged & 0x800
    plain = bytearray(data)
    plain[6:8] = b"\0\0"
    at = plain.rindex(b"PK\x01\x02")
    plain[at + 8 : at + 10] = b"\0\0"
    assert names(collection_of(bytes(plain))) == ["Größe.txt"]


def test_too_many_members_are_counted() -> None:
    extraction = collection_of(
        zip_of({f"{n:03}.txt": "x" for n in range(30)}), ExtractLimits(members=10)
    )
    assert names(extraction) == [f"{n:03}.txt" for n in range(10)]
    assert "20 further files" in reasons(extraction)


def test_a_collection_without_any_text_says_why() -> None:
    with pytest.raises(UnreadableFile, match=r"pic.png: it is a PNG image"):
        collection_of(zip_of({"pic.png": b"\x89PNG\r\n\x1a\n"}))
    with pytest.raises(UnreadableFile, match="it is empty"):
        collection_of(zip_of({}))


# --- folders --------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    (root / "src").mkdir(parents=True)
    (root / ".git").mkdir()
    (root / ".git" / "config").write_text("x")
    (root / "src" / "main.py").write_text("def main(): ...\n")
    (root / "readme.md").write_text("# Read me\n")
    (root / "image.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (root / "link.txt").symlink_to("/etc/hostname")
    (root / "up").symlink_to(root)
    (root / "nested.zip").write_bytes(zip_of({"x.txt": "x"}))
    os.mkfifo(root / "pipe")
    return root


def test_a_folder_is_read_as_its_zip_would_be(folder: Path) -> None:
    extraction = extract_folder(folder)
    assert names(extraction) == ["readme.md", "src/main.py"]
    said = reasons(extraction)
    for part in ("1 hidden", "image.png: it is a PNG", "link.txt: it is a link", "up: it is a link",
                 "nested.zip: an archive", "pipe: it is not a plain file"):  # fmt: skip
        assert part in said


def test_packing_gives_the_same_bytes_whenever_it_is_done(folder: Path, tmp_path: Path) -> None:
    left_out = pack_folder(folder, tmp_path / "1.zip")
    for path in folder.rglob("*.md"):
        os.utime(path, (1e9, 1e9))
        path.chmod(0o755)
    assert pack_folder(folder, tmp_path / "2.zip") == left_out
    assert (tmp_path / "1.zip").read_bytes() == (tmp_path / "2.zip").read_bytes()


def test_an_empty_folder_and_a_large_one_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="holds more than the 1 files"):
        pack_folder(folder, tmp_path / "1.zip", ExtractLimits(members=1))
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match="it is empty"):
        extract_folder(tmp_path / "empty")
    with pytest.raises(OSError, match="missing"):
        extract_folder(tmp_path / "missing")
