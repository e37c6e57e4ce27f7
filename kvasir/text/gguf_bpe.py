"""A byte-level BPE tokenizer out of GGUF metadata, for the kinds that Kvasir knows.

Invariant: every array is checked in type, length and content before anything is built from it, and
a kind that is not known is refused by name, never approximated: a tokenizer that cuts text
otherwise than in training gives a model that is subtly worse and nobody notices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from kvasir.core.errors import CorruptWeights, UnsupportedModel
from kvasir.model.fields import Fields, shorten
from kvasir.model.limits import MAX_VOCAB

_SOURCE = "the GGUF metadata"
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # values of tokenizer.ggml.token_type
_TOKEN_TYPES = range(7)


@dataclass(frozen=True, slots=True)
class _Kind:
    """How a family of models cuts text before BPE, as its published tokenizer.json does."""

    split: str | None  # regex; None: each digit alone, then the pattern of GPT-2
    nfc: bool = False
    ignore_merges: bool = False  # a word that is in the vocabulary is one token at once
    add_bos: bool = False  # where the metadata do not say


def _words(digits: str) -> str:
    """The pattern that Llama 3 and Qwen2 share but for how many digits go together."""
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


_KINDS = {
    "smollm": _Kind(None),
    "llama-bpe": _Kind(_words(r"\p{N}{1,3}"), ignore_merges=True, add_bos=True),
    "qwen2": _Kind(_words(r"\p{N}"), nfc=True),
}


def add_bos_default(metadata: Mapping[str, object]) -> bool:
    """Whether this kind of tokenizer begins a text with bos where the metadata do not say."""
    return _kind(Fields(metadata, _SOURCE)).add_bos


def build_backend(metadata: Mapping[str, object]) -> tokenizers.Tokenizer:
    """The tokenizer that ``metadata`` describe.

    Raises ``UnsupportedModel`` naming a tokenizer model or pre-tokenizer that is not known, and
    ``CorruptWeights`` where the arrays contradict each other.
    """
    fields = Fields(metadata, _SOURCE)
    kind = _kind(fields)
    tokens = _tokens(fields)
    types = _token_types(fields, len(tokens))
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        twice = next(token for i, token in enumerate(tokens) if vocab[token] != i)
        raise CorruptWeights(f"{_SOURCE} list the token {shorten(twice)} more than once")
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=_merges(fields, vocab), ignore_merges=kind.ignore_merges)
    )
    if kind.nfc:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = _pre_tokenizer(
        kind, add_prefix_space=fields.flag("tokenizer.ggml.add_space_prefix", False)
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(
        [
            AddedToken(token, normalized=False, special=True)
            for token, type_ in zip(tokens, types, strict=True)
            if type_ in (_CONTROL, _UNKNOWN)
        ]
    )
    backend.add_tokens(
        [
            AddedToken(token, normalized=False, special=False)
            for token, type_ in zip(tokens, types, strict=True)
            if type_ == _USER_DEFINED
        ]
    )
    return backend


def _kind(fields: Fields) -> _Kind:
    model = fields.text("tokenizer.ggml.model")
    if model != "gpt2":
        raise UnsupportedModel(
            f"the GGUF file's tokenizer model is {shorten(model)}; Kvasir runs byte-level BPE "
            "('gpt2') from GGUF files. A folder in the Hugging Face layout may work instead"
        )
    pre = fields.text("tokenizer.ggml.pre", "(none named)")
    if pre not in _KINDS:
        raise UnsupportedModel(
            f"the GGUF file's pre-tokenizer is {shorten(pre)}; Kvasir knows "
            f"{', '.join(sorted(_KINDS))}. A folder in the Hugging Face layout may work instead"
        )
    return _KINDS[pre]


def _pre_tokenizer(kind: _Kind, *, add_prefix_space: bool) -> pre_tokenizers.PreTokenizer:
    if kind.split is None:
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=True),
            ]
        )
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(kind.split), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=False),
        ]
    )


def _array(fields: Fields, key: str, limit: int) -> Sequence[object]:
    value = fields.values.get(key)
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise CorruptWeights(f"{fields.source} say {key} = {shorten(value)}; expected an array")
    if len(value) > limit:
        raise CorruptWeights(f"{key} has {len(value)} entries; at most {limit} are read")
    return value


def _tokens(fields: Fields) -> list[str]:
    key = "tokenizer.ggml.tokens"
    tokens = [token for token in _array(fields, key, MAX_VOCAB) if isinstance(token, str)]
    if not tokens or len(tokens) != len(_array(fields, key, MAX_VOCAB)) or "" in tokens:
        raise CorruptWeights(f"{key} must hold strings, at least one, none of them empty")
    return tokens


def _token_types(fields: Fields, n_tokens: int) -> Sequence[object]:
    key = "tokenizer.ggml.token_type"
    if not fields.has(key):
        return [1] * n_tokens
    types = _array(fields, key, MAX_VOCAB)
    if len(types) != n_tokens:
        raise CorruptWeights(f"{key} has {len(types)} entries for {n_tokens} tokens")
    if any(isinstance(t, bool) or t not in _TOKEN_TYPES for t in types):
        raise CorruptWeights(f"{key} has an entry that is no token type (0 to 6)")
    return types


def _merges(fields: Fields, vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    key = "tokenizer.ggml.merges"
    merges: list[tuple[str, str]] = []
    for i, merge in enumerate(_array(fields, key, 2 * MAX_VOCAB)):
        # the byte-level alphabet has no space, so the one space parts the two halves
        left, space, right = merge.partition(" ") if isinstance(merge, str) else ("", "", "")
        if not space or left not in vocab or right not in vocab or left + right not in vocab:
            raise CorruptWeights(
                f"{key}[{i}] is {shorten(merge)}; expected two tokens of the vocabulary, parted by "
                "a space, that make a third"
            )
        merges.append((left, right))
    return merges
