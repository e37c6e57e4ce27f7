"""Rotary position embedding: inverse frequencies of each kind, and the rotation.

Kinds: "default" (RoFormer, arXiv:2104.09864), "linear" (position interpolation,
arXiv:2306.15595), "llama3" (the piecewise scaling of Llama 3.1) and "yarn" (arXiv:2309.00071).
Computed once per step in float32 and shared by all layers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kvasir.core.errors import UnsupportedModel
from kvasir.model.spec import RopeSpec


class Rope:
    """Angles for any position. Pairs are (i, i + d/2), the Hugging Face convention."""

    def __init__(self, spec: RopeSpec, head_dim: int, device: torch.device) -> None:
        """Raises ``UnsupportedModel`` for an unknown kind or a parameter that is missing."""
        frequencies, self._magnitude = inverse_frequencies(spec, head_dim)
        self._frequencies = frequencies.to(device)  # [d/2] float32

    def rows(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines of ``positions`` [N]: [N, 1, d] float32 each.

        The sines of the first half are negated, so that ``rotate_`` needs one fused multiply-add.
        """
        angles = positions[:, None].float() * self._frequencies  # [N, d/2]
        cos = angles.cos() * self._magnitude
        sin = angles.sin() * self._magnitude
        return torch.cat([cos, cos], 1)[:, None], torch.cat([-sin, sin], 1)[:, None]


def rotate_(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Rotate ``x`` [N, h, d] in place by the angles of ``Rope.rows``, in float32."""
    wide = x.float()
    first, second = wide.chunk(2, 2)  # [N, h, d/2]
    swapped = torch.cat([second, first], 2)
    x.copy_(wide.mul_(cos).addcmul_(swapped, sin))


def inverse_frequencies(spec: RopeSpec, head_dim: int) -> tuple[Tensor, float]:
    """The inverse frequencies [head_dim / 2] in float32, and the factor on cosines and sines."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    base = 1.0 / (spec.theta**exponents)
    match spec.kind:
        case "default":
            return base, 1.0
        case "linear":
            return base / _need(spec, "factor"), 1.0
        case "llama3":
            return _llama3(spec, base), 1.0
        case "yarn":
            return _yarn(spec, base, head_dim)
    raise UnsupportedModel(
        f"RoPE kind {spec.kind!r} is not one that Kvasir runs (default, linear, llama3, yarn)"
    )


def _need(spec: RopeSpec, name: str) -> float:
    value = getattr(spec, name)
    if value is None:
        raise UnsupportedModel(f"RoPE kind {spec.kind!r} needs {name!r}, which the config lacks")
    return float(value)


def _llama3(spec: RopeSpec, base: Tensor) -> Tensor:
    """Long wavelengths are divided by ``factor``, short ones kept, those between blended."""
    factor = _need(spec, "factor")
    low, high = _need(spec, "low_freq_factor"), _need(spec, "high_freq_factor")
    original = _need(spec, "original_window")
    turns = original * base / (2 * math.pi)  # rotations within the original window
    blend = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - blend) * base / factor + blend * base


def _yarn(spec: RopeSpec, base: Tensor, head_dim: int) -> tuple[Tensor, float]:
    """NTK-by-parts: interpolate the dimensions that turn fewer than ``beta_slow`` times within the
    original window, keep those that turn more than ``beta_fast`` times, ramp in between."""
    factor = _need(spec, "factor")
    original = _need(spec, "original_window")

    def dimension(rotations: float) -> float:
        inside = original / (rotations * 2 * math.pi)
        return head_dim * math.log(inside) / (2 * math.log(spec.theta))

    low, high = dimension(spec.beta_fast or 32.0), dimension(spec.beta_slow or 1.0)
    if spec.truncate:
        low, high = float(math.floor(low)), float(math.ceil(high))
    low, high = max(low, 0.0), min(high, head_dim - 1.0)
    if low == high:
        high += 0.001  # a ramp of no width would divide by zero
    ramp = (torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low)
    interpolated = ramp.clamp(0.0, 1.0)
    frequencies = interpolated * base / factor + (1 - interpolated) * base
    return frequencies, _yarn_magnitude(spec, factor)


def _yarn_magnitude(spec: RopeSpec, factor: float) -> float:
    if spec.attention_factor is not None:
        return spec.attention_factor

    def magnitude(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    if spec.mscale and spec.mscale_all_dim:
        return magnitude(spec.mscale) / magnitude(spec.mscale_all_dim)
    return magnitude(1.0)
