"""Weights in the native kernels' layout: packed once at load, in one of three formats."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from kvasir.core.errors import DoesNotFit
from kvasir.kernels import quantise
from kvasir.kernels.memory import ask_for_large_pages
from kvasir.kernels.native import abi

FORMATS = {"bf16": abi.BF16, "int8": abi.INT8, "int4": abi.INT4}


@dataclass(frozen=True, slots=True)
class PackedLinear:
    """A projection's memory, and the structure that points to it."""

    struct: abi.Linear
    weight: Tensor  # bytes
    scale: Tensor | None  # [padded n_out] float32, of int8
    bias: Tensor | None  # [padded n_out] float32

    @property
    def n_bytes(self) -> int:
        """What it takes."""
        return sum(t.nbytes for t in (self.weight, self.scale, self.bias) if t is not None)


def padded(n: int) -> int:
    """``n`` rounded up to whole panels."""
    return -(-n // abi.PANEL) * abi.PANEL


def padded_vector(x: Tensor) -> Tensor:
    """``x`` [n] as float32 with zeros up to whole panels."""
    out = torch.zeros(padded(len(x)), dtype=torch.float32)
    out[: len(x)] = x
    return out


def gates_and_ups(gate: Tensor, up: Tensor) -> Tensor:
    """Rows of ``gate`` and ``up`` [n, …] by turns of 16, so that one panel holds both of the same
    outputs: [2 * n rounded up to 16, …]."""
    n, rest = gate.shape[0], gate.shape[1:]
    turns = -(-n // 16)
    both = gate.new_zeros(2, turns * 16, *rest)
    both[0, :n], both[1, :n] = gate, up
    return both.view(2, turns, 16, *rest).transpose(0, 1).reshape(turns * 32, *rest)


def pack(library: ctypes.CDLL, weight: Tensor, bias: Tensor | None, weights: str) -> PackedLinear:
    """``weight`` [n_out, n_in] in the format named ``weights`` (of ``FORMATS``)."""
    n_out, n_in = weight.shape
    number = FORMATS[weights]
    packed = aligned_bytes(library.kvasir_packed_bytes(number, n_out, n_in))
    scale: Tensor | None = None
    if number == abi.BF16:
        plain = weight.to(torch.bfloat16).contiguous()
        library.kvasir_pack_bf16(plain.data_ptr(), n_out, n_in, packed.data_ptr())
    elif number == abi.INT8:
        eight = quantise.to_int8(weight)
        codes = eight.codes.contiguous()
        library.kvasir_pack_int8(codes.data_ptr(), n_out, n_in, packed.data_ptr())
        scale = padded_vector(eight.scale)
    else:
        four = quantise.to_int4(weight)
        library.kvasir_pack_int4(
            four.codes.data_ptr(),
            four.scale.contiguous().data_ptr(),
            four.least.contiguous().data_ptr(),
            n_out,
            n_in,
            packed.data_ptr(),
        )
    wide_bias = padded_vector(bias) if bias is not None else None
    struct = abi.Linear(
        weight=packed.data_ptr(),
        scale=scale.data_ptr() if scale is not None else None,
        bias=wide_bias.data_ptr() if wide_bias is not None else None,
        n_out=n_out,
        n_in=n_in,
        format=number,
    )
    return PackedLinear(struct, packed, scale, wide_bias)


def aligned_bytes(n_bytes: int) -> Tensor:
    """Memory that begins at a cache line, in large pages where the system has them."""
    try:
        memory = torch.empty(n_bytes + 64, dtype=torch.uint8)
    except (RuntimeError, MemoryError) as error:
        raise DoesNotFit(f"{n_bytes} bytes for packed weights could not be allocated") from error
    ask_for_large_pages(memory)
    shift = -memory.data_ptr() % 64
    return memory[shift : shift + n_bytes]
