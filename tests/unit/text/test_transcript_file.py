"""Transcripts outlive the process, and nothing that lies in their file is ever trusted."""

from __future__ import annotations

import logging
import os
import random
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from sample_chats import BYTES, A, B, assistant, by_bytes, knows, opened, remember, render, user

from kvasir.core.errors import ConfigError
from kvasir.core.realm import namespace_tag
from kvasir.text.transcript import Message, Transcripts
from kvasir.text.transcript_db import FILE_NAME, forget, set_aside
from kvasir.text.transcript_file import TranscriptFile

CHILD = str(Path(__file__).with_name("remembering_child.py"))
TESTS = str(Path(__file__).parents[2])
SECRET_WORDS = "the stop in the stop"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / FILE_NAME


def talk(transcripts: Transcripts, *numbers: int, namespace: bytes = A) -> None:
    for number in numbers:
        reply = by_bytes("in the")
        remember(transcripts, [user(f"the {number}")], "in the", reply, namespace=namespace)


def known(transcripts: Transcripts, numbers: range, *, namespace: bytes = A) -> list[int]:
    return [n for n in numbers if knows(transcripts, f"the {n}", "in the", namespace=namespace)]


def rows(path: Path, sql: str = "SELECT key FROM transcripts") -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as db:
        return db.execute(sql).fetchall()


def change(path: Path, sql: str, *values: object) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        assert db.execute(sql, values).rowcount


def files_with(folder: Path, data: bytes) -> list[str]:
    return [file.name for file in folder.iterdir() if data in file.read_bytes()]


def test_every_turn_of_a_chat_is_extended_over_restarts(path: Path) -> None:
    messages: list[Message] = []
    before: list[int] = []
    for turn in range(8):
        transcripts = opened(path)
        messages.append(user(f"the {turn}"))
        prompt = transcripts.encode(A, messages, render(messages), BYTES)
        assert prompt[: len(before)] == before
        assert BYTES.decode(prompt) == render(messages)
        reply = f"stop {turn} in"
        before = remember(transcripts, messages, reply, by_bytes(reply))
        messages.append(assistant(reply))
        transcripts.close()


def test_it_is_private_and_alone_once_closed(path: Path) -> None:
    path.touch(0o644)
    transcripts = opened(path)
    talk(transcripts, 0)
    files = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert files == {FILE_NAME: 0o600, FILE_NAME + "-wal": 0o600}
    transcripts.close()
    assert [file.name for file in path.parent.iterdir()] == [FILE_NAME]
    assert rows(path, "PRAGMA user_version") == [(1,)]


