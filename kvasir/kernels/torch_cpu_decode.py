"""Single tokens of many sequences over the paged pool on CPUs: two batched products per layer.

Blocks of the pool are the batch of the products, so sequences of any length share one call. The
queries are laid out block-diagonally over the KV heads, [C, Hq] with C = H d: a block of keys
[block_tokens, C] is then the left operand just as it lies in the pool, which oneDNN reads without
repacking. Runs of blocks are views. Only the unfilled blocks at the ends of sequences are copied,
padded with slots that are written, because what lies behind the end may be anything.

In bfloat16 the scores are rounded to bfloat16, as in eager attention. Where a row's highest score
exceeds ``_MOST_SCORE`` that would blur its weights, and ``attend`` declines.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvasir.kernels.paging import BlockTable, Span

_MOST_SCORE = 64.0  # rounding such a score to bfloat16 changes its weight by at most an eighth
_MOST_RUNS = 8  # of one sequence; a table in more pieces is gathered into one copy
_ALONE = 48  # blocks; a longer run is a product of its own, without repeating the query
_MOST_GAP = 4  # blocks of others between two runs of one product, computed for nothing


@dataclass(frozen=True, slots=True)
class _Segment:
    """Some of the step's items: neighbouring blocks of the pool, or gathered ones."""

    items: slice
    blocks: slice | Tensor  # of the pool: a view, or [I] int64 ids to copy
    owner: int | None  # of all its items, or None: mixed


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """B rows whose KV is cut into I items of one block each; the last E items are the *edges*,
    blocks of which a row sees a part. Items in gaps belong to row B, which does not exist and
    whose result is dropped."""

    rows: Tensor  # [B] int64, of the step's batch
    block_tokens: int
    segments: tuple[_Segment, ...]
    owners: Tensor  # [I] int64
    edge_slots: Tensor  # [E * block_tokens] int64
    edge_hidden: Tensor  # [E, block_tokens, 1] bool, True for padding

    def attend(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor | None:
        """The attention of the plan's rows, [B, Hq, d], or None where the scores are too large
        for the dtype. ``query`` [N, Hq, d]; ``keys`` and ``values`` [n_slots, H, d]."""
        n_rows, n_items = len(self.rows), len(self.owners)
        heads, dim = keys.shape[1:]
        n_query = query.shape[1]
        group = n_query // heads
        scaled = query.index_select(0, self.rows) * dim**-0.5
        spread = query.new_zeros(n_rows + 1, heads, dim, heads, group)
        spread[:-1].diagonal(0, 1, 3).copy_(
            scaled.view(n_rows, heads, group, dim).permute(0, 3, 2, 1)
        )
        scores = self._scores(spread.view(n_rows + 1, heads * dim, n_query), keys)

        highest = scores.new_full((n_rows + 1, n_query), -torch.inf)
        owners = self.owners[:, None].expand(-1, n_query)
        highest.scatter_reduce_(0, owners, _amax(scores), "amax")
        if query.dtype == torch.bfloat16 and not float(highest[:-1].abs().max()) <= _MOST_SCORE:
            return None
        # [I, block_tokens, Hq]: float32 until the exponentials are taken
        weights = scores - highest.float().index_select(0, self.owners)[:, None]
        weights = weights.exp_().to(query.dtype)
        totals = query.new_zeros(n_rows + 1, n_query, dtype=torch.float32)
        totals.index_add_(0, self.owners, weights.sum(1, dtype=torch.float32))

        mixed = self._mixed(weights, values)  # [I, Hq, C]
        own = mixed.view(n_items, heads, group, heads, dim).diagonal(0, 1, 3)  # [I, G, d, H]
        own = own.permute(0, 3, 1, 2).float().reshape(n_items, n_query, dim)
        out = query.new_zeros(n_rows + 1, n_query, dim, dtype=torch.float32)
        out.index_add_(0, self.owners, own)
        return (out[:-1] / totals[:-1, :, None]).to(query.dtype)

    def _scores(self, spread: Tensor, keys: Tensor) -> Tensor:
        """Scaled scores of every item under its owner's query: [I, block_tokens, Hq]."""
        scores = spread.new_empty(len(self.owners), self.block_tokens, spread.shape[2])
        for segment in self.segments:
            blocks = self._blocks(segment, keys)
            out = scores[segment.items]
            if segment.owner is None:
                queries = spread.index_select(0, self.owners[segment.items])
                torch.bmm(blocks, queries, out=out)
            else:
                torch.mm(blocks.flatten(0, 1), spread[segment.owner], out=out.flatten(0, 1))
        edges = scores[len(self.owners) - len(self.edge_hidden) :]
        edges.masked_fill_(self.edge_hidden, -torch.inf)
        return scores

    def _mixed(self, weights: Tensor, values: Tensor) -> Tensor:
        """Values averaged with the weights of all heads, of which the own KV head's are kept
        later: [I, Hq, C]."""
        n_items, _, n_query = weights.shape
        mixed = weights.new_empty(n_items, n_query, values[0].numel())
        for segment in self.segments:
            some = weights[segment.items].transpose(1, 2)
            torch.bmm(some, self._blocks(segment, values), out=mixed[segment.items])
        return mixed

    def _blocks(self, segment: _Segment, plane: Tensor) -> Tensor:
        """The segment's blocks of ``plane`` [n_slots, H, d]: [I, block_tokens, C]."""
        if segment.items.stop == len(self.owners):  # the edges
            return plane.index_select(0, self.edge_slots).view(
                len(self.edge_hidden), self.block_tokens, -1
            )
        blocks = plane.view(-1, self.block_tokens, plane[0].numel())
        if isinstance(segment.blocks, slice):
            return blocks[segment.blocks]
        return blocks.index_select(0, segment.blocks)


def _amax(scores: Tensor) -> Tensor:
    """The largest over the tokens of each item of ``scores`` [I, T, Hq]: [I, Hq]. In two steps
    where T allows, because a reduction over many short rows is slow."""
    n_items, n_tokens, n_query = scores.shape
    if n_tokens % 16 == 0:
        scores = scores.view(n_items, n_tokens // 16, 16 * n_query).amax(1)
        scores = scores.view(n_items, 16, n_query)
    return scores.amax(1)


def plan(spans: Sequence[Span], window: int | None) -> DecodePlan:
    """Describe ``spans``, which compute one token each. The host's work grows with sequences and
    runs; only flat arrays grow with the number of blocks."""
    block_tokens = spans[0].table.block_tokens
    runs: list[tuple[int, int, int]] = []  # (first block, count, row)
    edges: list[tuple[int, int, int]] = []  # (row, first position, end)
    segments: list[_Segment] = []
    owners: list[NDArray[np.int64]] = []
    n_items = 0

    def add(blocks: slice | Tensor, rows: NDArray[np.int64], owner: int | None) -> None:
        nonlocal n_items
        segments.append(_Segment(slice(n_items, n_items + len(rows)), blocks, owner))
        owners.append(rows)
        n_items += len(rows)

    for row, span in enumerate(spans):
        low, high = _whole_blocks(span, window, block_tokens)
        edges += [(row, a, b) for a, b in _edges(span, window, low, high) if a < b]
        if low >= high:
            continue
        pieces = span.table.pieces(low, high, _MOST_RUNS)
        if pieces is None:
            ids = span.table.blocks(low, high)[0]
            add(ids, np.full(len(ids), row), row)
        else:
            runs += [(slot // block_tokens, n // block_tokens, row) for slot, n in pieces]
    for first, count, rows in _joined(sorted(runs), len(spans)):
        owner = int(rows[0]) if bool((rows == rows[0]).all()) else None
        add(slice(first, first + count), rows, owner)
    add(slice(0), np.array([row for row, _, _ in edges], dtype=np.int64), None)
    slots, hidden = _edge_slots(edges, [span.table for span in spans], block_tokens)
    return DecodePlan(
        rows=torch.tensor([span.row for span in spans]),
        block_tokens=block_tokens,
        segments=tuple(segments),
        owners=torch.from_numpy(np.concatenate(owners)),
        edge_slots=slots,
        edge_hidden=hidden,
    )


def _whole_blocks(span: Span, window: int | None, block_tokens: int) -> tuple[int, int]:
    """The positions that the span's row sees in blocks which it sees in full, and which are not
    its last."""
    low = -(-span.first_visible(window) // block_tokens) * block_tokens
    return low, span.start // block_tokens * block_tokens


def _edges(span: Span, window: int | None, low: int, high: int) -> list[tuple[int, int]]:
    """The rest of what the row sees, each part within one block."""
    first = span.first_visible(window)
    if low > high:  # all within one block
        return [(first, span.end)]
    return [(first, low), (high, span.end)]


def _joined(
    runs: Sequence[tuple[int, int, int]], nobody: int
) -> Iterator[tuple[int, int, NDArray[np.int64]]]:
    """Join sorted runs (first block, count, row) that lie close together into one: (first block,
    count, row of each block), where blocks between runs belong to ``nobody``."""
    parts: list[NDArray[np.int64]] = []
    start = end = 0
    for first, count, row in runs:
        near = parts and 0 <= first - end <= _MOST_GAP and count <= _ALONE
        if parts and not (near and end - start <= 64 * _ALONE):
            yield start, end - start, np.concatenate(parts)
            parts = []
        if parts:
            parts.append(np.full(first - end, nobody))
        else:
            start = first
        parts.append(np.full(count, row))
        end = first + count
        if count > _ALONE:
            yield start, end - start, np.concatenate(parts)
            parts = []
    if parts:
        yield start, end - start, np.concatenate(parts)


def _edge_slots(
    edges: Sequence[tuple[int, int, int]], tables: Sequence[BlockTable], block_tokens: int
) -> tuple[Tensor, Tensor]:
    """The slots of each edge, padded with its first, [E * block_tokens], and which are padding,
    [E, block_tokens, 1]."""
    slots = np.empty((len(edges), block_tokens), dtype=np.int64)
    counts = np.empty((len(edges), 1), dtype=np.int64)
    for i, (row, first, end) in enumerate(edges):
        slot = tables[row].slot(first)
        slots[i] = slot
        slots[i, : end - first] += np.arange(end - first)
        counts[i] = end - first
    hidden = np.arange(block_tokens)[None] >= counts
    return torch.from_numpy(slots.reshape(-1)), torch.from_numpy(hidden)[:, :, None]
