"""`kvasir bench restore`: options, texts, the disk's speed, what is to be reached, the report."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bench_models import gguf_model

from kvasir.bench import restore, restore_disk, restore_kvasir, restore_run
from kvasir.bench.http import Reply
from kvasir.bench.process import WorkerFailed, once
from kvasir.bench.restore_kvasir import PLAIN, SAVING, Place
from kvasir.bench.restore_report import BARE, DISK, figures, markdown, targets
from kvasir.bench.restore_run import RestoreOptions
from kvasir.bench.restore_sizes import FULL, N_QUESTIONS, QUICK, Texts, make_texts
from kvasir.bench.results import ArmReport, Better, Machine, Report, Sample
from kvasir.core.errors import ConfigError

TEXTS = Texts(
    warm_up=(9, 9),
    text=(1, 2, 3),
    second=(4, 5, 6),
    fillers=((7,), (8,)),
    questions=tuple((10 + i,) for i in range(N_QUESTIONS)),
)


def parse(*argv: str, env: dict[str, str] | None = None) -> RestoreOptions:
    return restore.parse(argv, env or {})


# --- options and texts ----------------------------------------------------------------------------


def test_defaults_are_those_of_a_recorded_run() -> None:
    options = parse()
    assert (options.repeats, options.sizes, options.llama) == (3, FULL, True)
    assert options.parts == ("restore", "conversations")
    assert (FULL.text, FULL.question, FULL.restart_every, FULL.chat_turns) == (7500, 16, 10, 100)
    assert (options.text, options.traces) == (None, None)
    assert not options.flash_attention
    assert options.llama_python == sys.executable


def test_the_environment_names_the_data_and_the_interpreter_of_llama(tmp_path: Path) -> None:
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "a.txt").touch()
    env = {"KVASIR_TEST_DATA": str(tmp_path), "KVASIR_BENCH_LLAMA_PYTHON": "other-python"}
    options = parse(env=env)
    assert options.text == tmp_path / "books" / "a.txt"
    assert options.traces == tmp_path / "traces"
    assert options.llama_python == "other-python"


def test_quick_is_small_and_once_unless_repeats_are_given() -> None:
    assert (parse("--quick").repeats, parse("--quick").sizes) == (1, QUICK)
    assert parse("--quick", "--repeats", "2").repeats == 2


@pytest.mark.parametrize(
    "argv", [("--parts", "all"), ("--parts", ","), ("--repeats", "0"), ("--timeout", "nan")]
)
def test_values_that_do_not_do_are_refused_by_name(argv: tuple[str, str]) -> None:
    with pytest.raises(ConfigError, match=argv[0]):
        parse(*argv)


def test_a_system_that_cannot_drop_pages_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fadvise")
    with pytest.raises(ConfigError, match="posix_fadvise"):
        parse()


def test_the_published_command_names_no_folder() -> None:
    assert parse("--home", "/home/me/x").command == "kvasir bench restore --home x"


def test_no_two_texts_of_a_run_share_a_beginning() -> None:
    sizes = replace(QUICK, text=200, window=400)
    found = list(make_texts(range(2 * sizes.tokens_needed), sizes, 2))
    parts = [
        part
        for texts in found
        for part in (texts.warm_up, texts.text, texts.second, *texts.fillers, *texts.questions)
    ]
    assert len({part[0] for part in parts}) == len(parts) == 2 * (5 + N_QUESTIONS)
    assert len(found[0].text) == 200
    assert len(found[0].fillers[0]) == sizes.filler
    with pytest.raises(ConfigError, match="--text"):
        list(make_texts(range(2 * sizes.tokens_needed - 1), sizes, 2))


def test_sizes_fit_the_window() -> None:
    assert FULL.fitted(32_768) == FULL
    small = FULL.fitted(2048)
    assert small.window == 2048
    assert small.text + small.question < 2048
    with pytest.raises(ConfigError, match="too short"):
        FULL.fitted(100)


# --- the disk -------------------------------------------------------------------------------------


def test_the_disk_is_measured_in_bytes_per_second(tmp_path: Path) -> None:
    times_s = iter([0.0, 2.0, 10.0, 14.0, 20.0, 21.0])  # written in 2 s, read in 4 s, then in 1 s
    speed = restore_disk.measure_disk(tmp_path, 2, lambda: next(times_s))
    n_bytes = 2 * 16 * 2**20
    assert (speed.write, speed.read_cold, speed.read_warm) == (n_bytes / 2, n_bytes / 4, n_bytes)
    assert list(tmp_path.iterdir()) == []


def test_pages_of_a_file_are_seen_in_the_page_cache(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(2**20))
    restore_disk.read_through([path])
    assert restore_disk.resident_bytes([path]) == 2**20
    (tmp_path / "empty").touch()
    assert restore_disk.drop_cached([tmp_path / "empty"]) == 0
    assert restore_disk.drop_cached([path]) <= 2**20  # a folder in memory drops nothing


# --- turns ----------------------------------------------------------------------------------------


class FakeServers:
    """Servers that read 1,000 tokens a second and keep everything; what happens is in ``log``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.loaded_bytes = 0.0
        monkeypatch.setattr(restore_kvasir.http, "served", self.served)
        monkeypatch.setattr(restore_kvasir.http, "ask", self.ask)
        monkeypatch.setattr(restore_kvasir.http, "metrics", self.metrics)
        monkeypatch.setattr(restore_kvasir, "drop_cached", self.drop)
        monkeypatch.setattr(restore_kvasir, "read_through", lambda _: self.log.append("warm"))
        monkeypatch.setattr(restore_kvasir, "_QUIET_S", 0.0)

    @contextmanager
    def served(self, python: str, settings: dict[str, str], **_: Any) -> Iterator[int]:
        del python
        self.log.append(f"start {settings['kv_gib']} {settings.get('disk_gib', 'derived')}")
        yield 1
        self.log.append("stop")

    def ask(self, port: int, path: str, body: dict[str, Any], timeout_s: float) -> Reply:
        del port, path, timeout_s
        self.log.append("ask " + " ".join(map(str, body["prompt"])))
        self.loaded_bytes += 100
        n = len(body["prompt"])
        return Reply(
            first_s=n / 1000,
            last_s=1,
            total_s=1,
            text="",
            prompt_tokens=n,
            completion_tokens=1,
            cached_tokens=n - 1,
            disk_tokens=2,
        )

    def metrics(self, port: int, timeout_s: float) -> dict[str, float]:
        del port, timeout_s
        return {
            restore_kvasir._SAVED: 5,
            restore_kvasir._LOADED: self.loaded_bytes,
            restore_kvasir._UNSAVED: 0,
            restore_kvasir._TOKENS: 10,
            restore_kvasir._USED: 250,
            restore_kvasir._READ: 3e9,
            restore_kvasir._WRITE: 2e9,
        }

    def drop(self, _: object) -> int:
        self.log.append("drop")
        return 0


