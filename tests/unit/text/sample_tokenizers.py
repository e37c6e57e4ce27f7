"""Small tokenizers of every kind that the tests of ``text`` use, built without files or weights."""

from __future__ import annotations

from hypothesis import settings
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from kvasir.text import tokenizer as product
from kvasir.text.spelling import BYTE_LEVEL_ALPHABET

# the same examples in every run, however busy the machine is
steady = settings(deadline=None, derandomize=True)

ALPHABET = sorted(BYTE_LEVEL_ALPHABET, key=BYTE_LEVEL_ALPHABET.__getitem__)  # by byte
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = [
    *("Ġ t", "h e", "Ġt he", "t h", "l l", "o Ġ", "Ġ Ġ", "ĠĠ ĠĠ", "i n", "in g", "1 2"),
    *("Ċ Ċ", "ð Ł", "ðŁ ĺ", "Ã ©", "ä ½", "ä½ ł", "å ¥", "s t", "st o", "sto p", ". Ċ", "12 3"),
    *("a s", "as s", "ass i", "assi s", "e r", "u s", "us er", "123 4", "ĠĠ Ġ", "e Ġ"),
]


def gguf_metadata(pre: str = "smollm", **changes: object) -> dict[str, object]:
    """Metadata of a byte-level BPE: specials at ids 0 to 2, a user-defined token at 3."""
    merged = [m.replace(" ", "") for m in MERGES]
    tokens = [*SPECIALS, "[tool]", *ALPHABET, *merged]
    metadata: dict[str, object] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3, 3, 4] + [1] * (len(tokens) - 4),
        "tokenizer.ggml.merges": list(MERGES),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
    }
    for name, value in changes.items():
        metadata["tokenizer.ggml." + name] = value
    return {k: v for k, v in metadata.items() if v is not ...}  # an Ellipsis removes a key


def byte_level(pre: str = "smollm", **changes: object) -> product.Tokenizer:
    """A byte-level BPE tokenizer as it comes out of a GGUF file."""
    return product.tokenizer_from_gguf(gguf_metadata(pre, **changes))


def sentencepiece_backend() -> Tokenizer:
    """A BPE with byte fallback and a dummy prefix, as Llama 2 and the first Mistral have."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += [*"▁abcdefghilmnoprstuw.,!?\n", "▁t", "th", "▁th", "▁the", "▁▁", "in", "st", "▁a"]
    merges = ["▁ t", "t h", "▁t h", "▁th e", "▁ ▁", "i n", "s t", "▁ a"]
    backend = Tokenizer(
        models.BPE(
            vocab={piece: i for i, piece in enumerate(pieces)},
            merges=[tuple(m.split(" ")) for m in merges],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens(
        [AddedToken(t, normalized=False, special=True) for t in ("<unk>", "<s>", "</s>")]
    )
    return backend


def sentencepiece() -> product.Tokenizer:
    """The SentencePiece-like tokenizer with bos."""
    return product.Tokenizer(
        sentencepiece_backend(), eos_ids=frozenset({2}), bos_id=1, add_bos=True, eos_id=2
    )
