"""`kvasir read`, `contexts` and `ask` against a server on the home's socket, on the virtual engine:
documents are read once, kept, asked, moved, and nothing is done halfway."""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sample_files import page_text, sample_pdf
from typer.testing import CliRunner
from virtual_server import make_engine, make_served

from kvasir.cli import main
from kvasir.cli.connect import Connection
from kvasir.cli.context_client import Context, Contexts, Reading
from kvasir.cli.home import open_home
from kvasir.cli.listener import Listener, listening_in_background
from kvasir.cli.reading import follow, name_after, refusal_lines
from kvasir.core.config import Config
from kvasir.core.errors import KvasirError
from kvasir.service.app import create_app

RUN = CliRunner()
TEXT = "The raven sat on the roof. It was the third of May. " * 12
LONG = "\n\n".join(
    f"CHAPTER {n}\n\n" + f"In {1700 + n} the raven came. " * 20 for n in range(1, 21)
)


@contextlib.contextmanager
def serving(path: Path, disk_gib: float) -> Iterator[Path]:
    """The home at ``path`` with a server on it."""
    home = open_home(path)
    config = Config(home=path, disk_gib=disk_gib)
    client, _, _, geometry = make_engine(stored=config)
    with home.own() as owned, owned.bind_socket() as sock:
        made = make_served(client, geometry, home=path, secret=owned.secret())
        listener = Listener(
            create_app(made, config),
            [sock],
            grace_s=0,
            stop_engine=lambda _: client.stop(),
            on_ready=lambda: None,
        )
        with listening_in_background(listener):
            yield path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home on which a server runs."""
    with serving(tmp_path_factory.mktemp("home") / "home", 1) as path:
        yield path


@pytest.fixture(autouse=True)
def home(served: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("KVASIR_HOME", str(served))
    monkeypatch.chdir(tmp_path)
    return served


def run(*arguments: str, ok: bool = True) -> Any:
    result = RUN.invoke(main.app, list(arguments))
    assert (result.exit_code == 0) == ok, result.output
    return result


def told(*arguments: str) -> Any:
    return json.loads(run(*arguments, "--json").stdout)


def write(name: str, text: str) -> str:
    Path(name).write_text(text)
    return name


def test_a_file_is_read_once_and_asked() -> None:
    path = write("raven.txt", TEXT)
    first = run("read", path, "--name", "the raven")
    assert re.search(r"the raven is read: [\d,]+ tokens in .* \([\d,]+ computed", first.stdout)
    assert "kept on disk" in first.stdout
    again = run("read", path)
    assert "the raven is there already" in again.stdout
    asked = run("ask", "--context", "the raven", "When?", "--max-tokens", "5")
    assert asked.stdout.strip()
    match = re.search(r"([\d,]+) computed, ([\d,]+) reused", asked.stderr)
    assert match is not None
    assert int(match[1]) < 60 < int(match[2])


def test_a_question_to_the_file_reuses_the_context() -> None:
    """The same text by either way is the same KV."""
    path = write("shared.txt", TEXT + "Shared.\r\n")
    run("read", path)
    asked = run("ask", path, "When?", "--max-tokens", "3")
    match = re.search(r"([\d,]+) computed, ([\d,]+) reused", asked.stderr)
    assert match is not None
    assert int(match[1]) < 60 < int(match[2])


def test_a_dry_run_does_nothing() -> None:
    path = write("dry.txt", LONG + "dry")
    before = told("contexts", "list")
    forecast = run("read", path, "--dry-run").stdout
    assert "longer than the window" in forecast
    assert "nothing was done" in forecast
    assert told("read", path, "--dry-run")["object"] == "context.forecast"
    assert told("contexts", "list") == before


def test_a_pdf_is_asked_by_its_file_and_found_again(home: Path) -> None:
    Path("May.pdf").write_bytes(sample_pdf([page_text(["The raven came in May."])]))
    first = run("ask", "May.pdf", "When?", "--max-tokens", "3")
    assert "May.pdf:" in first.stderr
    assert "kept on disk" in first.stderr
    second = run("ask", "May.pdf", "Who?", "--max-tokens", "3")
    assert "kept on disk" not in second.stderr
    assert [c["name"] for c in told("contexts", "list")].count("May.pdf") == 1
    assert list((home / "files").glob("*")) == []  # uploads for a context do not stay


def test_asking_does_not_change_how_a_context_is_kept() -> None:
    Path("kept.pdf").write_bytes(sample_pdf([page_text(["Kept as it was."])]))
    run("read", "kept.pdf", "--name", "mine", "--ttl", "30d")
    before = told("contexts", "show", "mine")
    run("ask", "kept.pdf", "What?", "--max-tokens", "2")
    after = told("contexts", "show", "mine")
    assert after["name"] == "mine"
    assert after["expires_at"] - after["last_active_at"] == 30 * 86_400
    assert after["usage"]["requests"] == before["usage"]["requests"] + 1


def test_a_long_text_is_asked_section_by_section() -> None:
    path = write("long.txt", LONG)
    asked = run("ask", path, "In which year?", "--mode", "sweep")
    assert "reads at most 4,096; it is read in sections" in asked.stderr
    match = re.search(r"(\d+) of (\d+) sections asked", asked.stderr)
    assert match is not None
    assert match[1] == match[2]
    assert "The model" in asked.stdout
    assert "predicted" not in asked.stdout
    focused = run("ask", "--context", "long.txt", "1707", "--mode", "focus", "--sections", "2")
    assert re.search(r"2 of \d+ sections asked", focused.stderr)
    assert "CHAPTER 7" in focused.stderr
    assert "not asked" in focused.stderr
    shown = run("contexts", "show", "long.txt", "--sections").stdout
    assert shown.count("CHAPTER") >= 5


def test_without_room_nothing_is_read_and_the_text_can_be_asked_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("roomy.txt", LONG)
    with serving(tmp_path / "small home", 0.0001) as small:
        monkeypatch.setenv("KVASIR_HOME", str(small))
        assert "there is no room for it" in run("read", path, "--dry-run").stdout
        refused = run("read", path, ok=False)
        assert "--disk-gib" in refused.stderr
        assert "--keep text" in refused.stderr
        assert told("contexts", "list") == []
        asked = run("ask", path, "1705", "--mode", "focus", "--sections", "1")
        assert "its text alone is kept" in asked.stderr
        assert re.search(r"1 of \d+ sections asked", asked.stderr)
        (kept,) = told("contexts", "list")
        assert kept["keep"] == "text"


def test_a_changed_file_is_another_context_with_a_name_of_its_own() -> None:
    for text in ("One. " * 20, "Two. " * 20):
        write("changed.txt", text)
        run("read", "changed.txt")
    names = [context["name"] for context in told("contexts", "list")]
    assert {"changed.txt", "changed.txt 2"} <= set(names)


def test_contexts_are_renamed_pinned_renewed_and_forgotten() -> None:
    run("read", write("managed.txt", "Managed. " * 20), "--ttl", "2h")
    run("contexts", "rename", "managed.txt", "kept well")
    assert "pinned" in run("contexts", "pin", "kept well").stdout
    assert told("contexts", "show", "kept well")["pinned"] is True
    assert "until 20" in run("contexts", "unpin", "kept well").stdout
    run("contexts", "renew", "kept well", "--ttl", "9d")
    shown = told("contexts", "show", "kept well")
    assert shown["expires_at"] - shown["last_active_at"] == 9 * 86_400
    listed = run("contexts", "list").stdout.splitlines()
    assert listed[0].split()[:3] == ["name", "status", "tokens"]
    assert any(line.startswith("kept well") for line in listed)
    assert "is not being read: it is completed" in run("contexts", "cancel", "kept well").stdout
    assert run("contexts", "rm", "kept well", "--yes").stdout == "kept well is gone\n"
    gone = run("contexts", "show", "kept well", ok=False)
    assert len(gone.stderr.splitlines()) == 3
    assert "there is no context 'kept well'" in gone.stderr


def test_a_fork_reads_only_what_is_new() -> None:
    run("read", write("base.txt", "Base. " * 60))
    forked = run("contexts", "fork", "base.txt", write("more.txt", "And more."), "--name", "both")
    match = re.search(r"\(([\d,]+) computed, ([\d,]+) kept already", forked.stdout)
    assert match is not None
    assert int(match[1]) < 80 < int(match[2])
    assert told("contexts", "show", "both")["parent"] == told("contexts", "show", "base.txt")["id"]
    assert run("contexts", "fork", "base.txt", ok=False).exit_code == 2


def test_a_context_goes_to_a_file_and_comes_back() -> None:
    run("read", write("moved.txt", "Moved. " * 60))
    assert "moved.txt is in moved.txt.kvasir" in run("contexts", "export", "moved.txt").stdout
    refused = run("contexts", "export", "moved.txt", ok=False)
    assert "is there already" in refused.stderr
    exported = run("contexts", "export", "moved.txt", "--force")
    assert re.search(r"signed by [0-9a-f]{64}: ", exported.stderr)
    run("contexts", "rm", "moved.txt", "-y")
    back = run("contexts", "import", "moved.txt.kvasir")
    assert "moved.txt is read" in back.stdout
    assert "(0 computed" in back.stdout  # its own signature is trusted
    run("contexts", "rm", "moved.txt", "-y")
    Path("cut.kvasir").write_bytes(Path("moved.txt.kvasir").read_bytes()[:-20])
    assert "cut off" in run("contexts", "import", "cut.kvasir", ok=False).stderr
    assert "cannot read" in run("contexts", "import", "none.kvasir", ok=False).stderr


def test_an_export_that_fails_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run("read", write("half.txt", "Half. " * 60))

    def broken(_self: Contexts, _name: str) -> Iterator[bytes]:
        yield b"the beginning"
        raise KvasirError("the connection broke")

    monkeypatch.setattr(Contexts, "exported", broken)
    run("contexts", "export", "half.txt", ok=False)
    assert [path.name for path in tmp_path.iterdir()] == ["half.txt"]


def test_a_folder_and_standard_input_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("notes/sub").mkdir(parents=True)
    Path("notes/a.md").write_text("# A\n\nThe raven.\n")
    Path("notes/sub/b.html").write_text("<h1>B</h1><p>The wolf.")
    Path("notes/empty.txt").touch()
    read = run("read", "notes")
    assert "notes is read" in read.stdout
    assert "empty.txt: it is empty" in read.stderr
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Typed in. " * 9)))
    assert "typed is read" in RUN.invoke(
        main.app, ["read", "-", "--name", "typed"], input=b"Typed in. " * 9
    ).stdout  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("read", "none.txt"), "cannot read none.txt"),
        (("ask", "none.txt", "Who?"), "cannot read none.txt"),
        (("read", "image.png"), "cannot be read"),
        (("ask", "image.png", "Who?"), "cannot be read"),
        (("ask", "--context", "nobody", "Who?"), "there is no context 'nobody'"),
        (("contexts", "rm", "nobody", "-y"), "there is no context 'nobody'"),
    ],
)
def test_what_cannot_be_done_is_told_in_three_lines(arguments: tuple[str, ...], said: str) -> None:
    Path("image.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(64))
    result = run(*arguments, ok=False)
    assert result.exit_code == 1
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 3


@pytest.mark.parametrize(
    "arguments",
    [
        ("ask",),
        ("ask", "Who?"),
        ("ask", "a.txt", " "),
        ("ask", "a.txt", "--context", "b", "Who?"),
        ("ask", "-", "-", "Who?"),
        ("ask", "a.txt", "Who?", "--mode", "guess"),
        ("read",),
        ("read", "a.txt", "--ttl", "5y"),
        ("read", "a.txt", "--keep", "all"),
        ("contexts", "renew", "a", "--ttl", "soon"),
        ("models", "some/model"),
    ],
)
def test_wrong_words_are_refused_before_anything_is_done(arguments: tuple[str, ...]) -> None:
    assert run(*arguments, ok=False).exit_code == 2


class Stopped:
    """Contexts whose reading is interrupted by the user after a while."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.cancelled: list[str] = []

    def follow(self, _name: str) -> Iterator[Reading]:
        yield Reading(300, 1000, 10.0, 70.0)
        raise KeyboardInterrupt

    def cancel(self, name: str) -> Context:
        self.cancelled.append(name)
        return self.context


