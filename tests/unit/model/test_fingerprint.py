"""Digests of model files, remembered and not trusted too long; the numerics id."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
from synthetic_models import config_of

from kvasir.core.errors import ModelNotFound
from kvasir.model import fingerprint as module
from kvasir.model.config_json import spec_from_config
from kvasir.model.fingerprint import file_digest, fingerprint, numerics_id


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
    ids = {numerics_id(spec, "f", **base), numerics_id(spec, "g", **base)}
    for key in base:
        ids.add(numerics_id(spec, "f", **(base | {key: "other"})))
    rope = dataclasses.replace(spec.rope, theta=5e5)
    ids.add(numerics_id(dataclasses.replace(spec, rope=rope), "f", **base))
    ids.add(numerics_id(dataclasses.replace(spec, norm_eps=1e-5), "f", **base))
    assert len(ids) == 7
    assert numerics_id(spec, "f", **base) in ids
