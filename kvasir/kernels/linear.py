"""Projections, y = x Wᵀ + b, with the weight packed once for the processor where that pays.

On CPUs with bf16 matrix units oneDNN wants weights in its own blocked layout and would convert a
plain weight at every call; packing it once saves that. Everything else is ``torch.nn.functional``.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional


class Projection(Protocol):
    """An affine map."""

    def __call__(self, x: Tensor) -> Tensor:
        """[N, n_in] -> [N, n_out]."""
        ...

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """``residual`` [N, n_out] plus the projection of ``x`` [N, n_in]."""
        ...

    def silu(self, x: Tensor) -> Tensor:
        """SiLU of the projection of ``x`` [N, n_in]: [N, n_out]."""
        ...

    def times(self, factor: Tensor, x: Tensor) -> Tensor:
        """``factor`` [N, n_out] times the projection of ``x`` [N, n_in]; may overwrite
        ``factor``."""
        ...


class PlainProjection:
    """The weight as it came: [n_out, n_in]."""

    __slots__ = ("_bias", "_weight")

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self._weight = weight
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        return functional.linear(x, self._weight, self._bias)

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        return functional.linear(x, self._weight, self._bias).add_(residual)

    def silu(self, x: Tensor) -> Tensor:
        return functional.silu(functional.linear(x, self._weight, self._bias), inplace=True)

    def times(self, factor: Tensor, x: Tensor) -> Tensor:
        return factor.mul_(functional.linear(x, self._weight, self._bias))


class PackedProjection:
    """The weight in oneDNN's blocked layout; the plain one is not kept."""

    __slots__ = ("_bias", "_weight")

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        return self._unary(x, "none")

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        return self._binary(x, residual, "add")

    def silu(self, x: Tensor) -> Tensor:
        return self._unary(x, "swish")

    def times(self, factor: Tensor, x: Tensor) -> Tensor:
        return self._binary(x, factor, "mul")

    def _unary(self, x: Tensor, then: str) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise.default(
            x, self._weight, self._bias, then, [], ""
        )
        return y

    def _binary(self, x: Tensor, other: Tensor, then: str) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            x, other, self._weight, self._bias, then
        )
        return y


def against_packing(device: torch.device, dtype: torch.dtype) -> list[str]:
    """Why weights would not be packed here; empty where they are."""
    reasons = []
    if device.type != "cpu":
        reasons.append(f"packing is for CPUs, the device is {device.type}")
    if dtype != torch.bfloat16:
        reasons.append(f"only bfloat16 gains from packing, the dtype is {str(dtype)[6:]}")
    if not reasons and not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        reasons.append("this build of torch has no oneDNN packed projection")
    elif not reasons and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        reasons.append("this processor does not compute bfloat16 in hardware")
    return reasons


def projection(weight: Tensor, bias: Tensor | None = None) -> Projection:
    """``weight`` [n_out, n_in] as a map, packed where ``against_packing`` has nothing to say."""
    if against_packing(weight.device, weight.dtype):
        return PlainProjection(weight, bias)
    return PackedProjection(weight, bias)