def place(tmp_path: Path) -> Place:
    return Place(
        python="python",
        settings={},
        env={},
        cwd=tmp_path,
        home=tmp_path,
        one_window_gib=0.5,
        timeout_s=10,
    )


def test_a_turn_asks_cold_in_memory_and_after_restarts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers = FakeServers(monkeypatch)
    samples = {s.figure: s for s in restore_kvasir.saving_turn(place(tmp_path), TEXTS, 0)}
    assert servers.log == [
        *("start 2.0 derived", "ask 9 9", "ask 1 2 3 10", "ask 4 5 6", "ask 1 2 3 11", "stop"),
        *("start 0.5 derived", "drop", "ask 1 2 3 12", "ask 7", "drop", "ask 1 2 3 13", "stop"),
        *("start 0.5 derived", "warm", "ask 1 2 3 14", "ask 8", "warm", "ask 1 2 3 15", "stop"),
    ]
    assert samples["reading"].value == (0.004 + 0.003) / 2
    assert samples["disk_token"].value == 25
    assert (samples["read_cold"].value, samples["write"].value) == (3, 2)
    assert samples["restart_cold"].facts["loaded_bytes"] == 100
    assert samples["restart_cold"].facts["page_cache_left_bytes"] == 0
    assert samples["restart_warm"].facts["page_cache_left_bytes"] is None
    assert samples["memory"].facts["computed_tokens"] == 1
    cases = {"cold", "memory", "restart_cold", "evicted_cold", "restart_warm", "evicted_warm"}
    assert cases < set(samples)


