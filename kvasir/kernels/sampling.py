"""The arithmetic of choosing a token: penalties, filters, the draw, log-probabilities.

Invariant: what comes of a row depends on that row alone, never on the rows beside it. Random
numbers are a function of (seed, choice, position), so the same seed gives the same token whatever
else is in the batch. Ties go to the lowest token id.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_CANDIDATES = 256  # sorted at first; a flatter distribution sorts the whole vocabulary
_WORD = 2**64

Ids = NDArray[np.int64]


def uniform(seed: int, choice: int, position: int) -> float:
    """A number in [0, 1) that is a function of its arguments: the first of Philox-4x64-10
    (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) keyed by (``seed``,
    ``choice``) at counter ``position``."""
    key = np.array([seed % _WORD, choice % _WORD], dtype=np.uint64)
    raw = np.random.Philox(key=key, counter=[position, 0, 0, 0]).random_raw()
    return (int(raw) >> 11) * 2.0**-53


def penalise_(
    logits: Tensor,
    seen: Tensor,
    answered: Tensor,
    *,
    repetition: float,
    presence: float,
    frequency: float,
) -> None:
    """Apply penalties to ``logits`` [V] in place. ``seen`` [V] counts each token in prompt and
    answer, ``answered`` [V] in the answer alone.

    Repetition (CTRL, arXiv:1909.05858) divides positive logits and multiplies negative ones;
    presence and frequency are subtracted as the OpenAI interface defines them.
    """
    if repetition != 1.0:
        scaled = torch.where(logits > 0, logits / repetition, logits * repetition)
        torch.where(seen > 0, scaled, logits, out=logits)
    if presence != 0.0:
        logits -= presence * (answered > 0)
    if frequency != 0.0:
        logits -= frequency * answered


def bias_(logits: Tensor, bias: Mapping[int, float]) -> None:
    """Add ``bias`` (token id -> addend) to ``logits`` [V] in place; ids out of range are ignored
    (the service refuses them before)."""
    known = {token: value for token, value in bias.items() if 0 <= token < len(logits)}
    if known:
        ids = torch.tensor(list(known), device=logits.device)
        logits[ids] += torch.tensor(list(known.values()), device=logits.device, dtype=logits.dtype)


def choose(
    logits: Tensor, *, temperature: float, top_k: int, top_p: float, min_p: float, u: float
) -> int:
    """The token that the number ``u`` in [0, 1) picks from ``logits`` [V].

    Temperature first; then min-p (arXiv:2407.01082: relative to the likeliest token), top-k and
    top-p (nucleus, arXiv:1904.09751), the last on what the others leave. The draw inverts the
    cumulative distribution in order of token ids. At least the likeliest token always stays.
    """
    if temperature <= 0.0 or top_k == 1:
        return int(logits.argmax())
    filtered = top_k > 0 or top_p < 1.0 or min_p > 0.0
    if not filtered:
        return _draw(_weights(logits, temperature).cpu().numpy(), None, u)
    for n_candidates in (max(_CANDIDATES, top_k), len(logits)):
        ids, values, rest = _likeliest(logits, n_candidates, temperature)
        kept = _kept(values, rest, top_k=top_k, top_p=top_p, min_p=min_p)
        if kept is not None:
            break
    ids = ids[:kept]
    order = np.argsort(ids)
    return _draw(values[:kept][order], ids[order], u)


def _weights(logits: Tensor, temperature: float) -> Tensor:
    """Unnormalised probabilities [V] float64, 1 for the likeliest."""
    return (logits - logits.max()).double().div_(temperature).exp_()


def _likeliest(
    logits: Tensor, n: int, temperature: float
) -> tuple[Ids, NDArray[np.float64], float]:
    """The ``n`` or, with ties, more likeliest ids in falling order (ties by id), their
    unnormalised probabilities, and the sum of all others'."""
    n = min(n, len(logits))
    least = logits.topk(n).values[-1]
    found = (logits >= least).nonzero()[:, 0]
    wide = _weights(logits, temperature)
    values = wide[found].cpu().numpy()
    ids = found.cpu().numpy()
    order = np.argsort(-logits[found].double().cpu().numpy(), kind="stable")
    rest = 0.0 if len(ids) == len(logits) else float(wide.sum() - wide[found].sum())
    return ids[order], values[order], rest


def _kept(
    values: NDArray[np.float64], rest: float, *, top_k: int, top_p: float, min_p: float
) -> int | None:
    """How many of the sorted ``values`` the filters keep; None where that cannot be told without
    those that make up ``rest``."""
    n = len(values)
    complete = rest <= 0.0
    if min_p > 0.0:
        passing = int((values >= min_p * values[0]).sum())
        complete = complete or passing < n
        n = passing
    if 0 < top_k <= n:
        n, complete = top_k, True
    n = max(1, n)
    if top_p < 1.0:
        cumulative = np.cumsum(values[:n])
        total = cumulative[-1] if complete else cumulative[-1] + rest
        if min_p > 0.0 and not complete:
            return None  # the total depends on how much of the rest would pass
        enough = int(np.searchsorted(cumulative, top_p * total)) + 1
        if enough > n:
            return n if complete else None
        return enough
    return n if complete else None


def _draw(weights: NDArray[np.float64], ids: Ids | None, u: float) -> int:
    """Invert the cumulative sum of ``weights``; ``ids`` are their tokens, None for 0, 1, 2, …"""
    cumulative = np.cumsum(weights)
    at = int(np.searchsorted(cumulative, u * cumulative[-1], side="right"))
    at = min(at, len(weights) - 1)
    while weights[at] == 0.0 and at > 0:  # rounding may land behind the last that can be drawn
        at -= 1
    return at if ids is None else int(ids[at])


def likeliest(logits: Tensor, n: int) -> tuple[Ids, NDArray[np.float32]]:
    """The ids of the ``n`` largest of each row of ``logits`` [R, V], largest first and ties by id,
    and their values: [R, n] each."""
    n = min(n, logits.shape[1])
    if n == 0:
        empty = np.empty((len(logits), 0))
        return empty.astype(np.int64), empty.astype(np.float32)
    if n == 1:
        ids = logits.argmax(1, keepdim=True)
        return ids.cpu().numpy(), logits.gather(1, ids).cpu().numpy()
    top = logits.topk(n, 1)
    values, ids_found = top.values.cpu().numpy(), top.indices.cpu().numpy()
    order = np.lexsort((ids_found, -values), axis=1)
    values = np.take_along_axis(values, order, 1)
    ids_found = np.take_along_axis(ids_found, order, 1)
    # topk may leave out a lower id that ties with the least one it returns
    tied = ((logits >= top.values[:, -1:]).sum(1) > n).nonzero()[:, 0].tolist()
    for row in tied:
        found = (logits[row] >= top.values[row, -1]).nonzero()[:, 0]
        candidates = logits[row, found].cpu().numpy()
        best = np.argsort(-candidates, kind="stable")[:n]
        ids_found[row] = found.cpu().numpy()[best]
        values[row] = candidates[best]
    return ids_found, values