def test_ctrl_c_cancels_and_says_what_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    from test_cli_receipts import context

    queued = context(status="in_progress", processed=0)
    stopped = Stopped(context(status="cancelled", processed=0))
    with pytest.raises(KeyboardInterrupt):
        follow(stopped, queued)  # type: ignore[arg-type]
    assert stopped.cancelled == ["ctx_1"]
    assert "300 of 1,000 tokens are read and kept" in capsys.readouterr().err


def test_a_reading_that_failed_says_why() -> None:
    from test_cli_receipts import context

    failed = context(status="failed", error="Part 3 of 9 could not be read.")
    with pytest.raises(KvasirError, match="Part 3 of 9") as caught:
        follow(Stopped(failed), failed)  # type: ignore[arg-type]
    assert len(str(caught.value).splitlines()) == 3


def test_models_are_listed_and_never_obtained_to_be_compared(home: Path) -> None:
    (row,) = told("models")
    assert (row["model"], row["state"], row["window"]) == ("virtual", "served", 4096)
    assert "virtual" in run("models").stdout
    refused = run("models", "--for", write("some.txt", "Some."), ok=False)
    assert "is not here yet" in refused.stderr
    assert len(refused.stderr.splitlines()) == 3
    assert not (home / "models").exists()


def test_names_after_files() -> None:
    assert name_after(["dir/report.pdf"]) == "report.pdf"
    assert name_after(["a.txt", "b.txt", "c.txt"]) == "a.txt and 2 more"
    assert name_after(["-"]) == "standard input"
    assert name_after(["ctx_of.txt"]) == "text ctx_of.txt"
    assert len(name_after(["x" * 300, "y"])) <= 128


def test_refusals_of_files_are_lines() -> None:
    assert refusal_lines("a.bin cannot be read: it is a PNG; take a PDF") == (
        "a.bin cannot be read\nit is a PNG\ntake a PDF"
    )
    assert refusal_lines("no colon") == "no colon"


def test_connections_know_the_window(home: Path) -> None:
    from kvasir.cli.connect import connect

    with connect(Config(home=home)) as connection:
        assert isinstance(connection, Connection)
        assert connection.client.window() == 4096
