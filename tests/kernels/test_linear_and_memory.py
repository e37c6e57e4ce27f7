from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from kvasir.kernels import memory
from kvasir.kernels.linear import PackedProjection, PlainProjection, against_packing, projection

CPU = torch.device("cpu")
PACKS = not against_packing(CPU, torch.bfloat16)


def test_packing_is_refused_with_a_reason() -> None:
    assert "cuda" in against_packing(torch.device("cuda"), torch.bfloat16)[0]
    assert "float32" in against_packing(CPU, torch.float32)[0]
    assert isinstance(projection(torch.randn(4, 8)), PlainProjection)


@pytest.mark.skipif(not PACKS, reason="this CPU does not compute bfloat16 in hardware")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("n", [1, 3, 16, 200])
@pytest.mark.parametrize(("n_in", "n_out"), [(64, 96), (576, 960), (50, 33)])
def test_packed_projections_equal_plain_ones(n: int, n_in: int, n_out: int, bias: bool) -> None:
    torch.manual_seed(0)
    weight = torch.randn(n_out, n_in).bfloat16() * n_in**-0.5
    offset = torch.randn(n_out).bfloat16() if bias else None
    x, other = torch.randn(n, n_in).bfloat16(), torch.randn(n, n_out).bfloat16()
    packed, plain = PackedProjection(weight, offset), PlainProjection(weight, offset)
    wide = PlainProjection(weight.float(), None if offset is None else offset.float())
    with torch.inference_mode():
        for name, arguments in (
            ("__call__", (x,)), ("add_to", (other, x)), ("silu", (x,)), ("times", (other, x))
        ):  # fmt: skip
            want = getattr(wide, name)(*(a.float().clone() for a in arguments))
            for one in (packed, plain):
                got = getattr(one, name)(*(a.clone() for a in arguments))
                assert (got.float() - want).abs().max() < 0.04 * want.abs().max(), name


def test_keeping_freed_memory_says_what_came_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory.keep_freed_memory().startswith("freed memory:")
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert "left to the C library" in memory.keep_freed_memory()


@pytest.mark.parametrize("wish", [memory.ask_for_large_pages, memory.populate])
def test_wishes_about_memory_change_no_content(
    wish: Callable[[torch.Tensor], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    tensor = torch.arange(3_000_001)
    assert wish(tensor[1:]) in (True, False)
    assert wish(tensor[:3]) in (True, False)
    assert torch.equal(tensor, torch.arange(3_000_001))
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert not wish(tensor)
