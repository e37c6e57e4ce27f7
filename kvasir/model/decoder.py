"""The decoder: token ids in, hidden states and logits out, for every family that a spec describes.

It keeps no state between steps: the KV lies in the pool, and which rows stand where is in the
batch. So the same prompt gives the same logits however it was cut into steps, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from kvasir.attention.batch import AttentionBatch
from kvasir.core.errors import CorruptWeights
from kvasir.kernels.linear import projection
from kvasir.model.layers import RmsNorm, Tensors, load_layer
from kvasir.model.rope import Rope
from kvasir.model.spec import ModelSpec
from kvasir.tiers.device import DevicePool


class Decoder:
    """A loaded model. Not trainable; used by one thread only."""

    def __init__(
        self,
        spec: ModelSpec,
        tensors: Tensors,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        """Take every weight from ``tensors`` (Hugging Face name -> tensor), as ``dtype`` on
        ``device``. Raises ``CorruptWeights`` where a shape contradicts the spec."""
        self.spec = spec
        self.dtype = dtype
        self.device = torch.device(device)

        def take(name: str) -> Tensor:
            tensor = tensors(name).to(device=self.device, dtype=dtype)
            expected = _shape(spec, name)
            if tuple(tensor.shape) != expected:
                raise CorruptWeights(
                    f"tensor {name} has shape {tuple(tensor.shape)}, but the config says {expected}"
                )
            return tensor

        self._embedding = take("model.embed_tokens.weight")  # [V, D]
        self._layers = tuple(load_layer(spec, i, take) for i in range(spec.n_layers))
        self._final_norm = RmsNorm(take("model.norm.weight").float(), spec.norm_eps)
        self._head = projection(self._embedding if spec.tied_embeddings else take("lm_head.weight"))
        self._rope = Rope(spec.rope, spec.head_dim, self.device)

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The distinct windows of the layers, for ``attention.batch.describe``."""
        return tuple(dict.fromkeys(layer.window for layer in self._layers))

    @torch.inference_mode()
    def forward(
        self,
        tokens: Tensor,
        batch: AttentionBatch,
        pool: DevicePool,
        after_layer: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Compute ``tokens`` [N] (int64) as ``batch`` describes them and write their KV into
        ``pool``. Returns the hidden states before the final norm: [N, D]. ``after_layer`` is told
        the number of layers done after each, and may raise to end the computation."""
        hidden = functional.embedding(tokens, self._embedding)
        cos, sin = self._rope.rows(batch.positions)
        for index, layer in enumerate(self._layers):
            queries, keys, values = layer.queries_keys_values(hidden, cos, sin)
            pool.write(index, batch.slots, keys, values)
            attended = batch.attend(queries, *pool.planes(index), layer.window)
            hidden = layer.after_attention(hidden, attended)
            if after_layer is not None:
                after_layer(index + 1)
        return hidden

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """The next-token logits after ``hidden`` [R, D], as ``forward`` returned it: [R, V]
        float32."""
        return self._head(self._final_norm(hidden)).float()


def _shape(spec: ModelSpec, name: str) -> tuple[int, ...]:
    """The shape that ``spec`` implies for the tensor ``name``."""
    queries, keys = spec.n_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim
    part, kind = name.split(".")[-2:]
    outputs = {
        "embed_tokens": spec.vocab_size,
        "lm_head": spec.vocab_size,
        "q_proj": queries,
        "k_proj": keys,
        "v_proj": keys,
        "gate_proj": spec.intermediate,
        "up_proj": spec.intermediate,
        "q_norm": spec.head_dim,
        "k_norm": spec.head_dim,
    }
    n_out = outputs.get(part, spec.hidden)
    if kind == "bias" or part.endswith("norm"):
        return (n_out,)
    n_in = {"o_proj": queries, "down_proj": spec.intermediate}.get(part, spec.hidden)
    return (n_out, n_in)
