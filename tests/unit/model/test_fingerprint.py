"""Digests of model files, remembered and not trusted too long; ids of numerics and tokenizer."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
from synthetic_models import config_of

from kvasir.core.errors import CorruptWeights, ModelNotFound
from kvasir.model import fingerprint as module
from kvasir.model.config_json import spec_from_config
from kvasir.model.fingerprint import file_digest, fingerprint, numerics_id, tokenizer_id


def test_content_and_names_count_and_order_does_not(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_bytes(b"1")
    b.write_bytes(b"2")
    one = fingerprint([a, b], None)
    assert fingerprint([b, a], None) == one
    b.write_bytes(b"3")
    assert fingerprint([a, b], None) != one
    b.write_bytes(b"2")
    assert fingerprint([a, b], None) == one
    b.rename(tmp_path / "c")
    assert fingerprint([a, tmp_path / "c"], None) != one


def test_a_file_is_read_once_while_it_stays_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, cache = tmp_path / "weights", tmp_path / "cache"
    cache.mkdir()
    path.write_bytes(b"x" * 1000)
    digest = file_digest(path, cache)
    reads: list[Path] = []
    real = module._hash
    monkeypatch.setattr(module, "_hash", lambda p: reads.append(p) or real(p))
    assert file_digest(path, cache) == digest
    assert reads == []

    stat = path.stat()
    path.write_bytes(b"y" * 1000)  # same size, and the same time as before:
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file_digest(path, cache) != digest
    assert reads == [path]


@pytest.mark.parametrize("damage", ["", "[]", "{", '{"x": 1}', "null", "[" * 100_000])
def test_a_damaged_memory_is_no_memory(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"x")
    expected = file_digest(path, None)
    (tmp_path / module.REMEMBERED).write_text(damage)
    assert file_digest(path, tmp_path) == expected
    assert file_digest(path, tmp_path) == expected


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="nothing"):
        file_digest(tmp_path / "nothing", None)


def test_everything_that_changes_kv_changes_the_numerics_id() -> None:
    spec = spec_from_config(config_of("llama"))
    base = {"dtype": "float32", "kv_dtype": "float32", "attention": "exact"}
    ids = {numerics_id(spec, **base)}
    for key in base:
        ids.add(numerics_id(spec, **(base | {key: "other"})))
    rope = dataclasses.replace(spec.rope, theta=5e5)
    ids.add(numerics_id(dataclasses.replace(spec, rope=rope), **base))
    ids.add(numerics_id(dataclasses.replace(spec, norm_eps=1e-5), **base))
    assert len(ids) == 6
    assert numerics_id(spec, **base) in ids


def _folder(path: Path, **files: object) -> Path:
    path.mkdir(exist_ok=True)
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


FILES: dict[str, dict[str, object]] = {
    "tokenizer": {"model": {"vocab": {"a": 0}}},
    "tokenizer_config": {"add_bos_token": True, "chat_template": "one"},
    "special_tokens_map": {"bos_token": "<s>"},
    "added_tokens": {"<x>": 1},
    "config": {"bos_token_id": 1, "hidden_size": 8},
}


def test_everything_that_turns_text_into_ids_is_in_the_id_of_a_folder(tmp_path: Path) -> None:
    before = tokenizer_id(_folder(tmp_path / "a", **FILES), {})
    assert before == tokenizer_id(_folder(tmp_path / "b", **FILES), {})
    ids = {before}
    for at, name in enumerate(FILES):
        other = FILES[name] | {"bos_token_id": 2}
        ids.add(tokenizer_id(_folder(tmp_path / str(at), **(FILES | {name: other})), {}))
    (tmp_path / "b" / "added_tokens.json").unlink()
    ids.add(tokenizer_id(tmp_path / "b", {}))
    assert len(ids) == len(FILES) + 2


def test_what_turns_no_text_into_ids_is_not(tmp_path: Path) -> None:
    before = tokenizer_id(_folder(tmp_path / "a", **FILES), {})
    template = FILES["tokenizer_config"] | {"chat_template": "two"}
    config = FILES["config"] | {"hidden_size": 16}
    changed = FILES | {"tokenizer_config": template, "config": config, "generation_config": {}}
    assert tokenizer_id(_folder(tmp_path / "a", **changed), {}) == before


def test_a_tokenizer_is_read_once_while_it_stays_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, cache = _folder(tmp_path / "model", **FILES), _folder(tmp_path / "cache")
    before = tokenizer_id(folder, {}, cache)
    monkeypatch.setattr(module, "_hash", lambda _: pytest.fail("it was read again"))
    assert tokenizer_id(folder, {}, cache) == before


@pytest.mark.parametrize("damage", ["[]", "{", "null"])
def test_a_damaged_tokenizer_file_is_said(tmp_path: Path, damage: str) -> None:
    folder = _folder(tmp_path / "model", **FILES)
    (folder / "tokenizer_config.json").write_text(damage)
    with pytest.raises(CorruptWeights, match="tokenizer_config"):
        tokenizer_id(folder, {})


def test_of_a_gguf_file_its_tokenizer_metadata_count(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.touch()
    base = {"tokenizer.ggml.tokens": ["a", "b"], "tokenizer.ggml.merges": ["a b"]}
    before = tokenizer_id(path, base)
    beside = {"llama.block_count": 3, "tokenizer.chat_template": "one"}
    assert tokenizer_id(path, beside | base) == before
    assert tokenizer_id(path, dict(reversed(base.items()))) == before
    ids = {before, tokenizer_id(path, base | {"tokenizer.ggml.add_bos_token": True})}
    ids.add(tokenizer_id(path, base | {"tokenizer.ggml.tokens": ["a", "c"]}))
    ids.add(tokenizer_id(path, {}))
    assert len(ids) == 4
