from __future__ import annotations

import math

import pytest
import torch

from kvasir.core.errors import DoesNotFit
from kvasir.core.geometry import KvGeometry
from kvasir.tiers import ready
from kvasir.tiers.device import DevicePool
from kvasir.tiers.ready import ReadyAhead

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def geometry(n_blocks: int = 6) -> KvGeometry:
    return KvGeometry(
        n_layers=2, n_kv_heads=3, head_dim=4, dtype="float32", dtype_bytes=4,
        block_tokens=4, n_blocks=n_blocks,
    )  # fmt: skip


@pytest.mark.parametrize("device", DEVICES)
def test_a_write_reaches_its_slots_in_its_layer_and_no_others(device: str) -> None:
    pool = DevicePool(geometry(), device)
    pool.fill(math.nan)
    keys, values = torch.randn(2, 3, 4, device=device), torch.randn(2, 3, 4, device=device)
    pool.write(1, torch.tensor([9, 2], device=device), keys, values)
    key_plane, value_plane = pool.planes(1)
    assert torch.equal(key_plane[[9, 2]], keys)
    assert torch.equal(value_plane[[9, 2]], values)
    assert int(key_plane.isnan().any(-1).any(-1).sum()) == 22
    assert pool.planes(0)[0].isnan().all()


@pytest.mark.parametrize("device", DEVICES)
def test_neighbouring_blocks_are_one_view(device: str) -> None:
    plane = DevicePool(geometry(), device).planes(0)[0]
    run = plane[4:16]
    assert run.is_contiguous()
    assert run.data_ptr() == plane.data_ptr() + 4 * 3 * 4 * 4


@pytest.mark.parametrize("device", DEVICES)
def test_a_copy_moves_the_first_tokens_of_a_block_in_every_layer(device: str) -> None:
    pool = DevicePool(geometry(), device)
    pool.fill(math.nan)
    for layer in range(2):
        content = torch.randn(4, 3, 4, device=device)
        pool.write(layer, torch.arange(8, 12, device=device), content, content + 1)
    pool.copy(2, 5, 3)
    for layer in range(2):
        for plane in pool.planes(layer):
            assert torch.equal(plane[20:23], plane[8:11])
            assert plane[23].isnan().all()


@pytest.mark.parametrize(("source", "target", "n"), [(0, 6, 1), (-1, 0, 1), (0, 1, 5), (0, 1, -1)])
def test_a_copy_outside_of_the_pool_is_refused(source: int, target: int, n: int) -> None:
    with pytest.raises(ValueError):
        DevicePool(geometry(), "cpu").copy(source, target, n)


def test_a_pool_that_cannot_be_allocated_says_so() -> None:
    with pytest.raises(DoesNotFit, match="kv_gib"):
        DevicePool(geometry(n_blocks=2**50), "cpu")


def test_memory_is_made_ready_ahead_of_use_without_changing_what_is_there() -> None:
    planes = [torch.full((40_000, 3, 64), 1.5, dtype=torch.bfloat16) for _ in range(3)]
    ahead = ReadyAhead(planes)
    for end in (1, 20_000, 40_000):
        ahead.used(end)
        while ahead.make_more():
            planes[0][end - 1] = 2.0
    assert not ahead.make_more()
    assert all(bool(plane[10:].ge(1.5).all()) for plane in planes)


def test_memory_is_made_ready_for_a_stretch_beyond_what_is_in_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(ready, "populate", lambda part: asked.append(part.data_ptr()) or True)
    monkeypatch.setattr(ready, "_AHEAD_BYTES", 6 * 2**20)
    plane = torch.empty(20 * 2**20, 1, dtype=torch.int8)
    ahead = ReadyAhead([plane])
    while ahead.make_more():
        pass
    assert [address - plane.data_ptr() for address in asked] == [0, 2**21, 2**22]
    ahead.used(5 * 2**20)
    while ahead.make_more():
        pass
    assert len(asked) == 6
