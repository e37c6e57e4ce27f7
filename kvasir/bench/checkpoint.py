"""The peers' weights, made from the model's own: a Hugging Face folder out of a GGUF file.

Invariant: a folder that exists is complete and says the same as the file it was made from: it is
written under another name, opened again and compared in spec before it gets its own.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from kvasir.core.errors import UnsupportedModel
from kvasir.model.files import ModelFiles, open_model
from kvasir.model.spec import ModelSpec, RopeSpec
from kvasir.text.gguf_bpe import build_backend

CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
FORMAT = "1"  # part of the cache's key: raise it when what is written changes


def cache_folder(cache: Path, files: ModelFiles) -> Path:
    """Where what is made from ``files`` is kept: named after the files' names, sizes and times."""
    digest = hashlib.sha256(FORMAT.encode())
    for path in files.identity_files():
        stat = path.stat()
        digest.update(f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    return cache / digest.hexdigest()[:16]


def make_checkpoint(files: ModelFiles, folder: Path) -> Path:
    """The model of ``files`` as a bf16 checkpoint folder; ``folder`` is used if it is there.

    A model that is such a folder itself is used as it is. Raises ``UnsupportedModel`` for a spec
    that a ``config.json`` cannot express. All weights are in memory once.
    """
    if files.kind == "folder":
        return files.path
    return publish(folder, lambda draft: _write(files, draft))


def publish(target: Path, write: Callable[[Path], None]) -> Path:
    """Have ``write`` make a file or folder beside ``target``, then give it that name.

    Does nothing where ``target`` is there already.
    """
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f"{target.stem}.draft{target.suffix}")
    if draft.is_dir():
        shutil.rmtree(draft)
    draft.unlink(missing_ok=True)
    write(draft)
    draft.rename(target)
    return target


def _write(files: ModelFiles, folder: Path) -> None:
    folder.mkdir()
    tensors = {name: files.tensor(name, torch.bfloat16) for name in files.tensor_names}
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    _write_json(folder / "config.json", config_of(files.spec, files))
    _write_json(folder / "generation_config.json", _ids(files))
    build_backend(files.metadata).save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    if files.chat_template is not None:
        (folder / "chat_template.jinja").write_text(files.chat_template, encoding="utf-8")
    reopened = open_model(folder).spec
    if reopened != files.spec:
        raise UnsupportedModel(
            f"the checkpoint made from {files.path.name} would not be the same model: its config "
            f"reads as {reopened}, not as {files.spec}; give the benchmark a Hugging Face folder"
        )


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _ids(files: ModelFiles) -> dict[str, Any]:
    """The ids that begin and end a text."""
    return {"bos_token_id": files.extras.bos_id, "eos_token_id": sorted(files.eos_ids)}


def config_of(spec: ModelSpec, files: ModelFiles) -> dict[str, Any]:
    """The ``config.json`` of a model that is ``spec``."""
    config: dict[str, Any] = {
        "architectures": [CLASSES[spec.architecture]],
        "model_type": spec.architecture,
        "dtype": "bfloat16",
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden,
        "intermediate_size": spec.intermediate,
        "num_hidden_layers": spec.n_layers,
        "num_attention_heads": spec.n_heads,
        "num_key_value_heads": spec.n_kv_heads,
        "head_dim": spec.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": spec.norm_eps,
        "max_position_embeddings": spec.window,
        "rope_parameters": _rope(spec.rope),
        "rope_theta": spec.rope.theta,
        "tie_word_embeddings": spec.tied_embeddings,
        "attention_bias": spec.output_bias,
        "mlp_bias": spec.mlp_bias,
        **_ids(files),
    }
    if spec.sliding_window:
        config["sliding_window"] = spec.sliding_window[0]
        config["use_sliding_window"] = True
    elif spec.architecture == "mistral":
        config["sliding_window"] = None
    return config


def _rope(rope: RopeSpec) -> dict[str, Any]:
    entry = {
        "rope_type": rope.kind,
        "rope_theta": rope.theta,
        "factor": rope.factor,
        "low_freq_factor": rope.low_freq_factor,
        "high_freq_factor": rope.high_freq_factor,
        "original_max_position_embeddings": rope.original_window,
        "attention_factor": rope.attention_factor,
        "beta_fast": rope.beta_fast,
        "beta_slow": rope.beta_slow,
        "mscale": rope.mscale,
        "mscale_all_dim": rope.mscale_all_dim,
    }
    return {key: value for key, value in entry.items() if value is not None}