def test_what_was_remembered_is_there_after_kill_9(path: Path) -> None:
    rng = random.Random(0)
    first = 0
    for _ in range(5):
        child = subprocess.Popen(
            [sys.executable, CHILD, str(path), str(first)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": TESTS},
        )
        assert child.stdout is not None
        lines = [child.stdout.readline()]  # it has begun
        time.sleep(rng.uniform(0, 0.03))
        child.send_signal(signal.SIGKILL)
        lines += child.stdout.read().splitlines()
        child.stdout.close()
        child.wait()
        assert int(lines[0]) == first
        first = int(lines[-1]) + 1
        transcripts = opened(path)
        assert all(knows(transcripts, f"the {number}", "in") for number in range(first))
        transcripts.close()
    assert first > 50


def test_the_least_recently_used_go_first_in_the_file_as_well(path: Path) -> None:
    transcripts = opened(path, capacity_bytes=8_000)
    for number in range(60):
        talk(transcripts, number)
        assert known(transcripts, range(1)) == [0]  # used again and again
    kept = known(transcripts, range(60))
    transcripts.close()
    n_bytes = rows(path, "SELECT sum(512 + length(ids)) FROM transcripts")[0][0]
    assert isinstance(n_bytes, int)
    assert 6_000 < n_bytes <= 8_000
    uses = rows(path, "SELECT used FROM transcripts")
    assert len(set(uses)) == len(uses)
    again = opened(path, capacity_bytes=8_000)
    assert known(again, range(60)) == kept
    assert kept == [0, *range(60 - len(kept) + 1, 60)]
    again.close()
    smaller = opened(path, capacity_bytes=4_000)
    fewer = known(smaller, range(60))
    assert 2 < len(fewer) < len(kept)
    assert fewer == [0, *range(60 - len(fewer) + 1, 60)]
    assert smaller.size_bytes <= 4_000
    smaller.close()
    assert len(rows(path)) == len(fewer)


def test_what_is_larger_than_all_room_is_not_kept_and_pushes_nothing_out(path: Path) -> None:
    transcripts = opened(path, capacity_bytes=4_000)
    talk(transcripts, 0)
    remember(transcripts, [user("x" * 4_000)], "in", by_bytes("in"))
    transcripts.close()
    assert len(rows(path)) == 1
    file = TranscriptFile(path, "t1-bytes", capacity_bytes=1_000, vocab_size=BYTES.vocab_size)
    roomier = Transcripts(1 << 20, file)
    remember(roomier, [user("x" * 1_000)], "in", by_bytes("in"))
    roomier.close()
    assert known(opened(path), range(1)) == [0]


def test_namespaces_never_see_each_other(path: Path) -> None:
    transcripts = opened(path)
    talk(transcripts, 0, namespace=A)
    talk(transcripts, 1, namespace=B)
    transcripts.close()
    again = opened(path)
    assert known(again, range(2), namespace=A) == [0]
    assert known(again, range(2), namespace=B) == [1]
    again.close()
    tags = {tag for (tag,) in rows(path, "SELECT namespace_tag FROM transcripts")}
    assert tags == {namespace_tag(A), namespace_tag(B)}


def test_rows_of_another_tokenizer_are_not_used_and_go_first(path: Path) -> None:
    transcripts = opened(path, capacity_bytes=8_000)
    talk(transcripts, 0, 1, 2)
    transcripts.close()
    other = opened(path, capacity_bytes=8_000, tokenizer_id="t1-other")
    assert known(other, range(3)) == []
    assert other.size_bytes == 0
    talk(other, 3)
    other.close()
    back = opened(path, capacity_bytes=8_000)
    room = (8_000 - back.size_bytes) // (back.size_bytes // 3)  # of which the other one takes some
    talk(back, *range(10, 10 + room))
    back.close()
    assert rows(path, "SELECT DISTINCT tokenizer FROM transcripts") == [("t1-bytes",)]
    again = opened(path, capacity_bytes=8_000)
    assert known(again, range(30)) == [0, 1, 2, *range(10, 10 + room)]


def test_another_tokenizer_of_the_same_turn_takes_its_place(path: Path) -> None:
    for tokenizer_id in ("t1-bytes", "t1-other"):
        transcripts = opened(path, tokenizer_id=tokenizer_id)
        talk(transcripts, 0)
        transcripts.close()
    assert rows(path, "SELECT tokenizer FROM transcripts") == [("t1-other",)]


DAMAGED_ROWS = {  # an expression of SQL for a column
    "ids moved": "ids = substr(ids, 5) || substr(ids, 1, 4)",
    "ids of odd length": "ids = substr(ids, 2)",
    "no ids": "ids = x''",
    "ids that are text": "ids = CAST(ids AS TEXT)",
    "ids that are a number": "ids = 7",
    "an id too large": "ids = x'ffffff7f'",
    "a negative id": "ids = x'ffffffff'",
    "a short key": "key = x'00'",
    "no key": "key = NULL",
    "a key that is text": "key = hex(randomblob(16))",
    "another key": "key = randomblob(32)",
    "another tag": "namespace_tag = randomblob(16)",
    "no tag": "namespace_tag = NULL",
    "a digest that is text": "digest = hex(randomblob(16))",
    "another digest": "digest = randomblob(32)",
    "a negative length": "n_chars = -1",
    "another length": "n_chars = n_chars - 1",
    "a huge length": "n_chars = 9223372036854775807",
    "a length that is a fraction": "n_chars = n_chars + 0.5",
    "a negative use": "used = -1",
    "a huge use": "used = 9223372036854775807",
    "a use that is text": "used = 'often'",
    "no checksum": "checksum = NULL",
    "another checksum": "checksum = randomblob(32)",
}


@pytest.mark.parametrize("kind", DAMAGED_ROWS)
def test_a_damaged_row_is_gone_and_the_others_stay(
    path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    transcripts = opened(path)
    talk(transcripts, 0, 1, 2)
    transcripts.close()
    change(path, f"UPDATE transcripts SET {DAMAGED_ROWS[kind]} WHERE rowid = 2")  # noqa: S608
    again = opened(path)
    assert known(again, range(3)) == [0, 2]
    talk(again, 1, 3)
    again.close()
    assert known(opened(path), range(4)) == [0, 1, 2, 3]
    assert len(caplog.messages) == 1
    assert "1 transcripts" in caplog.messages[0]


def test_ids_that_the_vocabulary_does_not_have_are_not_used(path: Path) -> None:
    transcripts = opened(path)
    talk(transcripts, 0)
    transcripts.close()
    largest = max(BYTES.encode(render([user("the 0")])))
    opened(path, vocab_size=largest + 1).close()
    assert len(rows(path)) == 1
    again = opened(path, vocab_size=largest)
    assert again.size_bytes == 0
    again.close()
    assert rows(path) == []


def test_a_row_of_another_tokenizer_is_checked_before_it_counts(path: Path) -> None:
    transcripts = opened(path, tokenizer_id="t1-other")
    talk(transcripts, 0, 1, 2, 3)
    transcripts.close()
    change(path, "UPDATE transcripts SET ids = NULL WHERE rowid = 1")
    change(path, "UPDATE transcripts SET used = 'x' WHERE rowid = 2")
    change(path, "UPDATE transcripts SET key = 'x' WHERE rowid = 3")
    opened(path).close()
    assert len(rows(path)) == 1


def full(path: Path) -> None:
    transcripts = opened(path)
    talk(transcripts, *range(200))
    transcripts.close()


def no_database(path: Path) -> None:
    path.write_bytes(b"the secret of somebody else" * 1000)


def cut(path: Path) -> None:
    full(path)
    os.truncate(path, path.stat().st_size // 2)


def scrambled(path: Path) -> None:
    full(path)
    data = bytearray(path.read_bytes())
    data[4096:] = random.Random(0).randbytes(len(data) - 4096)
    path.write_bytes(data)


def other_tables(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE transcripts (key, ids)")


def with_a_trigger(path: Path) -> None:
    full(path)
    with closing(sqlite3.connect(path)) as db:
        db.execute(
            "CREATE TRIGGER t AFTER INSERT ON transcripts BEGIN DELETE FROM transcripts; END"
        )


def a_view(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE t (a)")
        db.execute("CREATE VIEW transcripts AS SELECT a AS key FROM t")
        db.execute("PRAGMA user_version = 1")


def a_negative_version(path: Path) -> None:
    full(path)
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = -1")


def a_table_is_gone(path: Path) -> None:
    full(path)
    with closing(sqlite3.connect(path)) as db:
        db.execute("DROP TABLE transcripts")


def huge(path: Path) -> None:
    full(path)
    os.truncate(path, 300 << 20)  # without taking room on the disk


def a_fifo(path: Path) -> None:
    os.mkfifo(path)


DAMAGED_FILES = [
    no_database, cut, scrambled, other_tables, with_a_trigger, a_view, a_negative_version,
    a_table_is_gone, huge, a_fifo,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGED_FILES)
def test_a_damaged_file_is_set_aside_and_a_new_one_begun(
    path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    damage(path)
    transcripts = opened(path)
    assert known(transcripts, range(200)) == []
    talk(transcripts, 300)
    transcripts.close()
    assert known(opened(path), range(301)) == [300]
    assert path.with_name(FILE_NAME + ".damaged").exists()
    assert len(caplog.messages) == 1
    assert FILE_NAME + ".damaged" in caplog.messages[0]
    assert "the 1" not in caplog.text


def test_bytes_that_flipped_are_never_served(path: Path) -> None:
    """Whatever became of a file: it opens, and all ids spell what was said (``knows`` checks)."""
    transcripts = opened(path)
    talk(transcripts, *range(12))
    transcripts.close()
    good = path.read_bytes()
    rng = random.Random(1)
    found = 0
    for _ in range(60):
        data = bytearray(good)
        for _ in range(rng.choice((1, 4, 40))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        again = opened(path)
        found += len(known(again, range(12)))
        talk(again, 99)
        assert known(again, range(99, 100)) == [99]
        again.close()
        for beside in path.parent.iterdir():
            beside.unlink()
    assert 0 < found < 60 * 12


def test_a_log_that_is_cut_costs_its_end_alone(path: Path, tmp_path: Path) -> None:
    transcripts = opened(path)
    talk(transcripts, *range(20))
    log = path.with_name(FILE_NAME + "-wal")
    other = tmp_path / "copy"
    other.mkdir()
    (other / FILE_NAME).write_bytes(path.read_bytes())
    (other / log.name).write_bytes(log.read_bytes()[: log.stat().st_size * 3 // 4])
    found = known(opened(other / FILE_NAME), range(20))
    assert 5 < len(found) < 20
    assert found == list(range(len(found)))


def test_the_log_of_a_file_that_was_set_aside_is_never_read_into_the_new_one(path: Path) -> None:
    first = opened(path)
    talk(first, *range(5))
    log = path.with_name(FILE_NAME + "-wal")
    data = log.read_bytes()
    first.close()
    log.write_bytes(data)  # as after kill -9
    os.truncate(path, 300 << 20)  # so large that SQLite never sees it
    transcripts = opened(path)
    assert known(transcripts, range(5)) == []
    talk(transcripts, 7)
    transcripts.close()
    assert known(opened(path), range(8)) == [7]


def test_a_log_goes_when_its_file_is_set_aside(path: Path) -> None:
    for file in (path, path.with_name(FILE_NAME + "-wal")):
        file.write_bytes(b"x")
    set_aside(path)
    assert [file.name for file in path.parent.iterdir()] == [FILE_NAME + ".damaged"]


def test_what_was_set_aside_goes_with_whatever_is_cleared(path: Path) -> None:
    damaged = path.with_name(FILE_NAME + ".damaged")
    no_database(path)
    transcripts = opened(path)
    assert damaged.exists()
    transcripts.clear(namespace_tag(A))
    assert not damaged.exists()
    transcripts.close()
    no_database(damaged)
    forget(path, namespace_tag(A))
    assert not damaged.exists()


def test_a_later_version_is_left_alone_and_not_used(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    full(path)
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 2")
    before = path.read_bytes()
    transcripts = opened(path)
    assert known(transcripts, range(3)) == []
    talk(transcripts, 0)
    assert known(transcripts, range(3)) == [0], "memory goes on"
    transcripts.close()
    assert path.read_bytes() == before
    assert "version 2" in caplog.messages[0]
    assert len(caplog.messages) == 1


def in_no_folder(path: Path) -> Path:
    return path.parent / "missing" / FILE_NAME


def in_a_file(path: Path) -> Path:
    path.write_bytes(b"")
    return path / FILE_NAME


def a_folder(path: Path) -> Path:
    path.mkdir()
    return path


def a_link(path: Path) -> Path:
    (path.parent / "elsewhere").touch()
    path.symlink_to(path.parent / "elsewhere")
    return path


@pytest.mark.parametrize("place", [in_no_folder, in_a_file, a_folder, a_link])
def test_where_there_can_be_no_file_memory_goes_on(
    path: Path, place: Callable[[Path], Path], caplog: pytest.LogCaptureFixture
) -> None:
    _goes_on_in_memory(place(path), caplog)


def test_a_file_that_somebody_else_uses_is_left_to_them(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    user_of_it = opened(path)
    _goes_on_in_memory(path, caplog)
    talk(user_of_it, 5)
    user_of_it.close()
    assert known(opened(path), range(10)) == [5]


def _goes_on_in_memory(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    transcripts = opened(path)
    talk(transcripts, 0, 1)
    assert known(transcripts, range(3)) == [0, 1]
    assert len(caplog.messages) == 1
    assert "not over a restart" in caplog.messages[0]


@pytest.mark.skipif(os.getuid() == 0, reason="root may write into every folder")
def test_a_folder_that_cannot_be_written(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    full(path)
    path.chmod(0o400)
    path.parent.chmod(0o500)
    try:
        transcripts = opened(path)
        talk(transcripts, 0)
        assert known(transcripts, range(3)) == [0]
        assert len(caplog.messages) == 1
        with pytest.raises(ConfigError, match="remove it yourself"):
            transcripts.clear()
    finally:
        path.parent.chmod(0o700)


def test_a_write_that_fails_is_told_once_and_never_reaches_an_answer(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The system takes no more bytes, as where a disk is full."""
    transcripts = opened(path)
    talk(transcripts, 0)
    n_bytes = path.with_name(FILE_NAME + "-wal").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes + 5000, hard))
        talk(transcripts, *range(1, 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert known(transcripts, range(20)) == list(range(20))
    assert len(caplog.messages) == 1
    assert "the 1" not in caplog.text
    found = known(opened(path), range(20))
    assert found == list(range(len(found)))
    assert 0 < len(found) < 20


def test_damage_that_only_writing_meets_is_told_once_and_gone_at_the_next_start(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    full(path)
    (root,) = rows(path, "SELECT rootpage FROM sqlite_schema WHERE type = 'index'")[0]
    with path.open("r+b") as file:
        file.seek((int(str(root)) - 1) * 4096)
        file.write(b"\x07" * 4096)
    transcripts = opened(path)
    assert known(transcripts, range(200)) == list(range(200)), "reading goes by the table"
    talk(transcripts, 300, 301)
    assert known(transcripts, range(300, 302)) == [300, 301]
    assert len(caplog.messages) == 1
    again = opened(path)
    assert known(again, range(400)) == []
    talk(again, 400)
    again.close()
    assert known(opened(path), range(401)) == [400]
    assert len(caplog.messages) == 1


def test_what_threads_remember_at_once_is_all_there(path: Path) -> None:
    transcripts = opened(path)

    def chat(number: int) -> None:
        talk(transcripts, *range(number * 5, number * 5 + 10), namespace=A)
        assert known(transcripts, range(number * 5, number * 5 + 10)) != []

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(chat, range(20)))
    transcripts.close()
    assert known(opened(path), range(105)) == list(range(105))


def test_threads_may_clear_meanwhile(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What becomes of what was said at that moment is open; all else is in order."""
    transcripts = opened(path, capacity_bytes=40_000)

    def chat(number: int) -> None:
        namespace = A if number % 2 else B
        talk(transcripts, *range(number, number + 6), namespace=namespace)
        known(transcripts, range(number, number + 3), namespace=namespace)
        if number % 10 == 0:
            transcripts.clear(namespace_tag(namespace) if number else None)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(chat, range(40)))
    transcripts.clear(namespace_tag(B))
    assert known(transcripts, range(46), namespace=B) == []
    talk(transcripts, 77)
    transcripts.close()
    again = opened(path, capacity_bytes=40_000)
    assert 77 in known(again, range(80))
    assert known(again, range(80), namespace=B) == []
    assert again.size_bytes <= 40_000
    assert caplog.messages == []


@pytest.mark.parametrize("through", ["a server", "the folder"])
def test_what_one_tenant_said_is_cleared_without_a_trace(path: Path, through: str) -> None:
    said = BYTES.encode(render([user(SECRET_WORDS * 40)]))[:200]
    trace = b"".join(i.to_bytes(4, "little") for i in said)[:600]
    transcripts = opened(path)
    talk(transcripts, 0, namespace=B)
    remember(transcripts, [user(SECRET_WORDS * 40)], "in", by_bytes("in"))
    assert files_with(path.parent, trace)
    if through == "the folder":
        transcripts.close()
        forget(path, namespace_tag(A))
    else:
        transcripts.clear(namespace_tag(A))
        assert not knows(transcripts, SECRET_WORDS * 40, "in")
        assert not files_with(path.parent, trace), "while it is open"
        talk(transcripts, 1, namespace=B)
        transcripts.close()
    assert not files_with(path.parent, trace)
    again = opened(path)
    assert not knows(again, SECRET_WORDS * 40, "in")
    expected = [0, 1] if through == "a server" else [0]
    assert known(again, range(3), namespace=B) == expected


def test_what_went_for_want_of_room_left_no_trace(path: Path) -> None:
    said = BYTES.encode(render([user(SECRET_WORDS * 40)]))[:200]
    trace = b"".join(i.to_bytes(4, "little") for i in said)[:600]
    transcripts = opened(path, capacity_bytes=8_000)
    remember(transcripts, [user(SECRET_WORDS * 40)], "in", by_bytes("in"))
    talk(transcripts, *range(60))
    transcripts.close()
    assert not files_with(path.parent, trace)


@pytest.mark.parametrize("through", ["a server", "the folder"])
@pytest.mark.parametrize("damage", [full, no_database, huge])
def test_everything_is_cleared(path: Path, through: str, damage: Callable[[Path], None]) -> None:
    damage(path)
    opened(path).close()  # sets it aside
    if through == "the folder":
        forget(path, None)
        assert list(path.parent.iterdir()) == []
        return
    transcripts = opened(path)
    talk(transcripts, 300)
    transcripts.clear()
    assert known(transcripts, range(301)) == []
    assert not path.with_name(FILE_NAME + ".damaged").exists()
    talk(transcripts, 301)
    transcripts.close()
    assert known(opened(path), range(302)) == [301]


@pytest.mark.parametrize("tag", [None, namespace_tag(A)])
def test_what_cannot_be_emptied_is_removed_for_the_owner(path: Path, tag: bytes | None) -> None:
    full(path)
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 2")
    transcripts = opened(path)
    transcripts.clear(tag)
    talk(transcripts, 5)
    transcripts.close()
    assert known(opened(path), range(10)) == [5]
    path.unlink()
    no_database(path)
    forget(path, tag)
    assert not path.exists()


def test_the_owner_is_told_where_nothing_can_be_removed(path: Path) -> None:
    path.mkdir()
    with pytest.raises(ConfigError, match="remove it yourself"):
        opened(path).clear()
    with pytest.raises(ConfigError, match="remove it yourself"):
        forget(path, None)


def test_nothing_that_was_said_is_logged(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    transcripts = opened(path)
    remember(transcripts, [user(SECRET_WORDS)], "in", by_bytes("in"))
    transcripts.close()
    change(path, "UPDATE transcripts SET digest = ?", b"x" * 32)
    opened(path).clear(namespace_tag(A))
    assert caplog.messages
    assert SECRET_WORDS not in caplog.text
