"""Model files that lie or are damaged: always a ``ModelError``, never another exception, a hang or
much memory."""

from __future__ import annotations

import json
import os
import struct
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic_models import (
    ARRAY,
    BOOL,
    F32,
    STRING,
    U32,
    U64,
    config_of,
    gguf_bytes,
    gguf_meta,
    gguf_tensors,
    gguf_text,
    random_weights,
    safetensors_bytes,
    tensor_head,
    with_header,
    write_folder,
)

from kvasir.core.errors import CorruptWeights, ModelError, ModelNotFound, UnsupportedModel
from kvasir.model.config_json import spec_from_config
from kvasir.model.files import open_model
from kvasir.model.gguf_file import read_gguf
from kvasir.model.safetensors_file import read_header

SPEC = spec_from_config(config_of("llama", num_hidden_layers=1))
SOUND_GGUF = gguf_bytes(gguf_meta("llama", SPEC), gguf_tensors(SPEC, random_weights(SPEC)))
SOUND_SAFETENSORS = safetensors_bytes(random_weights(SPEC))
MOST_BYTES = 32 * 2**20  # that reading a hostile file of kilobytes may allocate


def loads_or_refuses(path: Path) -> bool:
    """Open and load everything; whether it was sound. Lets only a ``ModelError`` pass as a no."""
    tracemalloc.start()
    try:
        model = open_model(path)
        for name in model.tensor_names:
            assert model.tensor(name, torch.float32).numel() > 0
    except ModelError:
        return False
    else:
        return True
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MOST_BYTES


