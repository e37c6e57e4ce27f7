"""A small model in a GGUF file that has a tokenizer, as the demonstration model does."""

from __future__ import annotations

from pathlib import Path

from synthetic_models import (
    ARRAY,
    BOOL,
    I32,
    STRING,
    U32,
    config_of,
    gguf_bytes,
    gguf_meta,
    gguf_tensors,
    random_weights,
)

from kvasir.model.config_json import spec_from_config
from kvasir.model.files import ModelFiles, open_model
from kvasir.text.spelling import BYTE_LEVEL_ALPHABET

ALPHABET = sorted(BYTE_LEVEL_ALPHABET, key=BYTE_LEVEL_ALPHABET.__getitem__)
TOKENS = ["<|end|>", "<|user|>", *ALPHABET, "he"]
TOKENIZER = {
    "model": ("tokenizer.ggml.model", STRING, "gpt2"),
    "pre": ("tokenizer.ggml.pre", STRING, "smollm"),
    "tokens": ("tokenizer.ggml.tokens", ARRAY, (STRING, TOKENS)),
    "types": ("tokenizer.ggml.token_type", ARRAY, (I32, [3, 3] + [1] * (len(TOKENS) - 2))),
    "merges": ("tokenizer.ggml.merges", ARRAY, (STRING, ["h e"])),
    "bos": ("tokenizer.ggml.add_bos_token", BOOL, False),
    "template": ("tokenizer.chat_template", STRING, "{{ messages }}"),
    "file_type": ("general.file_type", U32, 3),
}


def gguf_model(
    path: Path, family: str, *, window: int = 256, **meta: tuple[str, int, object]
) -> ModelFiles:
    """A small GGUF file with a tokenizer."""
    config = config_of(
        family, vocab_size=320, tie_word_embeddings=True, max_position_embeddings=window
    )
    spec = spec_from_config(config)
    tensors = gguf_tensors(spec, random_weights(spec))
    # the writer's own list of three tokens gives way to the tokenizer's
    plain = [m for m in gguf_meta(spec.architecture, spec) if m[0] != "tokenizer.ggml.tokens"]
    path.write_bytes(gguf_bytes([*plain, *TOKENIZER.values(), *meta.values()], tensors))
    return open_model(path)