def test_without_the_disk_tier_the_same_texts_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers = FakeServers(monkeypatch)
    samples = list(restore_kvasir.plain_turn(place(tmp_path), TEXTS, 0))
    assert servers.log == ["start 2.0 0", "ask 9 9", "ask 1 2 3 10", "ask 4 5 6", "stop"]
    assert {s.figure for s in samples} == {"reading", "cold"}
    assert {s.arm for s in samples} == {PLAIN}


def test_arms_take_turns_on_empty_folders_and_a_failure_stays_its_own(tmp_path: Path) -> None:
    log: list[str] = []

    def arm(name: str, *, fails: bool = False) -> restore_run._Column:
        def take(folder: Path, texts: Texts, repeat: int) -> Iterator[Sample]:
            del texts
            assert list(folder.iterdir()) == []
            (folder / "kept").touch()
            log.append(f"{name}{repeat}")
            yield Sample(arm=name, repeat=repeat, figure="cold", value=1.0)
            if fails:
                raise WorkerFailed("broke")

        return restore_run._Column(name=name, take=take)

    columns = [arm("a"), arm("b", fails=True), restore_run._Column(name="c", take=arm("c").take)]
    columns[2].skipped = "not here"
    stand = restore_run._Stand(
        options=parse(),
        sizes=QUICK,
        files=gguf_model(tmp_path / "m.gguf", "llama"),
        env={},
        import_path=tmp_path,
        folder=tmp_path,
    )
    restore_run._take_turns(columns, stand, [TEXTS, TEXTS], lambda _: None)
    assert log == ["a0", "b0", "b1", "a1"]
    assert columns[1].failures == ["repeat 1: broke", "repeat 2: broke"]
    assert len(columns[1].samples) == 2
    assert not (tmp_path / "turn-0").exists()
    assert 0 < stand.one_window_gib() < 1


def test_a_process_answers_one_request_or_says_why_not(tmp_path: Path) -> None:
    def asked(code: str, timeout_s: float = 30) -> dict[str, Any]:
        command = [sys.executable, "-S", "-c", code]
        return once(command, {"n": 2}, env={}, cwd=tmp_path, timeout_s=timeout_s)

    assert asked("import json,sys; print(json.load(sys.stdin)['n'] * '1')") == 11
    with pytest.raises(WorkerFailed, match=r"code 1: .*out of luck"):
        asked("raise SystemExit('out of luck')")
    with pytest.raises(WorkerFailed, match="not JSON"):
        asked("print('hello')")
    with pytest.raises(WorkerFailed, match="did not answer"):
        asked("import time; time.sleep(60)", timeout_s=0.2)


# --- what is to be reached, and the report --------------------------------------------------------

GOOD = {
    (SAVING, "read_cold"): 0.8,
    (DISK, "read_cold"): 1.0,
    (DISK, "read_warm"): 4.0,
    (SAVING, "restart_cold"): 0.59,  # at most 2 x (0.2 + 0.07 + 0.03)
    (SAVING, "restart_warm"): 0.29,  # at most 2 x (0.05 + 0.07 + 0.03)
    (SAVING, "memory"): 0.119,  # at most 1.2 x (0.07 + 0.03)
    (BARE, "question"): 0.07,
    (BARE, "decode"): 0.03,
    (SAVING, "reading"): 5.4,
    (PLAIN, "reading"): 5.0,
    (SAVING, "chat"): 1.04,
}


