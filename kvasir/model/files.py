"""Open a model's files: a Hugging Face folder or a GGUF file behind one face.

Invariant: after ``open_model`` every tensor that the decoder will ask for is known to be there, in
the spec's shape and in a format that can be read, and no other tensor of the checkpoint would
change the result. Weights are read only when ``tensor`` is called.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from kvasir.core.errors import CorruptWeights, ModelNotFound, UnsupportedModel
from kvasir.model.config_json import spec_from_config
from kvasir.model.dequantize import check_kind, rows_of
from kvasir.model.extras import Extras, extras_of_folder, extras_of_gguf
from kvasir.model.fields import read_json_object
from kvasir.model.gguf_file import GgufTensor, read_gguf
from kvasir.model.gguf_spec import ROPE_FACTORS, spec_from_gguf
from kvasir.model.names import Shape, expected_tensors, gguf_name, permuted_heads, unexpected
from kvasir.model.safetensors_file import INDEX, SINGLE, StoredTensor, read_folder, weight_files
from kvasir.model.spec import ModelSpec

FLOAT_DTYPES = ("F16", "BF16", "F32", "F64")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """A model on disk, checked and ready to be read. ``metadata`` is that of a GGUF file."""

    spec: ModelSpec
    kind: str  # "folder" or "gguf"
    path: Path
    extras: Extras
    metadata: Mapping[str, object]
    _shapes: Mapping[str, Shape]
    _stored: Mapping[str, StoredTensor | GgufTensor]  # by Hugging Face name

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """The tensors that can be asked for, by their Hugging Face names."""
        return tuple(self._shapes)

    @property
    def chat_template(self) -> str | None:
        """The Jinja source of the chat template, unrendered and unchecked."""
        return self.extras.chat_template

    @property
    def eos_ids(self) -> frozenset[int]:
        """Tokens that end a text, by generation config, config or metadata."""
        return self.extras.eos_ids

    def parameter_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of all parameters once loaded in ``dtype``."""
        total = 0
        for shape in self._shapes.values():
            total += torch.Size(shape).numel()
        return total * dtype.itemsize

    def weight_files(self) -> tuple[Path, ...]:
        """The files that hold the weights."""
        if self.kind == "gguf":
            return (self.path,)
        return tuple(
            weight_files({n: s for n, s in self._stored.items() if isinstance(s, StoredTensor)})
        )

    def identity_files(self) -> tuple[Path, ...]:
        """The files that decide what the model computes: weights, config, tokenizer."""
        if self.kind == "gguf":
            return (self.path,)
        beside = ("config.json", "tokenizer.json", "tokenizer_config.json")
        return self.weight_files() + tuple(
            self.path / name for name in beside if (self.path / name).is_file()
        )

    def tensor(
        self, name: str, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> torch.Tensor:
        """Read tensor ``name`` (its Hugging Face name) in the spec's shape and its row order.

        Raises ``KeyError`` for a name that is not in ``tensor_names`` and ``CorruptWeights`` where
        the file changed since it was opened.
        """
        stored = self._stored[name]
        if isinstance(stored, StoredTensor):
            return _from_safetensors(stored, name, dtype, device)
        loaded = _from_gguf(self.path, stored, self._shapes[name], dtype)
        heads = permuted_heads(self.spec, name)
        if heads is not None:
            loaded = _halves_first(loaded, heads)
        return loaded.to(device)


def open_model(path: Path) -> ModelFiles:
    """Open the model in the folder or GGUF file ``path`` and check everything but the weights.

    Raises ``ModelNotFound``, ``UnsupportedModel`` or ``CorruptWeights``, each naming what it found
    and what it expected.
    """
    if path.is_dir():
        return _open_folder(path)
    if not path.exists():
        raise ModelNotFound(f"there is no model at {path}")
    if path.suffix != ".gguf":
        raise UnsupportedModel(
            f"{path} is neither a .gguf file nor a folder with config.json and safetensors files"
        )
    return _open_gguf(path)


def _open_folder(folder: Path) -> ModelFiles:
    if not (folder / "config.json").is_file():
        ggufs = sorted(folder.glob("*.gguf"))
        hint = f"; name the file {ggufs[0]} to use it" if ggufs else ""
        raise ModelNotFound(f"{folder} has no config.json, so it is no model folder{hint}")
    config = read_json_object(folder / "config.json")
    spec = spec_from_config(config, str(folder / "config.json"))
    if not (folder / SINGLE).exists() and not (folder / INDEX).exists():
        _refuse_other_weights(folder)
    stored = read_folder(folder)
    shapes = expected_tensors(spec)
    _check_tensors(folder, spec, shapes, {n: s.shape for n, s in stored.items()})
    for name in shapes:
        if stored[name].dtype not in FLOAT_DTYPES:
            raise UnsupportedModel(
                f"tensor {name!r} is stored as {stored[name].dtype}; those that are read: "
                + ", ".join(FLOAT_DTYPES)
            )
    return ModelFiles(
        spec=spec,
        kind="folder",
        path=folder,
        extras=extras_of_folder(folder, config),
        metadata={},
        _shapes=shapes,
        _stored={name: stored[name] for name in shapes},
    )


def _refuse_other_weights(folder: Path) -> None:
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth"))
    if pickles:
        raise UnsupportedModel(
            f"{folder} holds its weights only as {pickles[0]}, a pickle, which runs code when it "
            "is read. Kvasir never opens pickles; convert the model to safetensors."
        )
    raise ModelNotFound(f"{folder} has neither {SINGLE} nor {INDEX}")


def _open_gguf(path: Path) -> ModelFiles:
    file = read_gguf(path)
    spec = spec_from_gguf(file)
    shapes = expected_tensors(spec)
    names = {gguf_name(name): name for name in shapes}
    found = {
        names.get(gguf, gguf): tensor.shape
        for gguf, tensor in file.tensors.items()
        if gguf != ROPE_FACTORS  # read into the spec
    }
    _check_tensors(path, spec, shapes, found)
    stored = {name: file.tensors[gguf] for gguf, name in names.items()}
    for tensor in stored.values():
        check_kind(tensor)
    return ModelFiles(
        spec=spec,
        kind="gguf",
        path=path,
        extras=extras_of_gguf(file),
        metadata=file.metadata,
        _shapes=shapes,
        _stored=stored,
    )


def _check_tensors(
    path: Path, spec: ModelSpec, wanted: Mapping[str, Shape], found: Mapping[str, Shape]
) -> None:
    missing = [name for name in wanted if name not in found]
    if missing:
        raise CorruptWeights(
            f"{path} lacks {len(missing)} of {len(wanted)} tensors of a {spec.architecture} model, "
            f"first {missing[0]!r}"
        )
    for name, shape in wanted.items():
        if found[name] != shape:
            raise CorruptWeights(
                f"tensor {name!r} of {path} has the shape {list(found[name])}; the config asks for "
                f"{list(shape)}"
            )
    extra = unexpected(found, wanted, spec)
    if extra:
        raise UnsupportedModel(
            f"{path} has {len(extra)} tensors that a {spec.architecture} model does not use, first "
            f"{extra[0]!r}; leaving them out would change what the model computes"
        )


def _from_safetensors(
    stored: StoredTensor, name: str, dtype: torch.dtype, device: torch.device | str
) -> torch.Tensor:
    try:
        with safe_open(stored.file, framework="pt", device="cpu") as file:
            mapped = file.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise CorruptWeights(f"cannot read {name!r} of {stored.file}: {error}") from error
    if tuple(mapped.shape) != stored.shape:
        raise CorruptWeights(f"{stored.file} changed while it was read; load the model again")
    # a copy: the mapped pages would change with the file
    return torch.as_tensor(mapped).to(device=device, dtype=dtype, copy=True)


def _from_gguf(path: Path, stored: GgufTensor, shape: Shape, dtype: torch.dtype) -> torch.Tensor:
    loaded = torch.empty(shape, dtype=dtype)
    rows = loaded.view(-1, shape[-1])
    for first, chunk in rows_of(path, stored):
        rows[first : first + len(chunk)] = torch.from_numpy(chunk)
    return loaded


def _halves_first(interleaved: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of ``heads`` heads from (pair, half) to (half, pair) order."""
    rest = interleaved.shape[1:]
    split = interleaved.view(heads, -1, 2, *rest)  # [heads, pairs, 2, …]
    return split.transpose(1, 2).reshape(interleaved.shape)
