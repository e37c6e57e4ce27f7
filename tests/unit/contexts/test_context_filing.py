"""Uploaded files: listed when all of them is durable, else nothing of them is left."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from context_library import Made, opened

from kvasir.contexts import filing
from kvasir.contexts.filing import NoFile, Upload
from kvasir.contexts.store import StoreBroken
from kvasir.core.errors import CatalogUnavailable, RequestError, UnsupportedFile

DATA = "# Notes\n\nThe raven came in May: Größe.\n".encode()


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Made]:
    with opened(tmp_path, on_disk=False) as one:
        yield one


def upload(made: Made, data: bytes = DATA, name: str = "notes.md", **fields: int) -> Upload:
    path = made.library.store.part_path()
    path.write_bytes(data)
    return Upload(
        path=path,
        filename=name,
        purpose="user_data",
        n_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        **fields,
    )


def lying(made: Made) -> set[str]:
    return {path.name for path in made.library.store.files.iterdir() if path.suffix != ".part"}


def test_a_file_is_listed_with_its_text_and_its_bytes(made: Made) -> None:
    row = filing.take_in(made.library, "a", upload(made, expires_after_s=100))
    assert (row.status, row.media_type, row.n_documents) == ("processed", "text/markdown", 1)
    assert row.expires_at == int(made.clock.now_s) + 100
    assert filing.find(made.library, "a", row.id) == row
    assert "Größe" in filing.text_of(made.library, row)
    assert made.library.store.upload_path(row.id).read_bytes() == DATA
    assert lying(made) == {f"{row.id}.data", f"{row.id}.json"}
    assert not list(made.library.store.files.glob("*.part"))
    filing.remove(made.library, row)
    assert not lying(made)
    filing.remove(made.library, row)


def test_what_extraction_found_comes_back_as_it_was(made: Made) -> None:
    row = filing.take_in(made.library, "a", upload(made))
    extraction = filing.extracted(made.library, row)
    assert filing.from_json(filing.to_json(extraction)) == extraction
    assert extraction.documents[0].headings[0].title == "Notes"
    assert row.n_chars == extraction.n_chars


def test_of_another_tenant_it_is_not_there(made: Made) -> None:
    row = filing.take_in(made.library, "a", upload(made))
    with pytest.raises(NoFile) as theirs:
        filing.find(made.library, "b", row.id)
    with pytest.raises(NoFile) as nobodys:
        filing.find(made.library, "b", "file-" + "0" * 32)
    assert str(theirs.value).replace(row.id, "") == str(nobodys.value).replace(
        "file-" + "0" * 32, ""
    )


@pytest.mark.parametrize(
    ("data", "name", "error"),
    [
        (b"\x7fELF" + bytes(200), "a.bin", UnsupportedFile),
        (b"", "empty.txt", RequestError),
        (b"%PDF-1.4 broken", "a.pdf", RequestError),
    ],
)
def test_what_cannot_be_read_is_refused_and_leaves_nothing(
    made: Made, data: bytes, name: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        filing.take_in(made.library, "a", upload(made, data, name))
    assert not lying(made)
    assert not made.library.catalog.files.ids()


def test_a_fault_leaves_all_or_nothing(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody knows whether it is listed, its bytes stay for the next start to judge."""

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(type(made.library.store), "put_extracted", full)
    with pytest.raises(OSError, match="no space"):
        filing.take_in(made.library, "a", upload(made))
    assert not lying(made)
    monkeypatch.undo()

    def away(*_: object) -> None:
        raise CatalogUnavailable("the database is away")

    monkeypatch.setattr(type(made.library.catalog.files), "add", away)
    with pytest.raises(CatalogUnavailable):
        filing.take_in(made.library, "a", upload(made))
    assert len(lying(made)) == 2
    made.library.store.collect(made.library.catalog.files.ids(), [])
    assert not lying(made)


def test_a_text_that_was_lost_says_so(made: Made) -> None:
    row = filing.take_in(made.library, "a", upload(made))
    made.library.store.remove_file(row.id)
    with pytest.raises(StoreBroken, match="upload it again"):
        filing.text_of(made.library, row)
