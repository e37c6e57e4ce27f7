"""Documents on the command line with the demonstration model: read, asked and compared, with a
server and without one, interrupted, and gone on with."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_process import Server, accounts, environment, kvasir, serving
from sample_files import image_at, page_text, sample_pdf

STORY = "The lighthouse keeper was called Anselm. He kept two goats and a telescope. "


def _count(text: str, pattern: str) -> list[int]:
    """The numbers that ``pattern`` catches in ``text``."""
    match = re.search(pattern, text)
    assert match is not None, text
    return [int(group.replace(",", "")) for group in match.groups()]


def test_without_a_server_every_command_is_its_own(tmp_path: Path, embedded_gguf: Path) -> None:
    """What one process has read, the next one finds; nothing of it is computed again."""
    home, document = tmp_path / "home", tmp_path / "keeper.pdf"
    settings = {"KVASIR_MODEL": str(embedded_gguf)}
    document.write_bytes(sample_pdf([page_text([STORY] * 4), image_at(50, 50, 400, 600)]))
    read = kvasir(home, "read", str(document), **settings)
    assert read.returncode == 0, read.stderr
    tokens, computed, _ = _count(
        read.stdout, r"read: ([\d,]+) tokens in .* \(([\d,]+) computed, ([\d,]+) k"
    )
    assert computed > 50
    assert "page 2" in read.stdout  # an image alone, and said not to be read
    asked = kvasir(home, "ask", str(document), "Who kept goats?", "--max-tokens", "6", **settings)
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout.strip()
    (account,) = accounts(asked.stderr)
    assert account.reused >= tokens - 1
    assert account.computed < 30
    assert "from disk" in asked.stderr
    needed = kvasir(home, "models", "--for", str(document), str(embedded_gguf), "--json")
    assert needed.returncode == 0, needed.stderr
    (need,) = json.loads(needed.stdout)
    assert (need["tokens"], need["fits"], need["read_s"]) == (tokens, True, None)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reading") / "home"


@pytest.fixture(scope="module")
def server(home: Path, embedded_gguf: Path) -> Iterator[Server]:
    with serving(home, str(embedded_gguf), "--max-window", "2048") as running:
        yield running


def _long(path: Path, n_chapters: int) -> str:
    chapters = (
        f"CHAPTER {n}\n\nThis is the year {1800 + n}. {STORY * 10}"
        for n in range(1, n_chapters + 1)
    )
    path.write_text("\n\n".join(chapters))
    return str(path)


def test_ctrl_c_keeps_what_was_read_and_the_same_command_goes_on(
    server: Server, tmp_path: Path
) -> None:
    path = _long(tmp_path / "chapters.txt", 16)
    command = [sys.executable, "-m", "kvasir", "read", path, "--no-summaries"]
    process = subprocess.Popen(
        command, env=environment(server.home), stderr=subprocess.PIPE, text=True
    )
    until_s = time.monotonic() + 60
    while time.monotonic() < until_s and "reading" not in _statuses(server):
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on from there" in said
    assert "cancelled" in _statuses(server)
    again = kvasir(server.home, *command[3:])
    assert again.returncode == 0, again.stderr
    assert "its reading goes on" in again.stderr
    tokens, computed, kept = _count(
        again.stdout, r"read: ([\d,]+) tokens in .* \(([\d,]+) computed, ([\d,]+) kept"
    )
    assert computed + kept == tokens
    assert kept > 0


def _statuses(server: Server) -> str:
    return kvasir(server.home, "contexts", "list").stdout


def test_a_text_longer_than_the_window_is_swept(server: Server, tmp_path: Path) -> None:
    path = _long(tmp_path / "long.txt", 14)
    done = kvasir(server.home, "ask", path, "What was the keeper called?")
    assert done.returncode == 0, done.stderr
    assert "at most 2,048; it is read in sections" in done.stderr
    asked, sections = _count(done.stderr, r"([\d,]+) of ([\d,]+) sections asked")
    assert asked == sections > 1
    assert re.search(r"The model(?:'s answer, generated from| gives no answer)", done.stdout)
    assert "missed" in done.stderr or "not measured" in done.stderr
    reused, computed = _count(done.stderr, r"([\d,]+) tokens reused .*, ([\d,]+) computed")
    assert reused > computed  # sections are asked from their KV