def report(values: dict[tuple[str, str], float]) -> Report:
    facts = {
        "chat": {
            "turns": 100,
            "restarts": 9,
            "prompt_tokens": 400_000,
            "new_tokens": 5000,
            "computed_tokens": 5200,
            "disk_tokens": 30_000,
            "most_behind": 3,
        },
        "restart_cold": {"loaded_bytes": 200e6},
        "restart_warm": {"loaded_bytes": 200e6},
    }
    conversation = restore_run.restore_chats.chat(FULL)
    return Report(
        date="2026-01-01T00:00:00+00:00",
        command="kvasir bench restore",
        commit="c0ffee0123",
        commit_dirty=False,
        model="small",
        dtype="bfloat16",
        threads=2,
        repeats=3,
        text="made",
        sizes=FULL,
        machine=Machine(
            cpu="A CPU",
            cores=2,
            flags=(),
            memory_bytes=2**34,
            kernel="Linux",
            python="3.11",
            load_average=(0, 0, 0),
            busy_percent=0,
        ),
        figures=figures(FULL, [conversation]),
        arms=(
            *(ArmReport(name=name, settings={}) for name in (SAVING, PLAIN, BARE, DISK)),
            ArmReport(name="vLLM", settings={}, skipped="not here"),
        ),
        samples=tuple(
            Sample(arm=arm, repeat=0, figure=figure, value=value, facts=facts.get(figure, {}))
            for (arm, figure), value in values.items()
        ),
    )


def test_everything_is_reached_at_good_figures() -> None:
    found = list(targets(report(GOOD)))
    assert len(found) == 6
    assert all(target.reached for target in found)
    bounds = sorted(round(target.bound, 6) for target in found)
    assert bounds == [0.1, 0.12, 0.3, 0.6, 0.7, 1.05]


@pytest.mark.parametrize(
    ("arm", "figure", "value", "title"),
    [
        (SAVING, "read_cold", 0.69, "share of the disk"),
        (SAVING, "restart_cold", 0.61, "page cache dropped"),
        (SAVING, "restart_warm", 0.31, "page cache warm"),
        (SAVING, "memory", 0.121, "reused in memory"),
        (SAVING, "reading", 5.51, "slows reading"),
        (SAVING, "chat", 1.06, "chat"),
    ],
)
def test_each_target_fails_alone(arm: str, figure: str, value: float, title: str) -> None:
    missed = [t for t in targets(report({**GOOD, (arm, figure): value})) if not t.reached]
    assert len(missed) == 1
    assert title in missed[0].title


def test_what_was_not_measured_is_not_judged() -> None:
    assert list(targets(report({}))) == []
    only = [t.better for t in targets(report({k: v for k, v in GOOD.items() if k[0] != BARE}))]
    assert only == [Better.HIGHER, Better.LOWER, Better.LOWER]


def test_the_report_is_markdown_with_shares_verdicts_and_skips() -> None:
    lines = markdown(report({**GOOD, (SAVING, "memory"): 0.2})).splitlines()
    assert "| | unit | kvasir | kvasir, nothing saved | bare steps | the disk |" in lines
    assert "| reused in memory | s | 0.2 |  |  |  |" in lines
    assert any(line.startswith("| reused in memory: ") and "FAIL" in line for line in lines)
    assert any(line.startswith("| chat of 100 turns") and "pass" in line for line in lines)
    assert any("kvasir, reading, page cache dropped: 80% of the disk's" in line for line in lines)
    assert any("9 restarts" in line and "5,200 computed" in line for line in lines)
    assert "- vLLM: skipped, not here" in lines
    assert not any("saving the state" in line for line in lines)  # nobody measured it


def test_the_command_writes_its_file_and_says_whether_all_went_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = report(GOOD)
    monkeypatch.setattr(restore_run, "run", lambda *_: whole)
    out = tmp_path / "new" / "r.json"
    assert restore.main(["--out", str(out)]) == 0
    assert json.loads(out.read_text())["sizes"]["text"] == 7500
    assert capsys.readouterr().out == markdown(whole)
    failed = replace(whole, arms=(ArmReport(name="kvasir", settings={}, failures=("it broke",)),))
    monkeypatch.setattr(restore_run, "run", lambda *_: failed)
    assert restore.main(["--out", str(out)]) == 1
