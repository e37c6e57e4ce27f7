"""The device tier: the bytes of the paged KV pool.

Invariant: slot = block × block_tokens + offset, in every layer and in both planes, so blocks that
lie side by side are one view [tokens, n_kv_heads, head_dim] and attention reads them in place.
Nothing is initialised: a slot holds noise until it is written, and kernels never read it before.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvasir.core.errors import DoesNotFit
from kvasir.core.geometry import KvGeometry
from kvasir.kernels.memory import ask_for_large_pages
from kvasir.tiers.ready import ReadyAhead


class DevicePool:
    """Key and value planes of all layers. Used by one thread only."""

    def __init__(self, geometry: KvGeometry, device: torch.device | str) -> None:
        """Allocate ``geometry.pool_bytes`` on ``device``; raises ``DoesNotFit`` if it cannot."""
        self.geometry = geometry
        self.device = torch.device(device)
        shape = (
            geometry.n_layers,
            geometry.pool_tokens,
            geometry.n_kv_heads,
            geometry.head_dim,
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

    def planes(self, layer: int) -> tuple[Tensor, Tensor]:
        """The key and the value plane of ``layer``: [n_slots, H, d] each, views of the pool."""
        return self._layers[layer]

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

    def fill(self, value: float) -> None:
        """Overwrite every slot; tests poison the pool with it."""
        self._keys.fill_(value)
        self._values.fill_(value)
