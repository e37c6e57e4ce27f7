"""The tokenizer: round trips, the cuts of each kind, special tokens, bos, and broken files."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_tokenizers import (
    ALPHABET,
    MERGES,
    byte_level,
    gguf_metadata,
    sentencepiece,
    sentencepiece_backend,
    steady,
)
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, processors

from kvasir.core.errors import (
    CorruptWeights,
    ModelError,
    ModelNotFound,
    RequestError,
    UnsupportedModel,
)
from kvasir.text.gguf_bpe import build_backend
from kvasir.text.tokenizer import Tokenizer, tokenizer_from_folder, tokenizer_from_gguf

KINDS = ("smollm", "llama-bpe", "qwen2")
SMOLLM = byte_level()
SPM = sentencepiece()
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.text(
    "the 12\n\t'S.é你😀½<|im_end|>[tool]", max_size=40
)


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.token_text(i) for i in tokenizer.encode(text)]


@steady
@given(TEXT)
def test_text_survives_a_round_trip(text: str) -> None:
    assert SMOLLM.decode(SMOLLM.encode(text)) == text
    assert SMOLLM.decode(SMOLLM.encode(text, special=False)) == text


@steady
@given(st.lists(st.integers(0, SMOLLM.vocab_size - 1), max_size=30), st.booleans())
def test_decoding_any_byte_level_ids_equals_the_library(ids: list[int], skip: bool) -> None:
    backend = build_backend(gguf_metadata())
    assert SMOLLM.decode(ids, skip_special=skip) == backend.decode(ids, skip_special_tokens=skip)


@steady
@given(st.text("the ast.\n你é▁", max_size=30), st.booleans())
def test_sentencepiece_text_equals_the_library(text: str, skip: bool) -> None:
    ids = SPM.encode(text)
    assert ids[0] == SPM.bos_id
    expected = sentencepiece_backend().decode(ids, skip_special_tokens=skip)
    assert SPM.decode(ids, skip_special=skip) == expected


def test_sentencepiece_bytes_make_characters_and_the_first_space_is_a_mark() -> None:
    ids = SPM.encode("the 你", bos=False)
    assert SPM.token_bytes(ids[0]) == b" the"
    assert [SPM.token_bytes(i) for i in ids[-3:]] == [b"\xe4", b"\xbd", b"\xa0"]
    assert SPM.decode(ids) == "the 你"
    assert SPM.decode(SPM.encode("  the", bos=False)) == "  the"


def test_each_kind_cuts_digits_as_its_family_does() -> None:
    # "1 2", "12 3" and "123 4" are merges, so what stays apart was cut before BPE
    assert pieces(byte_level("smollm"), "12345") == ["1", "2", "3", "4", "5"]
    assert pieces(byte_level("qwen2"), "12345") == ["1", "2", "3", "4", "5"]
    assert pieces(byte_level("llama-bpe"), "12341") == ["123", "4", "1"]


def test_each_kind_cuts_words_and_line_ends_as_its_family_does() -> None:
    # GPT-2's pattern parts a full stop from the line end after it; the later ones keep them whole
    assert pieces(byte_level("smollm"), "in.\n") == ["in", ".", "\n"]
    assert pieces(byte_level("qwen2"), "in.\n") == ["in", ".\n"]
    assert pieces(byte_level("llama-bpe"), "in.\n") == ["in", ".\n"]
    # the last space of a run belongs to the word that follows
    assert pieces(byte_level("smollm"), "in   the") == ["in", "  ", " the"]


def test_a_whole_word_of_the_vocabulary_is_one_token_only_where_the_family_says_so() -> None:
    tokens = [*gguf_metadata()["tokenizer.ggml.tokens"], "zebra"]  # no merges lead to it
    types = [*gguf_metadata()["tokenizer.ggml.token_type"], 1]
    assert pieces(byte_level("llama-bpe", tokens=tokens, token_type=types), "zebra") == ["zebra"]
    assert len(pieces(byte_level("qwen2", tokens=tokens, token_type=types), "zebra")) > 1


def test_only_qwen2_composes_characters() -> None:
    decomposed = "e\u0301"
    assert byte_level("qwen2").decode(byte_level("qwen2").encode(decomposed)) == "é"
    for kind in ("smollm", "llama-bpe"):
        assert byte_level(kind).decode(byte_level(kind).encode(decomposed)) == decomposed


def test_special_tokens_are_ids_or_ordinary_text_as_asked() -> None:
    text = "<|im_start|>user[tool]"
    assert SMOLLM.encode(text)[0] == 1
    plain = SMOLLM.encode(text, special=False)
    assert 1 not in plain
    assert SMOLLM.decode(plain) == text
    assert SMOLLM.encode(text)[0] == 1, "asking for plain text must not change later calls"
    assert SMOLLM.is_special(1)
    assert not SMOLLM.is_special(3), "a user-defined token is text"
    assert SMOLLM.is_added(3)
    assert 3 in SMOLLM.encode(text)
    assert SMOLLM.decode(SMOLLM.encode(text), skip_special=True) == "user[tool]"


def test_bos_begins_a_text_once_and_only_where_wanted() -> None:
    tokenizer = byte_level(add_bos_token=True)
    ids = tokenizer.encode("in")
    assert ids == [1, *SMOLLM.encode("in")]
    assert tokenizer.encode("<|im_start|>in") == ids
    assert tokenizer.encode("in", special=False) == SMOLLM.encode("in")
    assert tokenizer.encode("in", bos=False) == SMOLLM.encode("in")
    assert tokenizer.encode("") == [1]
    assert byte_level("llama-bpe", add_bos_token=...).encode("")
    assert not byte_level("qwen2", add_bos_token=...).encode("")
    assert not byte_level(add_bos_token=True, bos_token_id=...).encode("")


def test_every_named_end_of_text_ends_an_answer() -> None:
    tokenizer = byte_level(eos_token_id=2, eot_token_id=0, eom_token_id=3)
    assert tokenizer.eos_ids == {0, 2, 3}
    assert tokenizer.eos_text == "<|im_end|>"
    assert tokenizer.bos_text == "<|im_start|>"
    assert byte_level(eos_token_id=...).eos_text == ""


def test_half_a_surrogate_pair_is_refused_with_its_place() -> None:
    with pytest.raises(RequestError, match=r"U\+D83D\) at character 3"):
        SMOLLM.encode("abc\ud83d")
    with pytest.raises(RequestError):
        SMOLLM.encode("\udc00", special=False)


def test_a_character_without_a_token_is_refused_not_dropped() -> None:
    metadata = gguf_metadata()
    gone = ALPHABET[0x04]
    tokens = [t if t != gone else "[unused]" for t in metadata["tokenizer.ggml.tokens"]]
    tokenizer = tokenizer_from_gguf(metadata | {"tokenizer.ggml.tokens": tokens})
    assert tokenizer.decode(tokenizer.encode("é\x05")) == "é\x05"
    with pytest.raises(RequestError, match=r"U\+0004 at position 1"):
        tokenizer.encode("é\x04")


@pytest.mark.parametrize("token", [-1, SMOLLM.vocab_size, 2**31, 2**63, 10**400])
def test_ids_outside_the_vocabulary_are_refused(token: int) -> None:
    with pytest.raises(RequestError, match="not of the vocabulary"):
        SMOLLM.decode([token])
    with pytest.raises(RequestError):
        SMOLLM.token_bytes(token)


def test_threads_do_not_disturb_each_other() -> None:
    tokenizer = byte_level()
    text = "<|im_start|>the 12 in[tool]\n" * 20
    wanted = tokenizer.encode(text), byte_level().encode(text, special=False)
    assert wanted[0] != wanted[1]
    with ThreadPoolExecutor(8) as pool:
        special = [True, False] * 40
        found = list(pool.map(lambda s: tokenizer.encode(text, special=s), special))
    assert found == [wanted[0], wanted[1]] * 40


# --- folders


def write_folder(path: Path, backend: Backend, **files: object) -> Path:
    (path / "tokenizer.json").write_text(backend.to_str(), encoding="utf-8")
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return path


def test_a_folder_says_how_texts_begin_and_end(tmp_path: Path) -> None:
    folder = write_folder(
        tmp_path,
        build_backend(gguf_metadata()),
        tokenizer_config={
            "bos_token": {"content": "<|im_start|>"},
            "eos_token": "<|im_end|>",
            "add_bos_token": True,
            "model_max_length": 1000000000000000019884624838656,
        },
        generation_config={"eos_token_id": [0, 2]},
        config={"eos_token_id": 3},
    )
    tokenizer = tokenizer_from_folder(folder)
    assert tokenizer.eos_ids == {0, 2}
    assert tokenizer.eos_text == "<|im_end|>"
    assert tokenizer.encode("in") == [1, *SMOLLM.encode("in")]


def test_a_folder_with_config_json_alone_and_a_post_processor_for_bos(tmp_path: Path) -> None:
    backend = build_backend(gguf_metadata())
    backend.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    config = {"bos_token_id": 1, "eos_token_id": [2, 0]}
    tokenizer = tokenizer_from_folder(write_folder(tmp_path, backend, config=config))
    assert tokenizer.eos_ids == {0, 2}
    assert tokenizer.encode("in") == [1, *SMOLLM.encode("in")]


def test_a_file_that_asks_for_cutting_or_padding_is_not_heeded(tmp_path: Path) -> None:
    backend = build_backend(gguf_metadata())
    backend.enable_truncation(4)
    backend.enable_padding(length=64)
    tokenizer = tokenizer_from_folder(write_folder(tmp_path, backend))
    text = "the in stop " * 10
    assert tokenizer.encode(text) == SMOLLM.encode(text)


def test_dropout_of_training_is_switched_off(tmp_path: Path) -> None:
    described = json.loads(build_backend(gguf_metadata()).to_str())
    described["model"]["dropout"] = 0.9
    (tmp_path / "tokenizer.json").write_text(json.dumps(described), encoding="utf-8")
    tokenizer = tokenizer_from_folder(tmp_path)
    assert tokenizer.encode("the stop in" * 20) == SMOLLM.encode("the stop in" * 20)


def test_a_missing_tokenizer_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"tokenizer\.json"):
        tokenizer_from_folder(tmp_path)


WHOLE = build_backend(gguf_metadata()).to_str()


@steady
@given(cut=st.integers(0, len(WHOLE) - 2))
def test_a_truncated_tokenizer_file_is_corrupt(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    (folder / "tokenizer.json").write_bytes(WHOLE.encode()[:cut])
    with pytest.raises(CorruptWeights):
        tokenizer_from_folder(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"[" * 100_000,
        b"\xff\xfe",
        b'{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}',
        b'{"model": {"type": "BPE", "vocab": {"a": 4294967295}, "merges": []}, '
        b'"decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, '
        b'"use_regex": false}}',
        b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "q"]]}}',
        b'{"model": {"type": "BPE", "vocab": {}, "merges": []}, "pre_tokenizer": '
        b'{"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Isolated", "invert": false}}',
    ],
)
def test_hostile_tokenizer_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ModelError):
        tokenizer_from_folder(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("generation_config", {"eos_token_id": -1}),
        ("generation_config", {"eos_token_id": [2, 10**9]}),
        ("generation_config", {"eos_token_id": "2"}),
        ("generation_config", {"eos_token_id": True}),
        ("config", {"bos_token_id": 5000}),
        ("tokenizer_config", {"eos_token": 7}),
        ("tokenizer_config", {"add_bos_token": "yes"}),
        ("tokenizer_config", []),
    ],
)
def test_files_that_contradict_the_tokenizer_are_refused(
    tmp_path: Path, name: str, content: object
) -> None:
    folder = write_folder(tmp_path, build_backend(gguf_metadata()), **{name: content})
    with pytest.raises(CorruptWeights):
        tokenizer_from_folder(folder)


def test_a_decoder_of_another_kind_is_refused_by_name(tmp_path: Path) -> None:
    backend = Backend(models.BPE(vocab={"a": 0}, merges=[]))
    with pytest.raises(UnsupportedModel, match="no decoder"):
        tokenizer_from_folder(write_folder(tmp_path, backend))
    backend.decoder = decoders.WordPiece()
    with pytest.raises(UnsupportedModel, match="WordPiece"):
        tokenizer_from_folder(write_folder(tmp_path, backend))


# --- GGUF metadata


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"model": "llama"}, "llama"), ({"model": "bert"}, "bert"), ({"pre": "falcon"}, "falcon")],
)
def test_unknown_kinds_are_refused_by_name(changes: dict[str, object], named: str) -> None:
    with pytest.raises(UnsupportedModel, match=named):
        byte_level(**({"pre": "smollm"} | changes))


def test_a_file_that_names_no_pre_tokenizer_is_refused() -> None:
    metadata = gguf_metadata()
    del metadata["tokenizer.ggml.pre"]
    with pytest.raises(UnsupportedModel, match="none named"):
        tokenizer_from_gguf(metadata)


@pytest.mark.parametrize(
    "changes",
    [
        {"tokens": ...},
        {"tokens": []},
        {"tokens": "abc"},
        {"tokens": [1, 2]},
        {"tokens": ["a", "a"], "token_type": ..., "merges": []},
        {"tokens": ["a", "\ud800"], "token_type": ..., "merges": []},
        {"tokens": ["a", ""], "token_type": ..., "merges": []},
        {"token_type": [1]},
        {"token_type": 3},
        {"token_type": ["3"] * (4 + 256 + len(MERGES))},
        {"token_type": [10**30] * (4 + 256 + len(MERGES))},
        {"merges": ...},
        {"merges": 12},
        {"merges": ["th"]},
        {"merges": ["t zz"]},
        {"merges": ["z z"]},
        {"merges": [["t", "h"]]},
        {"bos_token_id": -1},
        {"bos_token_id": 10**6},
        {"eos_token_id": 2**40},
        {"eos_token_id": "2"},
        {"add_bos_token": 1},
        {"model": 5},
        {"model": ...},
    ],
)
def test_inconsistent_metadata_are_corrupt(changes: dict[str, object]) -> None:
    with pytest.raises(CorruptWeights):
        byte_level(**changes)
