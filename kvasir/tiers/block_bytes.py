"""The bytes of the pool's blocks for threads beside the engine's: copies into and out of planes.

On a CPU nothing here is a torch operation: one on another thread would make a second team of OpenMP
threads, which takes cores from the engine. The pool's memory is seen as numpy's ``uint8`` instead
(numpy has no bfloat16), and neighbouring slots are one copy, which lets other threads run.

Invariant: a plane is [n_tokens, n_kv_heads, head_dim], and the order of planes is the canonical
one: layer 0 keys, layer 0 values, layer 1 keys, …
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

Run = tuple[int, int]  # neighbouring slots: the first, how many
_STAGING_BYTES = 4 * 2**20


class PlaneBytes(Protocol):
    """Copies between the slots of the pool and plain memory. One thread may gather while another
    one scatters other slots; sizes have been checked."""

    def gather(self, runs: Sequence[Run], into: memoryview) -> None:
        """Copy the ``runs`` of every plane, plane after plane."""
        ...

    def scatter(self, plane: int, runs: Sequence[Run], data: memoryview) -> None:
        """Copy ``data`` into the ``runs`` of one plane."""
        ...


class MappedBytes:
    """Planes that lie in the memory of this process."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        """``keys`` and ``values`` [n_layers, n_slots, H, d], contiguous and on a CPU."""
        self._halves = (_rows(keys).numpy(), _rows(values).numpy())  # [L, n_slots, row_bytes]

    def gather(self, runs: Sequence[Run], into: memoryview) -> None:
        keys, values = self._halves
        n_layers, _, row_bytes = keys.shape
        planes = np.frombuffer(into, np.uint8).reshape(n_layers, 2, -1, row_bytes)
        at = 0
        for first, count in runs:  # all layers at once: a loop over them would cost more than bytes
            planes[:, 0, at : at + count] = keys[:, first : first + count]
            planes[:, 1, at : at + count] = values[:, first : first + count]
            at += count

    def scatter(self, plane: int, runs: Sequence[Run], data: memoryview) -> None:
        layer, half = divmod(plane, 2)
        target = self._halves[half][layer]
        source = np.frombuffer(data, np.uint8).reshape(-1, target.shape[-1])
        at = 0
        for first, count in runs:
            target[first : first + count] = source[at : at + count]
            at += count


class StagedBytes:
    """Planes on a device with memory of its own: copied through pinned memory, on streams of their
    own, so that the engine's kernels and the copies overlap."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        """``keys`` and ``values`` [n_layers, n_slots, H, d], contiguous, on one device."""
        layers = zip(_rows(keys).unbind(0), _rows(values).unbind(0), strict=True)
        self._planes = [plane for pair in layers for plane in pair]  # [n_slots, row_bytes] each
        self._row_bytes = self._planes[0].shape[1]
        self._out = _Staging(keys.device, self._row_bytes)
        self._in = _Staging(keys.device, self._row_bytes)

    def gather(self, runs: Sequence[Run], into: memoryview) -> None:
        # What was queued on the device before may still be writing these slots.
        self._out.wait_for_engine()
        target = np.frombuffer(into, np.uint8).reshape(-1, self._row_bytes)
        at = filled = 0
        for plane in self._planes:
            for first, count in _pieces(runs, self._out.n_rows):
                if filled + count > self._out.n_rows:
                    self._flush_into(target[at - filled : at])
                    filled = 0
                with self._out.stream():
                    room = self._out.rows[filled : filled + count]
                    room.copy_(plane[first : first + count], non_blocking=True)
                filled += count
                at += count
        self._flush_into(target[at - filled : at])

    def scatter(self, plane: int, runs: Sequence[Run], data: memoryview) -> None:
        if plane == 0:
            # Once per record is enough: a kernel that still reads or writes these slots was queued
            # before the record's first plane, and waiting again would cost a step per plane.
            self._in.wait_for_engine()
        source = np.frombuffer(data, np.uint8).reshape(-1, self._row_bytes)
        at = 0
        for first, count in _pieces(runs, self._in.n_rows):
            self._in.mapped[:count] = source[at : at + count]
            with self._in.stream():
                room = self._in.rows[:count]
                self._planes[plane][first : first + count].copy_(room, non_blocking=True)
            self._in.synchronise()
            at += count

    def _flush_into(self, target: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> None:
        self._out.synchronise()
        target[:] = self._out.mapped[: len(target)]


class _Staging:
    """Pinned memory for one direction, and the stream that copies through it."""

    def __init__(self, device: torch.device, row_bytes: int) -> None:
        on_cuda = device.type == "cuda"
        self.n_rows = max(1, _STAGING_BYTES // row_bytes)
        self.rows = torch.empty(self.n_rows, row_bytes, dtype=torch.uint8, pin_memory=on_cuda)
        self.mapped = self.rows.numpy()
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        if on_cuda:
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def stream(self) -> contextlib.AbstractContextManager[object]:
        return torch.cuda.stream(self._stream) if self._stream else contextlib.nullcontext()

    def wait_for_engine(self) -> None:
        """Have this stream wait for what the engine has queued so far, on the default stream."""
        if self._stream:
            self._stream.wait_stream(torch.cuda.default_stream(self._device))

    def synchronise(self) -> None:
        if self._stream:
            self._stream.synchronize()


def plane_bytes_of(keys: Tensor, values: Tensor) -> PlaneBytes:
    """How the bytes of these planes are reached on their device."""
    on_cpu = keys.device.type == "cpu"
    return MappedBytes(keys, values) if on_cpu else StagedBytes(keys, values)


def slot_runs(blocks: Sequence[int], n_tokens: int, block_tokens: int, n_blocks: int) -> list[Run]:
    """The slots of the first ``n_tokens`` tokens of ``blocks``, neighbouring ones joined. Raises
    ``ValueError`` for a block that is not there and where the tokens do not need all blocks."""
    if not (len(blocks) - 1) * block_tokens < n_tokens <= len(blocks) * block_tokens:
        raise ValueError(f"{n_tokens} tokens do not fill {len(blocks)} blocks of {block_tokens}")
    if min(blocks) < 0 or max(blocks) >= n_blocks:
        raise ValueError(f"one of the blocks {list(blocks)} is not one of the pool's {n_blocks}")
    runs: list[Run] = []
    for index, block in enumerate(blocks):
        first = block * block_tokens
        count = min(block_tokens, n_tokens - index * block_tokens)
        if runs and sum(runs[-1]) == first:
            runs[-1] = (runs[-1][0], runs[-1][1] + count)
        else:
            runs.append((first, count))
    return runs


def _pieces(runs: Sequence[Run], most: int) -> Iterator[Run]:
    """``runs`` in pieces of at most ``most`` slots."""
    for first, count in runs:
        for at in range(0, count, most):
            yield first + at, min(most, count - at)


def _rows(planes: Tensor) -> Tensor:
    """``planes`` [n_layers, n_slots, H, d] as bytes: [n_layers, n_slots, row_bytes], a view."""
    return planes.view(torch.uint8).flatten(2)