def gguf(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    return path


def header_end(data: bytes) -> int:
    """Where the tensor data of the sound GGUF file ``data`` begin."""
    with tempfile.TemporaryDirectory() as folder:
        tensors = read_gguf(gguf(Path(folder), data)).tensors
    return min(tensor.offset for tensor in tensors.values())


# --- GGUF -----------------------------------------------------------------------------------------


def test_the_synthetic_files_are_sound(tmp_path: Path) -> None:
    assert loads_or_refuses(gguf(tmp_path, SOUND_GGUF))
    (tmp_path / "config.json").write_text(json.dumps(config_of("llama", num_hidden_layers=1)))
    (tmp_path / "model.safetensors").write_bytes(SOUND_SAFETENSORS)
    assert loads_or_refuses(tmp_path)


def test_a_gguf_cut_anywhere_is_refused(tmp_path: Path) -> None:
    end = header_end(SOUND_GGUF)
    cuts = [*range(end + 1), *range(end + 1, len(SOUND_GGUF), 997), len(SOUND_GGUF) - 1]
    for cut in cuts:
        assert not loads_or_refuses(gguf(tmp_path, SOUND_GGUF[:cut])), cut


def test_the_embedded_model_cut_anywhere_is_refused(tmp_path: Path, embedded_gguf: Path) -> None:
    size = embedded_gguf.stat().st_size
    with embedded_gguf.open("rb") as file:
        head = file.read(2_000_000)  # the header has 1.8 MB
    path = gguf(tmp_path, head)
    rng = np.random.default_rng(0)
    cuts = sorted({*range(0, 64, 7), *rng.integers(64, 1_785_664, 40).tolist(), 1_785_000})
    for cut in reversed(cuts):
        os.truncate(path, cut)
        with pytest.raises(ModelError):
            open_model(path)
    # the header whole and the data cut, without copying the data
    path.write_bytes(head)
    for cut in (1_800_000, 31_866_688, size - 1):
        os.truncate(path, cut)
        with pytest.raises(CorruptWeights, match="ends at byte"):
            open_model(path)


NUMBERS = [0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1]


@pytest.mark.parametrize("number", NUMBERS)
def test_every_length_field_of_a_gguf_may_lie(tmp_path: Path, number: int) -> None:
    end = header_end(SOUND_GGUF)
    raw = struct.pack("<Q", number)
    for at in range(4, end - 8, 3):
        loads_or_refuses(gguf(tmp_path, SOUND_GGUF[:at] + raw + SOUND_GGUF[at + 8 :]))


def one_key(*entry: object) -> bytes:
    return gguf_bytes([entry], {})  # type: ignore[list-item]


def nested(depth: int) -> tuple[int, list[object]]:
    value: tuple[int, list[object]] = (U32, [1])
    for _ in range(depth):
        value = (ARRAY, [value])
    return value


HEAD = b"GGUF" + struct.pack("<I", 3)
HOSTILE_GGUF: dict[str, tuple[bytes, type[ModelError], str]] = {
    "empty": (b"", CorruptWeights, "magic"),
    "no magic": (b"GGML" + SOUND_GGUF[4:], CorruptWeights, "begin with"),
    "version 1": (gguf_bytes([], {}, version=1), UnsupportedModel, "version 1"),
    "big endian": (b"GGUF" + struct.pack(">I", 3) + b"\0" * 16, UnsupportedModel, "big-endian"),
    "keys": (HEAD + struct.pack("<QQ", 0, 2**64 - 1), CorruptWeights, "metadata keys"),
    "tensors": (HEAD + struct.pack("<QQ", 2**62, 0), CorruptWeights, "number of tensors"),
    "key length": (
        HEAD + struct.pack("<QQQ", 0, 1, 2**60) + b"\0" * 16, CorruptWeights, "metadata key",
    ),
    "string length": (
        HEAD + struct.pack("<QQ", 0, 1) + gguf_text("k") + struct.pack("<IQ", STRING, 2**63),
        CorruptWeights, "'k'",
    ),
    "items": (
        HEAD + struct.pack("<QQ", 0, 1) + gguf_text("k") + struct.pack("<IIQ", ARRAY, U64, 2**61),
        CorruptWeights, "number of items",
    ),
    "value type": (
        HEAD + struct.pack("<QQ", 0, 1) + gguf_text("k") + struct.pack("<I", 99) + b"\0" * 8,
        CorruptWeights, "unknown type 99",
    ),
    "item type": (
        HEAD + struct.pack("<QQ", 0, 1) + gguf_text("k") + struct.pack("<IIQ", ARRAY, 99, 0),
        CorruptWeights, "unknown type 99",
    ),
    "depth": (one_key("k", ARRAY, nested(100)), CorruptWeights, "nests"),
    "truth": (one_key("k", BOOL, 7), CorruptWeights, "neither 0 nor 1"),
    "utf-8": (one_key("k", STRING, b"\xff\xfe"), CorruptWeights, "UTF-8"),
    "utf-8 key": (one_key(b"\xff", U32, 1), CorruptWeights, "UTF-8"),
    "key twice": (gguf_bytes([("k", U32, 1)] * 2, {}), CorruptWeights, "occurs twice"),
    "alignment 0": (one_key("general.alignment", U32, 0), CorruptWeights, "alignment"),
    "alignment 3": (one_key("general.alignment", U32, 3), CorruptWeights, "alignment"),
    "alignment text": (one_key("general.alignment", STRING, "32"), CorruptWeights, "alignment"),
    "alignment huge": (one_key("general.alignment", U64, 2**63), CorruptWeights, "alignment"),
    "no architecture": (one_key("k", U32, 1), CorruptWeights, "general.architecture"),
    "architecture": (one_key("general.architecture", U32, 1), CorruptWeights, "text"),
}  # fmt: skip


def tensors(*heads: bytes) -> bytes:
    return gguf_bytes([], {}, heads=heads) + b"\0" * 256


HOSTILE_TENSORS: dict[str, tuple[bytes, type[ModelError], str]] = {
    "no dimension": (tensors(tensor_head("t", [], 0, 0)), CorruptWeights, "0 dimensions"),
    "dimensions": (tensors(tensor_head("t", [1] * 5, 0, 0)), CorruptWeights, "5 dimensions"),
    "dimension 0": (tensors(tensor_head("t", [0], 0, 0)), CorruptWeights, "shape"),
    "overflow": (tensors(tensor_head("t", [2**32] * 4, 0, 0)), CorruptWeights, "ends at"),
    "overflow to 0": (tensors(tensor_head("t", [2**63, 2], 0, 0)), CorruptWeights, "ends at"),
    "too long": (tensors(tensor_head("t", [65], 0, 0)), CorruptWeights, "ends at byte"),
    "part of a block": (tensors(tensor_head("t", [33], 3, 0)), CorruptWeights, "Q4_1"),
    "not aligned": (tensors(tensor_head("t", [1], 0, 8)), CorruptWeights, "aligned"),
    "far away": (tensors(tensor_head("t", [1], 0, 2**63)), CorruptWeights, "ends at byte"),
    "overlap": (
        tensors(tensor_head("a", [16], 0, 0), tensor_head("b", [1], 0, 32)), CorruptWeights,
        "overlap",
    ),
    "twice": (
        tensors(tensor_head("a", [1], 0, 0), tensor_head("a", [1], 0, 32)), CorruptWeights,
        "occurs twice",
    ),
    "type": (tensors(tensor_head("t", [1], 5, 0)), UnsupportedModel, "ggml type 5"),
    "type huge": (tensors(tensor_head("t", [1], 2**32 - 1, 0)), UnsupportedModel, "4294967295"),
    "name": (tensors(tensor_head("n" * 1025, [1], 0, 0)), CorruptWeights, "tensor name"),
}  # fmt: skip


@pytest.mark.parametrize("case", [*HOSTILE_GGUF, *(f"tensor: {k}" for k in HOSTILE_TENSORS)])
def test_hostile_gguf_headers_are_refused_by_name(tmp_path: Path, case: str) -> None:
    known = HOSTILE_GGUF | {f"tensor: {k}": v for k, v in HOSTILE_TENSORS.items()}
    data, error, said = known[case]
    with pytest.raises(error, match=said):
        open_model(gguf(tmp_path, data))
    assert not loads_or_refuses(tmp_path / "m.gguf")


METADATA = [key for key, _, _ in gguf_meta("llama", SPEC) if key.startswith("llama.")]


@pytest.mark.parametrize("key", METADATA)
def test_absurd_gguf_numbers_are_refused(tmp_path: Path, key: str) -> None:
    for kind, value in (
        (U64, 0), (U64, 10**9), (U64, 2**63), (5, -1), (F32, float("nan")), (F32, float("inf")),
        (STRING, "1"), (ARRAY, (U32, [1, 2])), (BOOL, 1),
    ):  # fmt: skip
        if key.endswith("freq_base") and value == 10**9:
            continue  # a fine base
        meta = [e for e in gguf_meta("llama", SPEC) if e[0] != key] + [(key, kind, value)]
        data = gguf_bytes(meta, gguf_tensors(SPEC, random_weights(SPEC)))
        assert not loads_or_refuses(gguf(tmp_path, data)), (kind, value)


def mutate(data: bytes, edits: list[tuple[int, bytes]], within: int) -> bytes:
    changed = bytearray(data)
    for at, raw in edits:
        begin = at % within
        changed[begin : begin + len(raw)] = raw
    return bytes(changed)


EDITS = st.lists(
    st.tuples(
        st.integers(0, 10**6),
        st.one_of(
            st.binary(min_size=1, max_size=8),
            st.sampled_from([struct.pack("<Q", n) for n in NUMBERS]),
            st.sampled_from([struct.pack("<I", n) for n in range(12)]),
        ),
    ),
    min_size=1,
    max_size=6,
)
FUZZ = settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@FUZZ
@given(edits=EDITS, cut=st.integers(0, 2**16))
def test_any_damage_to_a_gguf_header(tmp_path: Path, edits: list, cut: int) -> None:
    data = mutate(SOUND_GGUF, edits, header_end(SOUND_GGUF))
    loads_or_refuses(gguf(tmp_path, data[: len(data) - cut % 64]))


@FUZZ
@given(data=st.binary(max_size=400))
def test_any_bytes_as_a_gguf(tmp_path: Path, data: bytes) -> None:
    assert not loads_or_refuses(gguf(tmp_path, HEAD + data))


# --- safetensors ----------------------------------------------------------------------------------


def entry(**changes: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes


def st_file(header: object, data: bytes = b"\0" * 8) -> bytes:
    return with_header(json.dumps(header).encode(), data)


DEEP = b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
HOSTILE_SAFETENSORS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "does not fit"),
    "short": (b"\1\0\0", "does not fit"),
    "length 0": (struct.pack("<Q", 0), "does not fit"),
    "length": (struct.pack("<Q", 2**63) + b"{}", "does not fit"),
    "length 2**64": (struct.pack("<Q", 2**64 - 1) + b"{}", "does not fit"),
    "no json": (with_header(b"{]"), "not valid JSON"),
    "utf-8": (with_header(b'{"\xff": 1}'), "not valid JSON"),
    "NaN": (with_header(b'{"a": NaN}'), "not valid JSON"),
    "deep": (with_header(DEEP), "not valid JSON"),
    "long number": (with_header(b'{"a": ' + b"9" * 10_000 + b"}"), "not valid JSON"),
    "list": (with_header(b"[]"), "expected an object"),
    "no entry": (st_file({"a": 1}), "is no object"),
    "no dtype": (st_file({"a": {"shape": [2], "data_offsets": [0, 8]}}), "dtype"),
    "dtype": (st_file({"a": entry(dtype="F31")}), "dtype 'F31'"),
    "dtype list": (st_file({"a": entry(dtype=["F32"])}), "dtype"),
    "shape": (st_file({"a": entry(shape=2)}), "shape 2"),
    "shape -1": (st_file({"a": entry(shape=[-2])}), "shape"),
    "shape true": (st_file({"a": entry(shape=[True, 2])}), "shape"),
    "shape 1.5": (st_file({"a": entry(shape=[2.0])}), "shape"),
    "shape long": (st_file({"a": entry(shape=[1] * 9)}), "shape"),
    "overflow": (st_file({"a": entry(shape=[2**62, 2**62, 2**62, 2])}), "needs"),
    "overflow to 8": (st_file({"a": entry(shape=[2**62 + 1, 4])}), "needs"),
    "offsets": (st_file({"a": entry(data_offsets=[0])}), "offsets"),
    "offsets turned": (st_file({"a": entry(data_offsets=[8, 0])}), "offsets"),
    "offsets -1": (st_file({"a": entry(data_offsets=[-8, 0])}), "offsets"),
    "offsets far": (st_file({"a": entry(data_offsets=[2**40, 2**40 + 8])}), "begins at"),
    "gap": (st_file({"a": entry(), "b": entry(data_offsets=[12, 20])}), "begins at 12"),
    "overlap": (st_file({"a": entry(), "b": entry(data_offsets=[4, 12])}), "begins at 4"),
    "same": (st_file({"a": entry(), "b": entry()}), "begins at 0"),
    "bytes behind": (st_file({"a": entry()}, b"\0" * 9), "the file 9"),
    "bytes missing": (st_file({"a": entry()}, b"\0" * 7), "the file 7"),
}


