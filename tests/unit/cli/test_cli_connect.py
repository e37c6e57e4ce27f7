"""The home's server, or one of our own: who is asked, and who waits for whom."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI

from kvasir.cli import connect as module
from kvasir.cli.connect import connect
from kvasir.cli.home import Home, OwnedHome, open_home
from kvasir.cli.listener import Listener, listening_in_background
from kvasir.core.config import Config
from kvasir.core.errors import ConfigError, HomeBusy


def _app() -> FastAPI:
    app = FastAPI()

    @app.get("/v1/models")
    def models() -> dict[str, object]:
        return {"data": [{"id": "served"}, {"id": "alias"}]}

    return app


@contextlib.contextmanager
def _serving(owned: OwnedHome) -> Iterator[None]:
    with owned.bind_socket() as sock:
        listener = Listener(
            _app(), [sock], grace_s=0, stop_engine=lambda _: None, on_ready=lambda: None
        )
        with listening_in_background(listener):
            yield


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return open_home(tmp_path / "home")


@pytest.fixture(autouse=True)
def own_servers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Servers that ``connect`` has started itself, without a model."""
    started: list[str] = []

    @contextlib.contextmanager
    def fake(config: Config, owned: OwnedHome) -> Iterator[None]:
        started.append(config.model)
        with _serving(owned):
            yield

    monkeypatch.setattr(module, "_own_server", fake)
    return started


@pytest.mark.parametrize("model", ["", "served", "alias", "somewhere/served.gguf"])
def test_a_running_server_is_asked(
    home: Home, own_servers: list[str], model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "somewhere").mkdir()
    (tmp_path / "somewhere" / "served.gguf").touch()
    with (
        home.own() as owned,
        _serving(owned),
        connect(Config(home=home.path, model=model)) as connection,
    ):
        assert connection.model == "served"
    assert own_servers == []


def test_a_server_with_another_model_is_not(home: Home) -> None:
    with (
        home.own() as owned,
        _serving(owned),
        pytest.raises(ConfigError, match="has the model served, not org/other"),
        connect(Config(home=home.path, model="org/other")),
    ):
        pass


def test_without_a_server_one_runs_for_the_block(home: Home, own_servers: list[str]) -> None:
    with connect(Config(home=home.path, model="org/any")) as connection:
        assert connection.model == "served"
        assert home.owner_pid() is not None
    assert own_servers == ["org/any"]
    assert home.owner_pid() is None


def test_an_owner_that_loads_its_model_is_waited_for(
    home: Home, own_servers: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    loaded, asked = threading.Event(), threading.Event()

    def other_process() -> None:
        with home.own() as owned:
            loading.set()
            loaded.wait(10)
            with _serving(owned):
                asked.wait(10)

    loading = threading.Event()
    thread = threading.Thread(target=other_process)
    thread.start()
    loading.wait(10)
    threading.Timer(0.5, loaded.set).start()
    try:
        with connect(Config(home=home.path)) as connection:
            assert connection.model == "served"
    finally:
        asked.set()
        thread.join()
    assert own_servers == []
    assert capsys.readouterr().err.count("waiting for process") == 1


def test_an_owner_that_never_answers_is_named(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WAIT_FOR_OWNER_S", 0.3)
    with (
        home.own(),
        pytest.raises(HomeBusy, match="in use by process"),
        connect(Config(home=home.path)),
    ):
        pass
