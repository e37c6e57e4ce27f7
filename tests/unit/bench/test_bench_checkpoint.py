"""The peers' weights: the same model as the file they are made from, complete or not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from bench_models import gguf_model
from synthetic_models import F32, FAMILIES, STRING, U32, config_of, write_folder
from transformers import AutoModelForCausalLM

from kvasir.bench.arms import file_kind
from kvasir.bench.checkpoint import cache_folder, make_checkpoint, publish
from kvasir.bench.gguf_bf16 import make_gguf
from kvasir.core.errors import UnsupportedModel
from kvasir.model.files import ModelFiles, open_model
from kvasir.text.tokenizer import tokenizer_from_folder, tokenizer_from_gguf

GGUF_FAMILIES = ("llama", "qwen2", "qwen3")


def same_weights(one: ModelFiles, other: ModelFiles) -> bool:
    return all(
        torch.equal(one.tensor(name, torch.bfloat16), other.tensor(name, torch.bfloat16))
        for name in one.tensor_names
    )


@pytest.mark.parametrize("family", GGUF_FAMILIES)
def test_a_checkpoint_is_the_same_model(tmp_path: Path, family: str) -> None:
    files = gguf_model(tmp_path / "m.gguf", family)
    folder = make_checkpoint(files, tmp_path / "made" / "checkpoint")
    made = open_model(folder)
    assert made.spec == files.spec
    assert same_weights(made, files)
    assert made.chat_template == "{{ messages }}"
    assert made.eos_ids == files.eos_ids
    sentence = "the shed, ok?"
    ids = tokenizer_from_gguf(files.metadata).encode(sentence)
    assert tokenizer_from_folder(folder).encode(sentence) == ids

    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    assert type(loaded).__name__.lower().startswith(family)
    parameters = dict(loaded.named_parameters())
    for name in files.tensor_names:
        assert torch.equal(parameters[name], files.tensor(name, torch.bfloat16)), name


@pytest.mark.parametrize(
    "rope",
    [
        {
            "type": ("llama.rope.scaling.type", STRING, "linear"),
            "f": ("llama.rope.scaling.factor", F32, 2.0),
        },
        {
            "type": ("llama.rope.scaling.type", STRING, "yarn"),
            "f": ("llama.rope.scaling.factor", F32, 4.0),
            "o": ("llama.rope.scaling.original_context_length", U32, 64),
        },
    ],
    ids=["linear", "yarn"],
)
def test_scaled_rope_survives(tmp_path: Path, rope: dict[str, tuple[str, int, object]]) -> None:
    files = gguf_model(tmp_path / "m.gguf", "llama", **rope)
    assert files.spec.rope.kind in ("linear", "yarn")
    assert open_model(make_checkpoint(files, tmp_path / "made")).spec == files.spec


def test_a_checkpoint_that_would_be_another_model_is_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kvasir.bench import checkpoint

    files = gguf_model(tmp_path / "m.gguf", "llama")
    honest = checkpoint.config_of
    monkeypatch.setattr(checkpoint, "config_of", lambda *a: {**honest(*a), "rms_norm_eps": 0.05})
    with pytest.raises(UnsupportedModel, match="would not be the same model"):
        make_checkpoint(files, tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_a_folder_is_its_own_checkpoint(tmp_path: Path) -> None:
    files = open_model(write_folder(tmp_path / "model", config_of("llama")))
    assert make_checkpoint(files, tmp_path / "made") == tmp_path / "model"
    assert not (tmp_path / "made").exists()
    assert file_kind(files) == ""


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bf16_gguf_is_the_same_model(tmp_path: Path, family: str) -> None:
    files = open_model(write_folder(tmp_path / "model", config_of(family)))
    made = open_model(make_gguf(files, tmp_path / "made.gguf"))
    assert same_weights(made, files)
    assert made.spec.rope == files.spec.rope
    assert made.spec.architecture == ("llama" if family == "mistral" else family)
    assert file_kind(made) == "BF16"


def test_what_a_bf16_gguf_cannot_say_is_refused_by_name(tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}
    files = open_model(write_folder(tmp_path / "a", config_of("llama", rope_parameters=yarn)))
    with pytest.raises(UnsupportedModel, match="'yarn'"):
        make_gguf(files, tmp_path / "a.gguf")
    files = open_model(write_folder(tmp_path / "b", config_of("mistral", sliding_window=8)))
    with pytest.raises(UnsupportedModel, match="sliding window"):
        make_gguf(files, tmp_path / "b.gguf")
    assert not list(tmp_path.glob("*.gguf"))


def test_file_kinds_are_named(tmp_path: Path) -> None:
    assert file_kind(gguf_model(tmp_path / "m.gguf", "llama")) == "Q4_1"


def test_the_cache_is_named_after_the_very_files(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", config_of("llama"))
    first = cache_folder(tmp_path, open_model(folder))
    assert cache_folder(tmp_path, open_model(folder)) == first
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rope_theta": 5e5}))
    assert cache_folder(tmp_path, open_model(folder)) != first


def test_what_was_left_half_done_is_made_anew(tmp_path: Path) -> None:
    target = tmp_path / "folder"

    def fail(draft: Path) -> None:
        draft.mkdir()
        (draft / "half").touch()
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        publish(target, fail)
    assert not target.exists()
    publish(target, lambda draft: draft.mkdir())
    assert list(target.iterdir()) == []
    publish(target, fail)  # it is there: nothing is made
