from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvasir.kernels import quantise
from kvasir.kernels.native import abi, library, weights

LIBRARY = library.load()
SIZES = [(1, 1), (3, 31), (5, 32), (32, 64), (33, 50), (70, 97)]  # [n_out, n_in]


def random_weight(n_out: int, n_in: int) -> torch.Tensor:
    torch.manual_seed(n_out * 1000 + n_in)
    return torch.randn(n_out, n_in) * 0.1 * torch.rand(n_out, 1)


def by_group(weight: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.split(weight, quantise.GROUP, 1))


@pytest.mark.parametrize(("n_out", "n_in"), SIZES)
def test_int8_misses_by_half_a_step_at_most(n_out: int, n_in: int) -> None:
    weight = random_weight(n_out, n_in)
    eight = quantise.to_int8(weight)
    assert eight.codes.dtype == torch.int8
    assert eight.codes.int().abs().max() <= 127
    assert torch.equal(eight.codes.int().abs().amax(1), torch.full((n_out,), 127, dtype=torch.int))
    step = weight.abs().amax(1) / 127
    torch.testing.assert_close(eight.scale, step)
    missed = (eight.dequantised() - weight).abs()
    assert (missed <= step[:, None] * 0.5001).all()


@pytest.mark.parametrize(("n_out", "n_in"), SIZES)
def test_int4_misses_by_half_a_step_at_most(n_out: int, n_in: int) -> None:
    weight = random_weight(n_out, n_in)
    four = quantise.to_int4(weight)
    assert four.codes.max() <= 15
    assert four.codes.shape == weight.shape
    assert four.scale.shape == four.least.shape == (n_out, -(-n_in // quantise.GROUP))
    for missed, group in zip(
        by_group((four.dequantised() - weight).abs()), by_group(weight), strict=True
    ):
        low, high = group.amin(1), group.amax(1)
        step = (high - low) / 15
        # scale and least value are rounded to half precision: 2^-11 of each
        rounding = 2**-11 * (low.abs() + 15 * step) + 2**-24
        assert (missed.amax(1) <= 0.5 * step + rounding).all()


@st.composite
def grids(draw: st.DrawFn) -> tuple[torch.Tensor, float, float, list[int]]:
    """A group on a grid of 4 bits whose codes do not all occur: values, step, least, codes."""
    step = float(np.float16(draw(st.floats(2**-9, 2**3))))
    least = float(np.float16(draw(st.floats(-16, 4)) * step))
    n = draw(st.integers(2, 32))
    codes = draw(st.lists(st.integers(0, 15), min_size=n, max_size=n))
    gap = draw(st.integers(1, 3))  # the least gap that occurs is one, two or three steps
    codes[0], codes[1] = 0, gap
    return torch.tensor(codes) * step + least, step, least, codes


@settings(deadline=None)
@given(grids())
def test_groups_on_a_grid_are_kept(grid: tuple[torch.Tensor, float, float, list[int]]) -> None:
    values, step, least, codes = grid
    four = quantise.to_int4(values[None])
    missed = (four.dequantised()[0] - values).abs().max()
    most = max(abs(least), abs(least + 15 * step))
    gaps = np.diff(sorted(set(codes)))
    assert missed <= 2**-10 * (most + 15 * step), (gaps, four)


def test_groups_that_use_all_of_a_grid_are_kept_exactly() -> None:
    torch.manual_seed(0)
    codes = torch.stack([torch.randperm(32) % 16 for _ in range(64)])
    scale, least = torch.rand(64, 1).half() / 8, -torch.rand(64, 1).half()
    weight = codes * scale.float() + least.float()
    four = quantise.to_int4(weight)
    assert torch.equal(four.codes, codes.to(torch.uint8))
    assert torch.equal(four.scale, scale)
    assert torch.equal(four.least, least)
    assert torch.equal(four.dequantised(), weight)


@pytest.mark.parametrize("value", [0.0, 0.25, -3.0, 1e-3])
def test_constant_groups_become_their_value(value: float) -> None:
    weight = torch.full((3, 80), value)
    weight[1] = 0
    four, eight = quantise.to_int4(weight), quantise.to_int8(weight)
    torch.testing.assert_close(four.dequantised(), weight, rtol=2**-11, atol=0)
    torch.testing.assert_close(eight.dequantised(), weight, rtol=1e-6, atol=0)


def test_a_short_last_group_has_a_range_of_its_own() -> None:
    weight = torch.cat([torch.linspace(-8, 8, 32), torch.tensor([100.0, 101.0, 102.5])])[None]
    four = quantise.to_int4(weight)
    assert four.least[0, 1] == 100
    assert (four.dequantised()[0, 32:] - weight[0, 32:]).abs().max() <= 0.5 * 2.5 / 15 + 0.01


def test_many_rows_are_quantised_as_few_are(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = random_weight(70, 97)
    whole = quantise.to_int4(weight)
    monkeypatch.setattr(quantise, "_ROWS_AT_ONCE", 16)
    parts = quantise.to_int4(weight)
    for name in ("codes", "scale", "least"):
        assert torch.equal(getattr(whole, name), getattr(parts, name)), name


# --- packed, as native/pack.h says: panels of 32 outputs, sizes padded with zeros -----------------


def padded_to(array: np.ndarray, n_out: int, n_in: int, with_: int) -> np.ndarray:
    out = np.full((n_out, n_in), with_, array.dtype)
    out[: array.shape[0], : array.shape[1]] = array
    return out


def panels_of(array: np.ndarray, together: int) -> np.ndarray:
    """[n_out, n_in] -> [panels, n_in / together, 32, together]"""
    n_out, n_in = array.shape
    return array.reshape(n_out // 32, 32, n_in // together, together).transpose(0, 2, 1, 3)


def pack(weight: torch.Tensor, name: str) -> weights.PackedLinear:
    assert isinstance(LIBRARY, ctypes.CDLL)
    return weights.pack(LIBRARY, weight, torch.arange(len(weight)) / 7, name)


needs_library = pytest.mark.skipif(LIBRARY is None, reason="the native library is not built")


@needs_library
@pytest.mark.parametrize(("n_out", "n_in"), SIZES)
@pytest.mark.parametrize("name", list(weights.FORMATS))
def test_packed_weights_lie_as_documented(n_out: int, n_in: int, name: str) -> None:
    weight = random_weight(n_out, n_in)
    packed = pack(weight, name)
    wide, deep = weights.padded(n_out), weights.padded(n_in)
    memory = packed.weight.numpy()
    if name == "bf16":
        bits = weight.bfloat16().view(torch.uint16).numpy()
        want = panels_of(padded_to(bits, wide, deep, 0), 2).copy().view(np.uint8)
    elif name == "int8":
        codes = (quantise.to_int8(weight).codes.int() + 128).to(torch.uint8).numpy()
        want = panels_of(padded_to(codes, wide, deep, 128), 4)
    else:
        want = int4_layout(quantise.to_int4(weight), wide, deep)
    assert np.array_equal(memory, want.reshape(-1))
    assert packed.weight.data_ptr() % 64 == 0
    struct = packed.struct
    assert (struct.n_out, struct.n_in, struct.format) == (n_out, n_in, weights.FORMATS[name])
    assert packed.bias is not None
    assert torch.equal(packed.bias[:n_out], torch.arange(n_out) / 7)
    assert not packed.bias[n_out:].any()
    assert (packed.scale is not None) == (name == "int8")


def int4_layout(four: quantise.Int4Weight, wide: int, deep: int) -> np.ndarray:
    """By panel and group of 32 inputs: 4 times [32 outputs, 4] bytes, whose low nibbles are inputs
    0 to 15 and whose high ones 16 to 31; then 32 scales, then 32 least values."""
    codes = padded_to(four.codes.numpy(), wide, deep, 0).reshape(
        wide // 32, 32, deep // 32, 2, 4, 4
    )
    low, high = codes[..., 0, :, :], codes[..., 1, :, :]  # [panel, output, group, four, 4]
    nibbles = (low | high << 4).transpose(0, 2, 3, 1, 4).reshape(wide // 32, deep // 32, 512)
    ends = [
        padded_to(x.view(torch.uint16).numpy(), wide, deep // 32, 0)
        .reshape(wide // 32, 32, deep // 32)
        .transpose(0, 2, 1)
        .copy()
        .view(np.uint8)
        for x in (four.scale, four.least)
    ]
    return np.concatenate([nibbles, *ends], axis=2)


@needs_library
@pytest.mark.parametrize("name", list(weights.FORMATS))
def test_the_library_counts_packed_bytes(name: str) -> None:
    assert isinstance(LIBRARY, ctypes.CDLL)
    bits = {"bf16": 16, "int8": 8, "int4": 5}[name]  # 4, and two halves for each 32
    for n_out, n_in in SIZES:
        want = weights.padded(n_out) * weights.padded(n_in) * bits // 8
        assert LIBRARY.kvasir_packed_bytes(weights.FORMATS[name], n_out, n_in) == want
    assert abi.PANEL == 32


def test_gates_and_ups_alternate_by_sixteen() -> None:
    gate, up = torch.arange(20.0)[:, None], -torch.arange(20.0)[:, None]
    both = weights.gates_and_ups(gate, up)[:, 0]
    assert both.tolist() == [
        *range(16), *(-i for i in range(16)),
        *range(16, 20), *[0] * 12, *(-i for i in range(16, 20)), *[0] * 12,
    ]  # fmt: skip
