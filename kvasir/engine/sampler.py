"""Choosing the next token of each row of a step, and scoring tokens that are given.

Invariant: a row's token depends on its logits, its sampling and its own past alone. Rows that are
greedy without extras cost one argmax for all of them together. Log-probabilities are those of the
model itself: the log-softmax of its logits before penalties, bias, temperature and filters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvasir.core.events import TokenScore
from kvasir.core.plans import Sampled
from kvasir.core.requests import Sampling
from kvasir.kernels import sampling as arithmetic


class Past:
    """How often each token stands in a penalised sequence so far; rolls back when a step is run
    again. Updating costs what is new, whatever came before."""

    __slots__ = ("_answered", "_device", "_n_prompt", "_seen", "_tokens")

    def __init__(
        self, history: Sequence[int], n_prompt: int, vocab_size: int, device: torch.device
    ) -> None:
        self._device = device
        self._n_prompt = n_prompt
        self._tokens: list[int] = []
        self._seen = torch.zeros(vocab_size, device=device)  # [V] counts in prompt and answer
        self._answered = torch.zeros(vocab_size, device=device)  # [V] counts in the answer
        self.extend(0, history)

    def extend(self, start: int, tokens: Sequence[int]) -> None:
        """Let ``tokens`` stand at positions ``start`` onwards, and nothing behind them.

        Raises ``ValueError`` where that would leave a gap.
        """
        if start > len(self._tokens):
            raise ValueError(f"the tokens from {len(self._tokens)} to {start} are not known")
        self._count(start, self._tokens[start:], -1.0)
        del self._tokens[start:]
        self._tokens.extend(tokens)
        self._count(start, tokens, 1.0)

    def _count(self, start: int, tokens: Sequence[int], step: float) -> None:
        if not tokens:
            return
        ids = torch.tensor(tokens, device=self._device)
        one = torch.tensor(step, device=self._device)
        self._seen.index_put_((ids,), one, accumulate=True)
        answer = ids[max(0, self._n_prompt - start) :]
        if len(answer):
            self._answered.index_put_((answer,), one, accumulate=True)

    def penalise_(self, logits: Tensor, sampling: Sampling) -> None:
        """Apply ``sampling``'s penalties to ``logits`` [V] in place."""
        arithmetic.penalise_(
            logits,
            self._seen,
            self._answered,
            repetition=sampling.repetition_penalty,
            presence=sampling.presence_penalty,
            frequency=sampling.frequency_penalty,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of logits that asks for a token to stand at ``position``."""

    seq: int
    choice: int
    position: int
    sampling: Sampling
    past: Past | None = None

    @property
    def plain(self) -> bool:
        """Whether the likeliest token is the answer and nothing else is asked."""
        sampling = self.sampling
        return (
            sampling.temperature <= 0.0
            and not sampling.penalised
            and not sampling.logit_bias
            and sampling.top_logprobs is None
        )


def sample(logits: Tensor, rows: Sequence[Row]) -> list[Sampled]:
    """Choose a token for each of ``rows`` from ``logits`` [R, V] float32, all finite."""
    if all(row.plain for row in rows):
        chosen = logits.argmax(1).tolist()
    else:
        # argmax costs less than to pick the rows that need no more than it
        chosen = logits.argmax(1).tolist()
        for i, row in enumerate(rows):
            if not row.plain:
                chosen[i] = _choose(logits[i], row, chosen[i])
    sampled = [
        Sampled(row.seq, TokenScore(token, 0.0)) for row, token in zip(rows, chosen, strict=True)
    ]
    asked = [i for i, row in enumerate(rows) if row.sampling.top_logprobs is not None]
    if asked:
        most = max(rows[i].sampling.top_logprobs or 0 for i in asked)
        scores = score(logits[asked], [chosen[i] for i in asked], most)
        for i, found in zip(asked, scores, strict=True):
            wanted = found.top[: rows[i].sampling.top_logprobs or 0]
            sampled[i] = Sampled(
                rows[i].seq, TokenScore(found.token, found.logprob, wanted), scored=True
            )
    return sampled


def _choose(logits: Tensor, row: Row, likeliest: int) -> int:
    """The token for one row; ``likeliest`` is the argmax of its untouched ``logits`` [V]."""
    sampling = row.sampling
    if row.past is not None or sampling.logit_bias:
        logits = logits.clone()
        if row.past is not None:
            row.past.penalise_(logits, sampling)
        arithmetic.bias_(logits, sampling.logit_bias)
        likeliest = int(logits.argmax())
    if sampling.temperature <= 0.0 or not bool(torch.isfinite(logits[likeliest])):
        return likeliest  # a bias of ±inf leaves nothing to draw from
    return arithmetic.choose(
        logits,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        u=arithmetic.uniform(sampling.seed, row.choice, row.position),
    )


def score(logits: Tensor, tokens: Sequence[int], n_top: int) -> list[TokenScore]:
    """The log-probability of ``tokens`` [R] under ``logits`` [R, V], with those of the ``n_top``
    likeliest."""
    if not tokens:
        return []
    total = logits.logsumexp(1, keepdim=True)  # [R, 1]
    ids = torch.tensor(tokens, device=logits.device)[:, None]
    own = (logits.gather(1, ids) - total)[:, 0].tolist()
    top_ids, top_values = arithmetic.likeliest(logits, n_top)
    top_logprobs = top_values - total.cpu().numpy()
    return [
        TokenScore(
            token, logprob, tuple(zip(some_ids.tolist(), some_logprobs.tolist(), strict=True))
        )
        for token, logprob, some_ids, some_logprobs in zip(
            tokens, own, top_ids, top_logprobs, strict=True
        )
    ]
