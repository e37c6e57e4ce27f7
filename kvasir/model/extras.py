"""What a model's files say beside weights and spec: generation defaults, ids that end a text, the
chat template's source. Torch-free.

Invariant: a template is handed on as text and never rendered here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from kvasir.core.errors import CorruptWeights, ModelNotFound
from kvasir.model.fields import JSON_LIMIT_BYTES, read_json_object, shorten
from kvasir.model.gguf_file import GgufFile
from kvasir.model.limits import MAX_VOCAB

GENERATION_KEYS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "do_sample")
MAX_TEMPLATE_BYTES = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Extras:
    """``generation`` holds those of ``GENERATION_KEYS`` that the model's authors set."""

    chat_template: str | None
    eos_ids: frozenset[int]
    bos_id: int | None
    generation: Mapping[str, object]


def extras_of_folder(folder: Path, config: Mapping[str, object]) -> Extras:
    """Read generation_config.json, tokenizer_config.json and chat_template.jinja of ``folder``.
    The generation config outranks ``config`` (the parsed config.json)."""
    generation = _optional_json(folder / "generation_config.json")
    eos = generation.get("eos_token_id")
    bos = generation.get("bos_token_id")
    eos = config.get("eos_token_id") if eos is None else eos
    bos = config.get("bos_token_id") if bos is None else bos
    return Extras(
        chat_template=_folder_template(folder),
        eos_ids=_token_ids(eos, f"eos_token_id of {folder}"),
        bos_id=next(iter(_token_ids(bos, f"bos_token_id of {folder}")), None),
        generation=MappingProxyType(
            {k: generation[k] for k in GENERATION_KEYS if generation.get(k) is not None}
        ),
    )


def extras_of_gguf(file: GgufFile) -> Extras:
    """The same from a GGUF file's metadata: ``tokenizer.chat_template`` and the token ids."""
    prefix = "tokenizer.ggml."
    ends = frozenset[int]().union(
        *(
            _token_ids(file.metadata.get(prefix + key), f"{key} of {file.path.name}")
            for key in ("eos_token_id", "eot_token_id", "eom_token_id")
        )
    )
    bos = _token_ids(file.metadata.get(prefix + "bos_token_id"), f"bos_token_id of {file.path}")
    template = file.metadata.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise CorruptWeights(f"{file.path.name}: tokenizer.chat_template is not text")
    return Extras(
        chat_template=_bounded(template, file.path.name),
        eos_ids=ends,
        bos_id=next(iter(bos), None),
        generation=MappingProxyType({}),
    )


def _folder_template(folder: Path) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            with path.open("rb") as file:
                data = file.read(MAX_TEMPLATE_BYTES + 1)
            return _bounded(data.decode("utf-8"), str(path))
        except OSError as error:
            raise ModelNotFound(f"cannot read {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise CorruptWeights(f"{path} is not valid UTF-8") from error
    config = _optional_json(folder / "tokenizer_config.json")
    template = config.get("chat_template")
    if isinstance(template, list):  # [{"name": …, "template": …}, …]
        named = {
            entry.get("name"): entry.get("template")
            for entry in template
            if isinstance(entry, dict) and isinstance(entry.get("name"), str)
        }
        template = named.get("default")
    if template is not None and not isinstance(template, str):
        raise CorruptWeights(f"{folder / 'tokenizer_config.json'}: chat_template is not text")
    return _bounded(template, str(folder / "tokenizer_config.json"))


def _bounded(template: str | None, source: str) -> str | None:
    if template is not None and len(template) > MAX_TEMPLATE_BYTES:
        raise CorruptWeights(f"the chat template of {source} is longer than {MAX_TEMPLATE_BYTES}")
    return template


def _optional_json(path: Path) -> dict[str, object]:
    return read_json_object(path, JSON_LIMIT_BYTES) if path.is_file() else {}


def _token_ids(value: object, source: str) -> frozenset[int]:
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for token in ids:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < MAX_VOCAB:
            raise CorruptWeights(f"{source} is {shorten(value)}; expected token ids")
    return frozenset(ids)