@pytest.mark.parametrize("case", HOSTILE_SAFETENSORS)
def test_hostile_safetensors_headers_are_refused(tmp_path: Path, case: str) -> None:
    data, said = HOSTILE_SAFETENSORS[case]
    (tmp_path / "config.json").write_text(json.dumps(config_of("llama")))
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(CorruptWeights, match=said):
        read_header(tmp_path / "model.safetensors")
    assert not loads_or_refuses(tmp_path)


def test_a_safetensors_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for cut in [*range(0, 3000, 7), len(SOUND_SAFETENSORS) - 1]:
        path.write_bytes(SOUND_SAFETENSORS[:cut])
        with pytest.raises(CorruptWeights):
            read_header(path)


@FUZZ
@given(edits=EDITS)
def test_any_damage_to_a_safetensors_header(tmp_path: Path, edits: list) -> None:
    length = 8 + int.from_bytes(SOUND_SAFETENSORS[:8], "little")
    (tmp_path / "config.json").write_text(json.dumps(config_of("llama", num_hidden_layers=1)))
    damaged = mutate(SOUND_SAFETENSORS, edits, length)
    (tmp_path / "model.safetensors").write_bytes(damaged)
    loads_or_refuses(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


@FUZZ
@given(header=st.dictionaries(st.text(max_size=8), JSON | st.builds(entry, shape=JSON), max_size=3))
def test_any_json_as_a_safetensors_header(tmp_path: Path, header: dict) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(with_header(json.dumps(header).encode(), b"\0" * 8))
    with pytest.raises(CorruptWeights):
        read_header(path)


CONFIG_KEYS = sorted({*config_of("qwen3"), "rope_scaling", "rope_parameters", "layer_types",
    "use_sliding_window", "tie_word_embeddings", "quantization_config", "hidden_act",
    "eos_token_id", "attention_bias", "rope_theta", "rms_norm_eps"})  # fmt: skip


@FUZZ
@given(
    family=st.sampled_from(["llama", "mistral", "qwen2", "qwen3"]),
    changes=st.dictionaries(st.sampled_from(CONFIG_KEYS), JSON, max_size=4),
)
def test_any_value_in_a_config(family: str, changes: dict) -> None:
    try:
        spec = spec_from_config(config_of(family) | changes)
    except ModelError:
        return
    assert spec.n_heads % spec.n_kv_heads == 0
    assert 1 <= spec.window <= 2**27


INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    "name",
    ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", "..", ".", "", "model.bin",
     "sub\\model.safetensors", "x\0.safetensors", 7, None],
)  # fmt: skip
def test_an_index_names_only_files_of_its_folder(tmp_path: Path, name: object) -> None:
    folder = write_folder(tmp_path / "model", config_of("llama"))
    write_folder(tmp_path, config_of("llama"))
    write_folder(folder / "sub", config_of("llama"))
    names = random_weights(spec_from_config(config_of("llama")))
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, name)}))
    said = "plain name" if isinstance(name, str) else "puts tensor"
    with pytest.raises(CorruptWeights, match=said):
        open_model(folder)


