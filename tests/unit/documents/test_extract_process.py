"""The process that reads a file: limited, killable, restarted without what ended it, not believed.

Children that lie stand in for ones that a hostile file has taken over; they really run."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from sample_files import page_text, sample_pdf, zip_of

from kvasir.core.errors import UnreadableFile, UnsupportedFile
from kvasir.documents import extract as extracting
from kvasir.documents.extract import extract
from kvasir.documents.limits import ExtractLimits

LIMITS = ExtractLimits(cpu_s=20, unit_cpu_s=5, wall_s=30)
FRAMES = """
import json, os, signal, sys, time
order = json.loads(sys.stdin.buffer.read())
def send(kind, payload):
    data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    sys.stdout.buffer.write(kind + len(data).to_bytes(8, "little") + data)
    sys.stdout.buffer.flush()
def document(text="abc", **changed):
    told = {"name": "a.txt", "media_type": "text/plain", "headings": [], "unread": [],
            "pages": [{"index": 0, "label": "1", "start": 0, "end": len(text)}], "paged": False}
    send(b"T", text.encode())
    send(b"D", {**told, **changed})
"""


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "upload"
    path.write_text("abc")
    return path


def child_that_says(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    monkeypatch.setattr(extracting, "_CODE", FRAMES + code)


def test_a_file_is_read_under_the_name_it_was_sent_with(text_file: Path) -> None:
    told: list[tuple[int, int]] = []
    (document,) = extract(
        text_file, "reports/ä b.md", LIMITS, lambda *at: told.append(at)
    ).documents
    assert (document.name, document.text, document.media_type) == (
        "reports/ä b.md", "abc", "text/markdown",
    )  # fmt: skip
    assert told == [(0, 1), (1, 1)]


@pytest.mark.parametrize("name", ["", "..", "/", "a\ud800.txt", "x" * 5000, "C:\\a.txt"])
def test_any_name_is_a_name(text_file: Path, name: str) -> None:
    (document,) = extract(text_file, name, LIMITS).documents
    assert document.name == name.replace("\ud800", "?")


def test_progress_counts_pages_or_members(tmp_path: Path) -> None:
    path = tmp_path / "f"
    pages = [page_text([f"p{n}"]) for n in range(4)]
    path.write_bytes(sample_pdf(pages))
    told: list[tuple[int, int]] = []
    extract(path, "a.pdf", LIMITS, lambda *at: told.append(at))
    assert told == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    path.write_bytes(zip_of({"a.pdf": sample_pdf(pages), "b.txt": "b"}))
    told.clear()
    extract(path, "a.zip", LIMITS, lambda *at: told.append(at))
    assert sorted(set(told)) == [(0, 2), (1, 2), (2, 2)]
    assert told == sorted(told)


def test_errors_name_the_file_the_reason_and_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(
        UnsupportedFile, match=r"pic\.txt cannot be read: it is a PNG.*PDF"
    ) as caught:
        extract(path, "pic.txt", LIMITS)
    assert (caught.value.param, caught.value.code) == ("file", "unsupported_file")
    path.write_bytes(b"")
    with pytest.raises(UnreadableFile, match="it is empty"):
        extract(path, "a.txt", LIMITS)
    path.write_bytes(b"x" * 100)
    with pytest.raises(UnreadableFile, match="larger than"):
        extract(path, "a.txt", ExtractLimits(file_bytes=99))
    with pytest.raises(FileNotFoundError):
        extract(tmp_path / "missing", "a.txt", LIMITS)
    path.write_bytes(b"%PDF-1.7")
    with pytest.raises(UnreadableFile, match="�\\[31m"):  # no control characters in messages
        extract(path, "\x1b[31m.pdf", LIMITS)


def test_what_progress_raises_stops_the_child(
    monkeypatch: pytest.MonkeyPatch, text_file: Path, tmp_path: Path
) -> None:
    pid = tmp_path / "pid"
    child_that_says(
        monkeypatch,
        f"open({str(pid)!r}, 'w').write(str(os.getpid())); send(b'P', [0, -1, 0, 1])\n"
        "time.sleep(60)",
    )

    class Cancelled(Exception):
        pass

    calls = []

    def progress(done: int, total: int) -> None:
        calls.append((done, total))
        if len(calls) == 3:  # the first from the child, the others from waiting
            raise Cancelled

    with pytest.raises(Cancelled):
        extract(text_file, "a.txt", LIMITS, progress)
    assert not Path(f"/proc/{pid.read_text()}").exists()


def test_a_child_that_never_answers_is_killed(
    monkeypatch: pytest.MonkeyPatch, text_file: Path
) -> None:
    monkeypatch.setattr(extracting, "_START_S", 1.0)
    child_that_says(monkeypatch, "send(b'P', [0, -1, 0, 1]); time.sleep(60)")
    with pytest.raises(UnreadableFile, match="longer than is allowed"):
        extract(text_file, "a.txt", ExtractLimits(wall_s=1))


def test_a_part_that_ends_the_process_costs_that_part(
    monkeypatch: pytest.MonkeyPatch, text_file: Path
) -> None:
    """A page, and a member, at which the child dies; the next child is told to leave it out."""
    child_that_says(
        monkeypatch,
        "send(b'P', [0, 3, 3, 9])\n"
        "skipped = [row[:2] for row in order['skip']]\n"
        "if [0, 3] not in skipped: os.kill(os.getpid(), signal.SIGSEGV)\n"
        "send(b'P', [0, 5, 5, 9])\n"
        "if [0, 5] not in skipped: os.kill(os.getpid(), signal.SIGPROF)\n"
        "document(' '.join(row[2] for row in order['skip'])); send(b'E', [])",
    )
    (document,) = extract(text_file, "a.txt", LIMITS).documents
    assert "ended the process" in document.text
    assert "more than 5 s" in document.text


def test_parts_that_end_every_process_end_the_reading(
    monkeypatch: pytest.MonkeyPatch, text_file: Path
) -> None:
    child_that_says(
        monkeypatch,
        "send(b'P', [0, len(order['skip']), 0, 9]); os.kill(os.getpid(), signal.SIGKILL)",
    )
    with pytest.raises(UnreadableFile, match="more time"):
        extract(text_file, "a.txt", LIMITS)
    child_that_says(monkeypatch, "send(b'P', [0, len(order['skip']), 0, 9]); os.abort()")
    with pytest.raises(UnreadableFile, match="ended the process"):
        extract(text_file, "a.txt", LIMITS)


LIES = [
    "document('abc', pages=[]); send(b'E', [])",
    "document('abc', pages=[{'index': 0, 'label': '1', 'start': 0, 'end': 9}]); send(b'E', [])",
    "document('abc', pages=[{'index': 0, 'label': 1, 'start': 0, 'end': 3}]); send(b'E', [])",
    "document('abc', pages=[{'index': 0, 'label': '1', 'start': 0, 'end': 3.0}]); send(b'E', [])",
    "document('abc', headings=[{'level': 0, 'title': '', 'start': 0}]); send(b'E', [])",
    "document('abc', headings=[{'level': 1, 'title': 'x' * 9999, 'start': 0}]); send(b'E', [])",
    "document('abc', headings=[{'level': 1, 'title': 'x', 'start': 4}]); send(b'E', [])",
    "document('abc', headings=[{'level': 1, 'title': '\\ud800', 'start': 0}]); send(b'E', [])",
    "document('abc', unread=[{'page': 1, 'what': 'x', 'reason': 'x'}]); send(b'E', [])",
    "document('abc', unread=[{'page': None, 'what': 'x', 'reason': 7}]); send(b'E', [])",
    "document('abc', headings=[{'level': 1, 'title': 'x', 'start': True}]); send(b'E', [])",
    "document('abc', media_type='text/evil'); send(b'E', [])",
    "document('abc', encoding=7); send(b'E', [])",
    "document('a\\0c'); send(b'E', [])",
    "document('abc', name='../x'); send(b'E', [])",
    "document('abc', name='b'); document('abc', name='a'); send(b'E', [])",
    "document('abc', name='a'); document('abc', name='a'); send(b'E', [])",
    "send(b'E', [])",
    "document(); send(b'E', [{'page': 3, 'what': 'file', 'reason': 'x'}])",
    "document(); send(b'E', {'a': 1})",
    "document(); send(b'E', 'text')",
    "send(b'T', b'\\xff\\xfe')",
    "send(b'D', {})",
    "send(b'D', b'[' * 100000)",
    "send(b'P', [1])",
    "send(b'P', ['a', 2, 3, 4])",
    "send(b'X', [])",
    "send(b'R', [False, 'a code of its own', 'x'])",
    "send(b'R', [False, '', 7])",
    "send(b'R', 7)",
    "sys.stdout.buffer.write(b'D' + (2**62).to_bytes(8, 'little'))",
    "sys.stdout.buffer.write(b'T' + (2**62).to_bytes(8, 'little'))",
    "document('x' * (17 * 2**20)); send(b'E', [])",
    "sys.stdout.buffer.write(b'T')",
    "pass",
    "while True: send(b'P', [0, 0, 0, 1] + [0] * 10**6)",
    "while True: document()",
]


@pytest.mark.parametrize("lie", LIES)
def test_no_lie_of_a_child_is_believed(
    monkeypatch: pytest.MonkeyPatch, text_file: Path, lie: str
) -> None:
    child_that_says(monkeypatch, lie)
    with pytest.raises(UnreadableFile):
        extract(text_file, "a.txt", LIMITS)


def test_the_child_that_lies_would_be_believed_if_it_did_not(
    monkeypatch: pytest.MonkeyPatch, text_file: Path
) -> None:
    child_that_says(monkeypatch, "document(); send(b'E', [])")
    assert extract(text_file, "a.txt", LIMITS).documents[0].text == "abc"


def test_a_refusal_is_short_and_of_its_kind(
    monkeypatch: pytest.MonkeyPatch, text_file: Path
) -> None:
    child_that_says(monkeypatch, "send(b'R', [True, 'unsupported_file', 'x' * 10**6])")
    with pytest.raises(UnsupportedFile) as caught:
        extract(text_file, "a.txt", LIMITS)
    assert len(str(caught.value)) < 3000


def test_the_child_is_limited_and_knows_nothing_of_the_server(
    monkeypatch: pytest.MonkeyPatch, text_file: Path
) -> None:
    """Its limits are those of the order, and neither environment nor open files are inherited."""
    monkeypatch.setenv("KVASIR_SECRET", "must not be seen")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import os, resource\n"
        "from kvasir.documents import extract_child, reading\n"
        "from kvasir.documents.values import Document, Extraction, Page\n"
        "def read(source, name, allowance):\n"
        "    kinds = (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE,\n"
        "             resource.RLIMIT_CORE)\n"
        "    fds = len(os.listdir('/proc/self/fd')) - 1\n"
        "    text = repr(([resource.getrlimit(k)[1] for k in kinds], sorted(os.environ),\n"
        "                 os.getsid(0) == os.getpid(), fds))\n"
        "    return Extraction((Document(name=name, media_type='text/plain', text=text,\n"
        "                                pages=(Page(0, '1', 0, len(text)),)),))\n"
        "reading.read = read\n"
        "extract_child.main()\n"
    )
    monkeypatch.setattr(extracting, "_CODE", code)
    with (text_file.parent / "other").open("w"):  # a file of the server's that stays its own
        (document,) = extract(text_file, "a.txt", LIMITS).documents
    assert document.text.startswith(f"([{LIMITS.memory_bytes}, 20, 0, 0], ")
    assert "KVASIR_SECRET" not in document.text
    assert document.text.endswith(", True, 4)")  # its own session; standard streams and the file


def test_threads_extract_beside_each_other(tmp_path: Path) -> None:
    texts: dict[int, str] = {}

    def one(number: int) -> None:
        path = tmp_path / str(number)
        path.write_text(f"text {number}")
        texts[number] = extract(path, "a.txt", LIMITS).documents[0].text

    threads = [threading.Thread(target=one, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {n: f"text {n}" for n in range(4)}
    assert len(os.listdir("/proc/self/fd")) < 200
