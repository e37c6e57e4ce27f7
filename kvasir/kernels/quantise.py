"""Weights in fewer bits, and back: the arithmetic of the formats int8 and int4, in plain torch.

int8 has one scale for each output channel. int4 has a scale and a least value for each group of 32
inputs (w = scale * code + least, codes 0 to 15), both in half precision. A group whose values lie
on such a grid already, as those of a GGUF file with 4-bit weights do, keeps them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

GROUP = 32
_MOST_CODE = 15
_ON_GRID = 0.02  # of a step, by which a value may miss the grid and still lie on it
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class Int8Weight:
    """w[i, j] = scale[i] * codes[i, j]"""

    codes: Tensor  # [n_out, n_in] int8, -127 to 127
    scale: Tensor  # [n_out] float32

    def dequantised(self) -> Tensor:
        """[n_out, n_in] float32"""
        return self.codes.float() * self.scale[:, None]


@dataclass(frozen=True, slots=True)
class Int4Weight:
    """w[i, j] = scale[i, g] * codes[i, j] + least[i, g] with g = j // 32"""

    codes: Tensor  # [n_out, n_in] uint8, 0 to 15
    scale: Tensor  # [n_out, ceil(n_in / 32)] float16
    least: Tensor  # likewise

    def dequantised(self) -> Tensor:
        """[n_out, n_in] float32"""
        n_in = self.codes.shape[1]
        scale = self.scale.float().repeat_interleave(GROUP, 1)[:, :n_in]
        least = self.least.float().repeat_interleave(GROUP, 1)[:, :n_in]
        return self.codes.float() * scale + least


def to_int8(weight: Tensor) -> Int8Weight:
    """``weight`` [n_out, n_in] with one scale per output channel."""
    wide = weight.float()
    scale = wide.abs().amax(1).clamp_min(1e-30) / 127
    codes = (wide / scale[:, None]).round_().clamp_(-127, 127).to(torch.int8)
    return Int8Weight(codes, scale)


def to_int4(weight: Tensor) -> Int4Weight:
    """``weight`` [n_out, n_in] in groups of 32 inputs; the last group may be shorter."""
    parts = [_int4_rows(rows) for rows in torch.split(weight.float(), _ROWS_AT_ONCE)]
    codes, scale, least = (torch.cat(column) for column in zip(*parts, strict=True))
    return Int4Weight(codes, scale, least)


def _int4_rows(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    n_out, n_in = weight.shape
    groups = -(-n_in // GROUP)
    short = groups * GROUP - n_in
    if short:  # the last value again, so that a short group's range is its own
        weight = torch.cat([weight, weight[:, -1:].expand(-1, short)], 1)
    grouped = weight.view(n_out, groups, GROUP)
    low, high = grouped.amin(2), grouped.amax(2)
    step = _grid_step(grouped, low, (high - low) / _MOST_CODE)
    scale, least = step.half(), low.half()
    divisor = torch.where(scale == 0, torch.ones_like(scale), scale).float()
    codes = ((grouped - least.float()[..., None]) / divisor[..., None]).round_()
    codes = codes.clamp_(0, _MOST_CODE).to(torch.uint8)
    return codes.view(n_out, -1)[:, :n_in].contiguous(), scale, least


def _grid_step(grouped: Tensor, low: Tensor, widest: Tensor) -> Tensor:
    """The step of the grid on which each group lies, or ``widest`` where it lies on none. The
    least gap between two values is one, two or three steps in all but contrived groups."""
    gaps = grouped.sort(2).values.diff(dim=2)  # [n_out, groups, 31]
    gaps = torch.where(gaps > widest[..., None] * 0.25, gaps, torch.inf)
    least_gap = gaps.amin(2)
    step = widest.clone()
    found = torch.zeros_like(widest, dtype=torch.bool)
    for steps in (1, 2, 3):
        candidate = least_gap / steps
        at = (grouped - low[..., None]) / candidate[..., None]
        on_grid = (at - at.round()).abs().amax(2) < _ON_GRID
        fits = on_grid & (at.amax(2) < _MOST_CODE + 0.5) & candidate.isfinite() & ~found
        # the mean over the group is nearer to the true step than one gap is
        spread = at.round().amax(2).clamp_min(1)
        step = torch.where(fits, (grouped.amax(2) - low) / spread, step)
        found |= fits
    return step