@pytest.mark.parametrize("value", [None, [], {}, "x", {"weight_map": []}, {"weight_map": {}}])
def test_an_index_that_is_none_is_refused(tmp_path: Path, value: object) -> None:
    folder = write_folder(tmp_path, config_of("llama"))
    (folder / INDEX).write_text(json.dumps(value))
    with pytest.raises(CorruptWeights):
        open_model(folder)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", config_of("llama"))
    weights = folder / "model.safetensors"
    weights.rename(tmp_path / "elsewhere.safetensors")
    weights.symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(CorruptWeights, match="link that leads out"):
        open_model(folder)


def test_the_links_of_a_hub_cache_are_followed(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "models--org--tiny/snapshots/abc", config_of("llama"))
    blobs = tmp_path / "models--org--tiny/blobs"
    blobs.mkdir()
    weights = folder / "model.safetensors"
    weights.rename(blobs / "0123")
    weights.symlink_to("../../blobs/0123")
    assert loads_or_refuses(folder)


@pytest.mark.parametrize("damage", [b"", b"[]", b"{", b"\xff", DEEP, b" " * (2**24 + 1)])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_damaged_json_beside_the_weights(tmp_path: Path, name: str, damage: bytes) -> None:
    folder = write_folder(tmp_path, config_of("llama"))
    (folder / name).write_bytes(damage)
    with pytest.raises(CorruptWeights, match=name):
        open_model(folder)


def test_a_folder_named_like_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").mkdir()
    with pytest.raises(ModelNotFound):
        open_model(tmp_path / "m.gguf")
