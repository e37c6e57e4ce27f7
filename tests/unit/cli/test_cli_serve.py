"""What `kvasir serve` announces and what it refuses before anything is loaded."""

from __future__ import annotations

import json
import re
import shlex
import socket
from pathlib import Path

import pytest
from realms import realm
from typer.testing import CliRunner

from kvasir.cli import compose, main
from kvasir.cli.doctor import _settings
from kvasir.cli.serve import announcement, kept_lines
from kvasir.core.config import Config
from kvasir.core.geometry import KvGeometry, ModelCard
from kvasir.core.tiers import Tier, TierStatus

RUN = CliRunner()

CARD = ModelCard(
    name="Smol",
    architecture="llama",
    window=8192,
    vocab_size=10,
    dtype="float32",
    parameter_bytes=1,
    realm=realm(),
)
GEOMETRY = KvGeometry(
    n_layers=1, n_kv_heads=1, head_dim=1, dtype="float32", dtype_bytes=4, block_tokens=8, n_blocks=4
)


@pytest.fixture(autouse=True)
def never_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded before the refusal")

    monkeypatch.setattr(compose, "compose", fail)
    monkeypatch.setenv("KVASIR_HOME", str(tmp_path / "home"))


def test_the_examples_can_be_pasted() -> None:
    text = announcement(CARD, GEOMETRY, "http://127.0.0.1:8000", keyed=False)
    curl = shlex.split(text[text.index("  curl ") : text.index("  from openai")])
    assert curl[:2] == ["curl", "http://127.0.0.1:8000/v1/chat/completions"]
    assert json.loads(curl[curl.index("-d") + 1])["model"] == "Smol"
    python = text[text.index("  from openai") : text.index("Ctrl-C")]
    compile(re.sub("^  ", "", python, flags=re.M), "example", "exec")
    assert "http://127.0.0.1:8000/v1" in python
    assert "8,192 tokens" in text
    assert "32 tokens" in text


def test_with_keys_the_examples_send_one() -> None:
    text = announcement(CARD, GEOMETRY, "http://x", keyed=True)
    assert "authorization: Bearer YOUR_KEY" in text
    assert 'api_key="YOUR_KEY"' in text


def test_stored_tiers_are_announced_with_cap_and_place() -> None:
    sizes = {"used_bytes": 0, "records": 0, "tokens": 0}
    tiers = [
        TierStatus(tier=Tier.HOST, cap_bytes=2**31, **sizes),
        TierStatus(tier=Tier.DISK, cap_bytes=2**34, failure="writing failed", **sizes),
    ]
    kept = kept_lines(tiers, Path("/home/kv"))
    text = announcement(CARD, GEOMETRY, "http://x", keyed=False, kept=kept)
    assert "  KV in RAM up to 2.0 GiB\n" in text
    assert "  KV on disk up to 16.0 GiB in /home/kv, but writing failed\n" in text
    assert kept_lines([], Path("/home/kv")) == ""


@pytest.mark.parametrize("flag", ["--disk-gib", "--host-gib"])
def test_a_size_out_of_range_is_refused(flag: str) -> None:
    result = RUN.invoke(main.app, ["serve", flag, "-2"])
    assert result.exit_code == 1
    assert flag[2:].replace("-", "_") in result.stderr


def test_no_open_door_without_keys() -> None:
    result = RUN.invoke(main.app, ["serve", "--host", "0.0.0.0"])  # noqa: S104 - refused
    assert result.exit_code == 1
    assert "kvasir keys create" in result.stderr


def test_with_a_key_that_admits_somebody_the_door_may_be_open() -> None:
    serve = ["serve", "--host", "0.0.0.0", "--port", "0"]  # noqa: S104 - the model never loads
    made = RUN.invoke(main.app, ["keys", "create", "--json"])
    key = json.loads(made.stdout)["id"]
    assert "loaded before the refusal" in str(RUN.invoke(main.app, serve).exception)
    RUN.invoke(main.app, ["keys", "create"])
    RUN.invoke(main.app, ["tenants", "disable", "local"])
    assert "kvasir keys create" in RUN.invoke(main.app, serve).stderr
    RUN.invoke(main.app, ["tenants", "enable", "local"])
    RUN.invoke(main.app, ["keys", "revoke", key])
    assert "loaded before the refusal" in str(RUN.invoke(main.app, serve).exception)


@pytest.mark.parametrize("url", ["postgresql://u:hunter2@127.0.0.1:9/d", "hunter2"])
def test_a_database_that_cannot_be_used_is_refused_without_its_password(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVASIR_DATABASE", url)
    result = RUN.invoke(main.app, ["serve", "--port", "0"])
    assert result.exit_code == 1
    assert "database" in result.stderr
    assert "hunter2" not in result.stderr


def test_the_doctor_shows_a_database_without_its_password() -> None:
    for url, shown in (
        ("postgresql://u:hunter2@h/d", "postgresql://u:***@h/d"),
        ("u:hunter2@h", "something that is no URL"),
        ("", ""),
    ):
        settings = _settings(Config(database=url), {})
        assert settings["database"]["value"] == shown


def test_a_busy_port_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        result = RUN.invoke(main.app, ["serve", "--port", str(other.getsockname()[1])])
    assert result.exit_code == 1
    assert "--port" in result.stderr


def test_an_unknown_log_level_is_refused() -> None:
    result = RUN.invoke(main.app, ["serve", "--log-level", "loud"])
    assert result.exit_code == 1
    assert "loud" in result.stderr
