from __future__ import annotations

import math

import pytest
import torch

from kvasir.core.errors import DoesNotFit
from kvasir.core.geometry import KvGeometry
from kvasir.tiers import block_bytes, ready
from kvasir.tiers.block_bytes import MappedBytes, StagedBytes, slot_runs
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


DTYPES = {"bfloat16": 2, "float16": 2, "float32": 4}
BLOCKS = ([2], [1, 2, 3], [5, 0, 1, 3], [4, 3, 2])


def noisy_pool(dtype: str, device: str = "cpu", seed: int = 0) -> DevicePool:
    """Every bit pattern may be in it: NaN and infinities travel too."""
    shape = KvGeometry(
        n_layers=3, n_kv_heads=2, head_dim=5, dtype=dtype, dtype_bytes=DTYPES[dtype],
        block_tokens=4, n_blocks=6,
    )  # fmt: skip
    pool = DevicePool(shape, device)
    generator = torch.Generator().manual_seed(seed)
    for layer in range(shape.n_layers):
        for plane in pool.planes(layer):
            raw = plane.view(torch.uint8)
            noise = torch.randint(0, 256, raw.shape, dtype=torch.uint8, generator=generator)
            raw.copy_(noise)
    return pool


def expected_planes(pool: DevicePool, blocks: list[int], n_tokens: int) -> list[bytes]:
    """The canonical layout, slot by slot."""
    slots = [block * 4 + offset for block in blocks for offset in range(4)][:n_tokens]
    return [
        bytes(plane[slots].cpu().contiguous().view(torch.uint8).flatten().tolist())
        for layer in range(pool.geometry.n_layers)
        for plane in pool.planes(layer)
    ]


def with_reach(pool: DevicePool, reach: str, monkeypatch: pytest.MonkeyPatch) -> DevicePool:
    """``staged``: the way of a device with its own memory, with room for three slots at once."""
    if reach == "staged":
        row_bytes = pool.geometry.token_bytes // (2 * pool.geometry.n_layers)
        monkeypatch.setattr(block_bytes, "_STAGING_BYTES", 3 * row_bytes)
        pool._bytes = StagedBytes(pool._keys, pool._values)
    else:
        assert isinstance(pool._bytes, MappedBytes)
    return pool


WAYS = [("cpu", "mapped"), ("cpu", "staged"), *([("cuda", "staged")] if len(DEVICES) > 1 else [])]


@pytest.mark.parametrize(("device", "reach"), WAYS)
@pytest.mark.parametrize("blocks", BLOCKS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_blocks_are_gathered_in_the_canonical_layout(
    dtype: str, blocks: list[int], device: str, reach: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = with_reach(noisy_pool(dtype, device), reach, monkeypatch)
    for n_tokens in (len(blocks) * 4, len(blocks) * 4 - 3):
        room = bytearray(n_tokens * pool.geometry.token_bytes)
        pool.gather(blocks, n_tokens, memoryview(room))
        assert bytes(room) == b"".join(expected_planes(pool, blocks, n_tokens))


@pytest.mark.parametrize(("device", "reach"), WAYS)
@pytest.mark.parametrize("blocks", BLOCKS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_scattered_planes_reach_their_blocks_and_no_others(
    dtype: str, blocks: list[int], device: str, reach: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n_tokens in (len(blocks) * 4, len(blocks) * 4 - 3):
        source = noisy_pool(dtype, seed=1)
        pool = with_reach(noisy_pool(dtype, device), reach, monkeypatch)
        others = [slot for slot in range(24) if slot // 4 not in blocks]
        others += [blocks[-1] * 4 + offset for offset in range(n_tokens - len(blocks) * 4 + 4, 4)]
        before = [
            pool.planes(layer)[half][others].view(torch.uint8).clone()
            for layer in range(3)
            for half in range(2)
        ]
        planes = expected_planes(source, blocks, n_tokens)
        for plane, data in enumerate(planes):
            pool.scatter(plane, blocks, memoryview(data))
        assert expected_planes(pool, blocks, n_tokens) == planes
        for index, kept in enumerate(before):
            layer, half = divmod(index, 2)
            assert torch.equal(pool.planes(layer)[half][others].view(torch.uint8), kept)


def test_on_a_cpu_no_torch_operation_moves_bytes() -> None:
    class NoTorch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: object, *_: object, **__: object) -> object:
            raise AssertionError(f"{func} would start OpenMP threads of its own")

    pool = noisy_pool("bfloat16")
    room = memoryview(bytearray(8 * pool.geometry.token_bytes))
    with NoTorch():
        pool.gather([1, 2], 8, room)
        pool.scatter(0, [1, 2], room[: len(room) // 6])


def test_neighbouring_blocks_are_one_copy() -> None:
    assert slot_runs([3, 4, 5, 1, 2, 0], 22, 4, 6) == [(12, 12), (4, 8), (0, 2)]
    assert slot_runs([5], 1, 4, 6) == [(20, 1)]
    for block in (-1, 6):
        with pytest.raises(ValueError, match="not one of the pool's 6"):
            slot_runs([block], 1, 4, 6)


@pytest.mark.parametrize(
    ("blocks", "n_tokens"), [([6], 4), ([-1], 4), ([1], 5), ([1, 2], 4), ([1], 0), ([], 0)]
)
def test_gathering_what_is_not_there_is_refused(blocks: list[int], n_tokens: int) -> None:
    pool = noisy_pool("float32")
    with pytest.raises(ValueError):
        pool.gather(blocks, n_tokens, memoryview(bytearray(n_tokens * pool.geometry.token_bytes)))


@pytest.mark.parametrize("n_bytes", [0, 239, 241])
def test_gathering_into_another_size_is_refused(n_bytes: int) -> None:
    pool = noisy_pool("float32")
    assert pool.geometry.token_bytes == 240
    with pytest.raises(ValueError, match="bytes do not take"):
        pool.gather([0], 1, memoryview(bytearray(n_bytes)))


@pytest.mark.parametrize(
    ("plane", "blocks", "n_bytes"),
    [
        *[(plane, [0], 160) for plane in (-1, 6)],
        *[(0, [block], 160) for block in (-1, 6)],
        *[(0, [0], n_bytes) for n_bytes in (0, 161, 200)],
        *[(0, [0, 1], 160), (0, [], 0)],
    ],
)
def test_scattering_to_what_is_not_there_is_refused(
    plane: int, blocks: list[int], n_bytes: int
) -> None:
    with pytest.raises(ValueError):
        noisy_pool("float32").scatter(plane, blocks, memoryview(bytearray(n_bytes)))
