"""How much memory the KV pool gets, and the refusal of what cannot fit, before anything loads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from synthetic_models import config_of, write_folder

from kvasir.core.config import Config
from kvasir.core.errors import ConfigError, DoesNotFit
from kvasir.core.realm import differences
from kvasir.engine import survey as module
from kvasir.engine.machine import Machine, describe_machine
from kvasir.engine.survey import POOL_SHARE, Survey, survey
from kvasir.model.memory import PROCESS_BYTES

GIB = 2**30
WINDOW = 256

Machines = Callable[[float], None]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "tiny", config_of("llama"))


@pytest.fixture
def with_free_gib(monkeypatch: pytest.MonkeyPatch) -> Machines:
    """Pretend that this much memory is free."""

    def pretend(gib: float) -> None:
        def machine() -> Machine:
            return dataclasses.replace(describe_machine(), available_bytes=int(gib * GIB))

        monkeypatch.setattr(module, "describe_machine", machine)

    return pretend


def _survey(model: Path, **settings: object) -> Survey:
    return survey(Config(model=str(model), dtype="float32", **settings), model)  # type: ignore[arg-type]


def test_the_default_pool_holds_as_many_windows_as_may_run(model: Path) -> None:
    made = _survey(model, max_running=3)
    assert made.geometry.n_blocks == 3 * (WINDOW // 64 + 1)
    assert made.card.window == WINDOW
    assert made.card.name == "tiny"


def test_the_default_pool_takes_a_share_of_what_is_free(
    model: Path, with_free_gib: Machines
) -> None:
    with_free_gib(0.6)
    made = _survey(model, max_running=4096)
    assert made.geometry.pool_tokens >= WINDOW
    assert made.geometry.pool_bytes <= POOL_SHARE * (0.6 * GIB - PROCESS_BYTES)


def test_one_window_may_take_more_than_the_share(tmp_path: Path, with_free_gib: Machines) -> None:
    window = 2**21  # 512 MiB of KV
    long = write_folder(tmp_path / "long", config_of("llama", max_position_embeddings=window))
    with_free_gib(1.3)
    pool = _survey(long).geometry
    assert window < pool.pool_tokens < 1.01 * window
    assert pool.pool_bytes > POOL_SHARE * (1.3 * GIB - PROCESS_BYTES)
    with_free_gib(0.8)
    with pytest.raises(DoesNotFit, match="does not fit"):
        _survey(long)


def test_the_pool_that_is_asked_for_is_the_one_that_is_made(model: Path) -> None:
    made = _survey(model, kv_gib=0.25)
    assert 0 <= 0.25 * GIB - made.geometry.pool_bytes < made.geometry.block_bytes


def test_a_pool_below_one_window_is_refused_with_the_numbers(model: Path) -> None:
    one_window = _survey(model, max_running=1).geometry
    just = one_window.pool_bytes / GIB
    assert _survey(model, kv_gib=just).geometry.n_blocks == one_window.n_blocks
    with pytest.raises(DoesNotFit, match="fewer than one window of 256"):
        _survey(model, kv_gib=just * 0.99)


def test_a_pool_beyond_the_memory_is_refused(model: Path, with_free_gib: Machines) -> None:
    with_free_gib(1.0)
    with pytest.raises(DoesNotFit, match="does not fit"):
        _survey(model, kv_gib=2.0)


def test_a_model_beyond_the_memory_is_refused(model: Path, with_free_gib: Machines) -> None:
    with_free_gib(0.1)
    with pytest.raises(DoesNotFit, match="does not fit"):
        _survey(model)


def test_max_window_only_lowers(model: Path) -> None:
    assert _survey(model, max_window=100).card.window == 100
    assert _survey(model, max_window=10**6).card.window == WINDOW


def test_every_decision_has_its_reasons(model: Path) -> None:
    made = _survey(model)
    subjects = {choice.subject: choice for choice in made.choices}
    assert set(subjects) == {
        "device",
        "dtype",
        "kernels",
        "attention",
        "projections",
        "kv pool",
        "kv in host",
        "kv on disk",
        "threads",
    }
    assert all(choice.taken and all(choice.reasons) for choice in made.choices)
    assert subjects["dtype"].taken == made.card.dtype == "float32"


@pytest.mark.parametrize("device", ["gpu", "meta", "cuda:9999", "cpu:x"])
def test_a_device_that_is_not_there_is_refused_by_name(model: Path, device: str) -> None:
    with pytest.raises(ConfigError, match=device):
        _survey(model, device=device)


def test_the_realm_follows_the_weights_the_dtype_and_the_tokenizer(
    model: Path, tmp_path: Path
) -> None:
    other = write_folder(tmp_path / "other", config_of("llama", hidden_size=64, head_dim=16))
    base = _survey(model).card.realm
    assert _survey(model).card.realm == base
    changed = differences(base.tag, _survey(other).card.realm.tag)
    assert {"weights", "numerics", "layout"} <= set(changed)
    typed = survey(Config(model=str(model), dtype="bfloat16"), model).card.realm
    assert differences(base.tag, typed.tag) == ("numerics", "layout")
    (model / "tokenizer_config.json").write_text('{"add_bos_token": true}', encoding="utf-8")
    assert differences(base.tag, _survey(model).card.realm.tag) == ("tokenizer",)
