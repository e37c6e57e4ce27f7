"""The device tier: the bytes of the paged KV pool.

Invariant: slot = block × block_tokens + offset, in every layer and in both planes, so blocks that
lie side by side are one view [tokens, n_kv_heads, head_dim] and attention reads them in place.
Nothing is initialised: a slot holds noise until it is written, and kernels never read it before.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kvasir.core.errors import DoesNotFit
from kvasir.core.geometry import KvGeometry
from kvasir.kernels.memory import ask_for_large_pages
from kvasir.tiers.block_bytes import plane_bytes_of, slot_runs
from kvasir.tiers.ready import ReadyAhead


class DevicePool:
    """Key and value planes of all layers. Used by one thread only, except for ``gather`` and
    ``scatter``, each of which another thread may call for blocks that nobody else changes."""

    def __init__(self, geometry: KvGeometry, device: torch.device | str) -> None:
        """Allocate ``geometry.pool_bytes`` on ``device``; raises ``DoesNotFit`` if it cannot."""
        self.geometry = geometry
        self.device = torch.device(device)
        shape = (
            geometry.n_layers,
            geometry.pool_tokens,
            geometry.n_kv_heads,
            geometry.head_bytes // geometry.dtype_bytes,
        )
        dtype = getattr(torch, geometry.dtype)
        try:
            # [n_layers, n_slots, H, d] each; on a CPU the pages are committed as they are written.
            self._keys = torch.empty(shape, dtype=dtype, device=self.device)
            self._values = torch.empty(shape, dtype=dtype, device=self.device)
        except (RuntimeError, MemoryError) as error:
            raise DoesNotFit(
                f"the KV pool of {geometry.pool_bytes / 2**30:.2f} GiB ({geometry.pool_tokens} "
                f"tokens) could not be allocated on {self.device}; set a smaller kv_gib"
            ) from error
        for planes in (self._keys, self._values):
            ask_for_large_pages(planes)
        self._layers = tuple(zip(self._keys.unbind(0), self._values.unbind(0), strict=True))
        self._ahead = ReadyAhead([*self._keys.unbind(0), *self._values.unbind(0)])
        self._bytes = plane_bytes_of(self._keys, self._values)
        self._row_bytes = geometry.token_bytes // (2 * geometry.n_layers)

    def planes(self, layer: int) -> tuple[Tensor, Tensor]:
        """The key and the value plane of ``layer``: [n_slots, H, d] each, views of the pool."""
        return self._layers[layer]

    @property
    def all_planes(self) -> tuple[Tensor, Tensor]:
        """The key and the value planes of all layers: [n_layers, n_slots, …] each."""
        return self._keys, self._values

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Put ``keys`` and ``values`` [N, H, d] into ``slots`` [N] of ``layer``."""
        key_plane, value_plane = self._layers[layer]
        key_plane.index_copy_(0, slots, keys)
        value_plane.index_copy_(0, slots, values)

    def expect(self, end_block: int) -> None:
        """The blocks before ``end_block`` are going to be written."""
        self._ahead.used(end_block * self.geometry.block_tokens)

    def make_ready(self) -> bool:
        """Have a little more memory ready for blocks that may be written next; False where there
        is nothing to do."""
        return self._ahead.make_more()

    def copy(self, source: int, target: int, n_tokens: int) -> None:
        """Copy the first ``n_tokens`` of block ``source`` into block ``target``, in all layers."""
        geometry = self.geometry
        if not 0 <= n_tokens <= geometry.block_tokens:
            raise ValueError(f"a block holds {geometry.block_tokens} tokens, not {n_tokens}")
        for block in (source, target):
            if not 0 <= block < geometry.n_blocks:
                raise ValueError(f"block {block} is not one of the pool's {geometry.n_blocks}")
        if source == target:
            return
        a, b = source * geometry.block_tokens, target * geometry.block_tokens
        for plane in (self._keys, self._values):
            plane[:, b : b + n_tokens] = plane[:, a : a + n_tokens]

    def gather(self, blocks: Sequence[int], n_tokens: int, into: memoryview) -> None:
        """Copy the first ``n_tokens`` tokens of ``blocks`` out of every plane, plane after plane:
        layer 0 keys, layer 0 values, layer 1 keys, … Returns when they are copied. Raises
        ``ValueError`` for blocks that are not there and where ``into`` has another size."""
        geometry = self.geometry
        runs = slot_runs(blocks, n_tokens, geometry.block_tokens, geometry.n_blocks)
        if into.nbytes != n_tokens * geometry.token_bytes:
            raise ValueError(f"{into.nbytes} bytes do not take {n_tokens} tokens")
        self._bytes.gather(runs, into)

    def scatter(self, plane: int, blocks: Sequence[int], data: memoryview) -> None:
        """Copy ``data``, the tokens of ``blocks``, into plane ``plane``; the last block may get
        fewer than it holds. The planes of one record come in ascending order. Returns when they are
        copied. Raises ``ValueError`` for what is not there and for another size."""
        geometry = self.geometry
        if not 0 <= plane < 2 * geometry.n_layers:
            raise ValueError(f"plane {plane} is not one of the pool's {2 * geometry.n_layers}")
        n_tokens, rest = divmod(data.nbytes, self._row_bytes)
        if rest:
            raise ValueError(f"{data.nbytes} bytes are not a number of tokens")
        runs = slot_runs(blocks, n_tokens, geometry.block_tokens, geometry.n_blocks)
        self._bytes.scatter(plane, runs, data)

    def difference(self, a: int, b: int, n_tokens: int) -> float:
        """The largest difference of the first ``n_tokens`` of the blocks ``a`` and ``b`` in any
        plane: root mean square of the difference over that of ``a``; infinite where a number is
        none."""
        size = self.geometry.block_tokens
        worst = 0.0
        for plane in (self._keys, self._values):
            x = plane[:, a * size : a * size + n_tokens].double().flatten(1)  # [n_layers, …]
            y = plane[:, b * size : b * size + n_tokens].double().flatten(1)
            relative = (x - y).norm(dim=1) / x.norm(dim=1).clamp_min(1e-12)
            worst = max(worst, float(relative.nan_to_num(torch.inf).max()))
        return worst

    def fill(self, value: float) -> None:
        """Overwrite every slot; tests poison the pool with it."""
        self._keys.fill_(value)
        self._values.fill_(value)
