"""A model's program: packed weights behind one native call per step.

Invariant: the call lets other threads run, and a row's result depends on its own tokens alone: not
on the rows beside it, on how the text was cut into steps, or on the number of threads.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvasir.core.errors import DoesNotFit
from kvasir.kernels.native import abi
from kvasir.kernels.native.library import Isa, required
from kvasir.kernels.native.weights import PackedLinear, padded
from kvasir.kernels.paging import Span


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerParts:
    """One layer's tensors; norms are float32 and padded to whole panels."""

    attention_norm: Tensor
    query_norm: Tensor | None  # [head_dim] float32
    key_norm: Tensor | None
    feed_forward_norm: Tensor
    qkv: PackedLinear
    output: PackedLinear
    gate_up: PackedLinear  # ``weights.gates_and_ups``
    down: PackedLinear
    window: int | None
    sinks: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelParts:
    """A model's tensors and numbers."""

    hidden: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    intermediate: int
    vocab_size: int
    norm_eps: float
    rope_magnitude: float
    frequencies: Tensor  # [head_dim / 2] float32
    embedding: Tensor | None  # [vocab_size, hidden] bfloat16; None: the rows of ``head``, of bf16
    final_norm: Tensor
    head: PackedLinear
    layers: tuple[LayerParts, ...]
    int8_kv: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Planes:
    """Where KV lies: [n_layers, n_slots, row bytes] each, contiguous."""

    keys: Tensor
    values: Tensor
    block_tokens: int


class Program:
    """A compiled model. Used by one thread at a time."""

    def __init__(self, parts: ModelParts, isa: Isa, threads: int) -> None:
        """Raises ``DoesNotFit`` where memory is short."""
        if parts.embedding is None and parts.head.struct.format != abi.BF16:
            raise ValueError("a head that is not bfloat16 cannot be the embedding")
        library = required()
        self._library = library
        self._parts = parts  # keeps alive what the structures point to
        self._layers = (abi.Layer * len(parts.layers))(*map(_layer, parts.layers))
        self._model = _model(parts, self._layers)
        self._hidden = padded(parts.hidden)
        self._logits = padded(parts.vocab_size)
        self._handle: int | None = library.kvasir_open(
            ctypes.byref(self._model), isa.number, threads
        )
        if not self._handle:
            raise DoesNotFit("the native kernels could not get their memory and threads")

    def close(self) -> None:
        """End the threads."""
        if self._handle:
            self._library.kvasir_close(self._handle)
            self._handle = None

    def __del__(self) -> None:
        self.close()

    @property
    def n_layers(self) -> int:
        """Layers of the model."""
        return len(self._parts.layers)

    @property
    def scratch_bytes(self) -> int:
        """Memory for activations so far."""
        n_bytes: int = self._library.kvasir_scratch_bytes(self._handle)
        return n_bytes

    def hidden_rows(self, n: int) -> Tensor:
        """Memory for the hidden states of ``n`` rows: [n, padded hidden] float32."""
        return torch.empty(n, self._hidden)

    def run(
        self,
        tokens: Tensor,
        spans: Sequence[Span],
        planes: Planes,
        hidden: Tensor,
        asked: NDArray[np.int64],
        layers: range,
    ) -> Tensor:
        """Carry ``tokens`` [N] (int64) through ``layers``, from and to ``hidden`` [N, padded
        hidden]. Behind the last layer, logits [len(asked), V] float32 of the rows ``asked``.

        Raises ``MemoryError`` where the memory for activations is short.
        """
        rows = (abi.Span * len(spans))(*(_span(span) for span in spans))
        logits = torch.empty(len(asked), self._logits)
        step = abi.Step(
            n_rows=len(tokens),
            n_spans=len(spans),
            n_asked=len(asked),
            tokens=tokens.data_ptr(),
            spans=ctypes.addressof(rows),
            asked=asked.ctypes.data,
            hidden=hidden.data_ptr(),
            logits=logits.data_ptr(),
            keys=planes.keys.data_ptr(),
            values=planes.values.data_ptr(),
            layer_bytes=planes.keys.stride(0) * planes.keys.itemsize,
            block_tokens=planes.block_tokens,
            first_layer=layers.start,
            end_layer=layers.stop,
        )
        self._call(step)
        return logits[:, : self._parts.vocab_size]

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [R, V] float32 after the hidden states ``hidden`` [R, padded hidden]."""
        hidden = hidden.contiguous()
        asked = np.arange(len(hidden), dtype=np.int64)
        logits = torch.empty(len(hidden), self._logits)
        step = abi.Step(
            n_asked=len(hidden),
            asked=asked.ctypes.data,
            hidden=hidden.data_ptr(),
            logits=logits.data_ptr(),
            block_tokens=1,
            first_layer=self.n_layers,
            end_layer=self.n_layers,
        )
        self._call(step)
        return logits[:, : self._parts.vocab_size]

    def _call(self, step: abi.Step) -> None:
        if self._library.kvasir_run(self._handle, ctypes.byref(step)):
            raise MemoryError("the memory for a step's activations is short")


def _span(span: Span) -> abi.Span:
    return abi.Span(row=span.row, n=span.n, start=span.start, blocks=span.table.address)


def _address(tensor: Tensor | None) -> int | None:
    return tensor.data_ptr() if tensor is not None else None


def _layer(parts: LayerParts) -> abi.Layer:
    return abi.Layer(
        attention_norm=_address(parts.attention_norm),
        query_norm=_address(parts.query_norm),
        key_norm=_address(parts.key_norm),
        feed_forward_norm=_address(parts.feed_forward_norm),
        qkv=parts.qkv.struct,
        output=parts.output.struct,
        gate_up=parts.gate_up.struct,
        down=parts.down.struct,
        window=parts.window or 0,
        sinks=parts.sinks,
    )


def _model(parts: ModelParts, layers: ctypes.Array[abi.Layer]) -> abi.Model:
    return abi.Model(
        n_layers=len(parts.layers),
        hidden=parts.hidden,
        n_heads=parts.n_heads,
        n_kv_heads=parts.n_kv_heads,
        head_dim=parts.head_dim,
        intermediate=parts.intermediate,
        vocab_size=parts.vocab_size,
        codec=abi.ROTATED_INT8 if parts.int8_kv else abi.PLAIN,
        norm_eps=parts.norm_eps,
        rope_magnitude=parts.rope_magnitude,
        frequencies=_address(parts.frequencies),
        final_norm=_address(parts.final_norm),
        embedding=_address(parts.embedding),
        layers=ctypes.addressof(layers),
        head=parts.head.struct,
    )
