"""What a model would need to read documents whole: tokens, window, KV, weights. Loads no weights.

Invariant: tokens and sections are those that reading them would have: the model's own tokenizer and
template lay them out as a context would be.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kvasir.cli import show
from kvasir.cli.receipts import duration
from kvasir.contexts.definition import Definition
from kvasir.contexts.outline import default_section_tokens, outline, room_tokens
from kvasir.core.errors import UnsupportedModel
from kvasir.core.geometry import KvGeometry
from kvasir.documents.values import Document, Extraction
from kvasir.model.files import ModelFiles, open_model
from kvasir.model.memory import parameter_count
from kvasir.model.spec import ModelSpec
from kvasir.text.codec import TextCodec
from kvasir.text.template import ChatTemplate
from kvasir.text.tokenizer import tokenizer_from_folder, tokenizer_from_gguf
from kvasir.text.transcript import Transcripts

_KV_FORMATS = (("bf16", "bfloat16", 2), ("int8", "int8", 1))
_UNBOUNDED = 2**31  # tokens: a window in which any document is one part
_BF16_BYTES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What one model needs for some documents."""

    model: str
    window: int
    tokens: int  # of the documents as one prompt
    fits: bool  # whole, with room for a question and an answer
    sections: int  # where it does not; else 1
    window_needed: int
    kv_bytes: dict[str, int]  # of the whole, by format
    weights_bytes: int  # in bfloat16
    file_bytes: int  # of the weights as they lie on disk
    read_s: float | None = None  # of the whole or its sections; None: not measured
    measured: str = ""  # where that comes from, or why there is none


def extracted(files: Sequence[tuple[str, Path]]) -> Extraction:
    """The documents of files. Raises what ``documents.extract`` does."""
    from kvasir.documents.extract import extract

    found = [extract(path, name) for name, path in files]
    return Extraction(
        tuple(document for each in found for document in each.documents),
        tuple(row for each in found for row in each.unread),
    )


def need_of(name: str, path: Path, documents: Sequence[Document]) -> Need:
    """What the model at ``path`` needs. Raises ``ModelError``, and ``UnsupportedModel`` where it
    has no chat template, so that it cannot be asked about documents."""
    files = open_model(path)
    window = files.spec.window
    with _codec(files) as codec:
        definition = Definition(
            documents=tuple(documents), section_tokens=default_section_tokens(window)
        )
        whole = outline(codec, definition, _UNBOUNDED)
        fits = whole.tokens <= window - room_tokens(window)
        parts = 1 if fits else len(outline(codec, definition, window).parts)
    return Need(
        model=name,
        window=window,
        tokens=whole.tokens,
        fits=fits,
        sections=parts,
        window_needed=window_for(whole.tokens),
        kv_bytes={
            told: whole.tokens * _token_bytes(files.spec, dtype, n_bytes)
            for told, dtype, n_bytes in _KV_FORMATS
        },
        weights_bytes=parameter_count(files.spec) * _BF16_BYTES,
        file_bytes=sum(each.stat().st_size for each in files.weight_files()),
    )


def window_for(tokens: int) -> int:
    """The least window that holds so many tokens with room for a question and its answer."""
    low, high = tokens, 2 * tokens + 2048
    while low < high:
        middle = (low + high) // 2
        if middle - room_tokens(middle) >= tokens:
            high = middle
        else:
            low = middle + 1
    return low


def _token_bytes(spec: ModelSpec, dtype: str, n_bytes: int) -> int:
    return KvGeometry(
        n_layers=spec.n_layers,
        n_kv_heads=spec.n_kv_heads,
        head_dim=spec.head_dim,
        dtype=dtype,
        dtype_bytes=n_bytes,
        block_tokens=1,
        n_blocks=1,
    ).token_bytes


@contextlib.contextmanager
def _codec(files: ModelFiles) -> Iterator[TextCodec]:
    """The tokenizer and the template of a model."""
    if files.chat_template is None:
        raise UnsupportedModel(
            f"{files.path.name} has no chat template\n"
            "so it cannot be asked about documents\nname an instruction-tuned model"
        )
    tokenizer = (
        tokenizer_from_gguf(files.metadata)
        if files.kind == "gguf"
        else tokenizer_from_folder(files.path)
    )
    template = ChatTemplate(files.chat_template, bos=tokenizer.bos_text, eos=tokenizer.eos_text)
    try:
        yield TextCodec(tokenizer, template, Transcripts(0))
    finally:
        template.close()


def need_text(need: Need) -> str:
    """For people."""
    kv = ", ".join(f"{show.size(n_bytes)} in {name}" for name, n_bytes in need.kv_bytes.items())
    together = need.weights_bytes + need.kv_bytes["bf16"]
    if need.fits:
        fit = "fits whole"
    else:
        fit = (
            f"does not fit: it would take a window of {need.window_needed:,}; here it is read in "
            f"{show.count(need.sections, 'section')}"
        )
    if need.read_s is None:
        reading = need.measured
    else:
        reading = f"about {duration(need.read_s)}, {need.measured}"
    return "\n".join(
        [
            need.model,
            f"  text     {need.tokens:,} tokens",
            f"  window   {need.window:,} tokens: {fit}",
            f"  KV       {kv}",
            f"  weights  {show.size(need.weights_bytes)} in bf16 ({show.size(need.file_bytes)} on "
            "disk)",
            f"  memory   {show.size(together)} for weights and all KV in bf16",
            f"  reading  {reading}",
        ]
    )
