"""The `kvasir` command itself: what it lists, and how errors reach people."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from typer.testing import CliRunner

import kvasir
from kvasir.cli import bench, main, pull
from kvasir.core.errors import ConfigError

RUN = CliRunner()


def test_help_lists_every_command() -> None:
    result = RUN.invoke(main.app, ["--help"])
    assert result.exit_code == 0
    for name in main.COMMANDS:
        assert f"\n  {name} " in result.output


@pytest.mark.parametrize("name", list(main.COMMANDS))
def test_every_command_has_help(name: str) -> None:
    result = RUN.invoke(main.app, [name, "--help"])
    assert result.exit_code == 0
    assert f"Usage: {result.output.split()[1]} {name}" in result.output


@pytest.mark.parametrize("name", bench.MEASUREMENTS)
def test_a_measurement_gets_what_follows_its_name(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[list[str]] = []
    module = importlib.import_module(f"kvasir.bench.{name}")
    monkeypatch.setattr(module, "main", lambda argv: given.append(argv) or 3)
    result = RUN.invoke(main.app, ["bench", name, "--help", "-x", "y"])
    assert result.exit_code == 3
    assert given == [["--help", "-x", "y"]]


def test_version() -> None:
    assert RUN.invoke(main.app, ["--version"]).output == f"kvasir {kvasir.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [["nope"], ["serve", "--nope"], ["ask"], ["ask", "file"], ["ask", "-", "-", "Who?"],
     ["ask", "file", " "], ["bench", "nope"]],
)  # fmt: skip
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    result = RUN.invoke(main.app, arguments)
    assert result.exit_code == 2
    assert result.stdout == ""


def _fail(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def raising(**_: object) -> None:
        raise error

    monkeypatch.setattr(pull, "load", lambda *_, **__: raising())


def test_an_error_is_three_lines_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    _fail(monkeypatch, ConfigError("fact\ncause\nwhat to do\nmore\nand more"))
    result = RUN.invoke(main.app, ["pull"])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == "kvasir: fact\n  cause\n  what to do\n"


def test_an_unexpected_error_shows_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KVASIR_LOG_LEVEL", raising=False)
    _fail(monkeypatch, ValueError("boom"))
    result = RUN.invoke(main.app, ["pull"])
    assert result.exit_code == 1
    assert "ValueError: boom" in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.splitlines()) == 3


def test_debugging_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KVASIR_LOG_LEVEL", "debug")
    monkeypatch.setenv("KVASIR_HOME", str(tmp_path))
    _fail(monkeypatch, ConfigError("fact"))
    assert "Traceback" in RUN.invoke(main.app, ["pull"]).stderr


def test_an_interrupt_exits_as_shells_expect(monkeypatch: pytest.MonkeyPatch) -> None:
    _fail(monkeypatch, KeyboardInterrupt())
    assert RUN.invoke(main.app, ["pull"]).exit_code == 130


def test_a_broken_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVASIR_PORT", "many")
    result = RUN.invoke(main.app, ["pull"])
    assert result.exit_code == 1
    assert "KVASIR_PORT" in result.stderr
