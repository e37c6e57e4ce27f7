"""The runner that computes: plans in, tokens and scores out, by a model over the device pool.

Invariant: running a plan twice has the effect of running it once. Everything a plan says is
absolute (whole block tables at a join, counts to keep, positions), so a repetition overwrites what
the first attempt left. The host's work grows with sequences and new tokens, not with context.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from kvasir.core.events import TokenScore
from kvasir.core.plans import (
    Audit,
    Fault,
    Join,
    PromptScores,
    Run,
    Sampled,
    StepPlan,
    StepResult,
    Work,
)
from kvasir.core.ports import Interrupted, never
from kvasir.core.requests import Sampling
from kvasir.engine.sampler import Past, Row, sample, score
from kvasir.kernels.memory import keep_freed_memory
from kvasir.kernels.paging import BlockTable, Span
from kvasir.model.forward import AfterLayer, Computed, Forward
from kvasir.tiers.device import DevicePool

log = logging.getLogger(__name__)

# Of a plane's root mean square, by which a block may differ that torch computed in other chunks:
# sums are then taken in another order, and bfloat16 keeps 8 bits (docs/measurements has figures).
AUDIT_BOUND = 0.05
_SCORE_BYTES = 64 * 2**20  # of float32 logits at a time while a prompt is scored


class _GivenUp(Exception):
    """The step is not worth keeping somebody waiting."""


class _Broken(Exception):
    """One sequence's work cannot be done; the message is for its owner."""


@dataclass(slots=True)
class _Known:
    """What is remembered of a sequence between steps."""

    choice: int
    sampling: Sampling
    n_prompt: int
    table: BlockTable
    past: Past | None
    # Hidden states of the last rows of the two latest scored works, by position: the row before a
    # chunk gives the score of its first token, also when the latest work is run again.
    seams: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Share:
    """One sequence's rows in this step."""

    work: Work
    known: _Known
    span: Span

    @property
    def last_row(self) -> int:
        return self.span.row + self.span.n - 1


class TorchRunner:
    """Implements ``core.ports.Runner`` with a ``Forward``. Used by one thread only."""

    def __init__(
        self,
        forward: Forward,
        pool: DevicePool,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """``clock`` gives seconds. On a CPU the process is told to keep freed memory for the next
        step (``kernels.memory``)."""
        if pool.device.type == "cpu":
            keep_freed_memory()
        self._forward = forward
        self._pool = pool
        self._clock = clock
        self._known: dict[int, _Known] = {}
        vocab_bytes = 4 * forward.spec.vocab_size
        self._score_rows = max(1, _SCORE_BYTES // vocab_bytes)

    def run(self, plan: StepPlan, interrupted: Interrupted = never) -> StepResult:
        """Carry out ``plan``: leaves, joins, copies, then all works in one pass of the decoder,
        which may be given up between two layers."""
        began_s = self._clock()
        faults: list[Fault] = []
        for seq in plan.leaves:
            self._known.pop(seq, None)
        for join in plan.joins:
            try:
                self._known[join.seq] = self._meet(join)
            except _Broken as error:
                faults.append(Fault(join.seq, str(error)))
        for copy in plan.copies:
            self._pool.copy(copy.source, copy.target, copy.n_tokens)
        shares, tokens = self._arrange(plan.works, faults)
        sampled: list[Sampled] = []
        scores: list[PromptScores] = []
        if shares:
            with torch.inference_mode():
                watch = self._watch(plan, interrupted, began_s)
                try:
                    computed = self._compute(shares, tokens, watch)
                except _GivenUp:
                    spent_s = self._clock() - began_s
                    return StepResult(elapsed_s=spent_s, faults=tuple(faults), given_up=True)
                scores = self._score(shares, computed.hidden, faults)
                sampled = self._sample(shares, computed.logits, faults)
        self._settle()
        broken = {fault.seq for fault in faults}
        return StepResult(
            elapsed_s=self._clock() - began_s,
            sampled=tuple(s for s in sampled if s.seq not in broken),
            prompt_scores=tuple(s for s in scores if s.seq not in broken),
            faults=tuple(faults),
        )

    def audit(self, audit: Audit) -> bool:
        """Compute a block again, and compare its planes with what it holds."""
        tokens = torch.tensor(audit.tokens, dtype=torch.int64, device=self._pool.device)
        table = BlockTable(self._pool.geometry.block_tokens, self._pool.device)
        table.append(self._checked((*audit.before, Run(audit.scratch, 1))))
        span = Span(0, len(audit.tokens), audit.start, table)
        with torch.inference_mode():
            self._forward.compute(tokens, [span], self._pool)
            found = self._pool.difference(audit.block, audit.scratch, len(audit.tokens))
        log.info("a restored block differs by %.2g from what computing gives", found)
        return found <= (0.0 if self._forward.exact else AUDIT_BOUND)

    def rest(self) -> bool:
        """Have memory ready for the next prompt."""
        return self._pool.make_ready()

    # inside: what is remembered ------------------------------------------------------------------

    def _meet(self, join: Join) -> _Known:
        table = BlockTable(self._pool.geometry.block_tokens, self._pool.device)
        table.append(self._checked(join.blocks))
        past = None
        if join.sampling.penalised:
            past = Past(
                join.history, join.n_prompt, self._forward.spec.vocab_size, self._pool.device
            )
        return _Known(join.choice, join.sampling, join.n_prompt, table, past)

    def _checked(self, runs: Sequence[Run]) -> Iterator[tuple[int, int]]:
        """``runs`` as pairs; a block outside of the pool would be another's memory."""
        n_blocks = self._pool.geometry.n_blocks
        for run in runs:
            if run.first < 0 or run.count < 0 or run.first + run.count > n_blocks:
                raise _Broken(f"blocks {run.first}+{run.count} are outside of the pool")
            self._pool.expect(run.first + run.count)
            yield run.first, run.count

    # inside: a step ------------------------------------------------------------------------------

    def _arrange(self, works: Sequence[Work], faults: list[Fault]) -> tuple[list[_Share], Tensor]:
        """Give each work its rows; those that cannot be done become faults."""
        shares: list[_Share] = []
        tokens: list[np.ndarray[tuple[int], np.dtype[np.int64]]] = []
        broken = {fault.seq for fault in faults}
        row = 0
        for work in works:
            if work.seq in broken:
                continue
            try:
                ids = self._admit(work)
            except (_Broken, ValueError) as error:
                faults.append(Fault(work.seq, str(error)))
                continue
            known = self._known[work.seq]
            shares.append(_Share(work, known, Span(row, len(ids), work.start, known.table)))
            tokens.append(ids)
            row += len(ids)
        flat = np.concatenate(tokens) if tokens else np.empty(0, dtype=np.int64)
        return shares, torch.from_numpy(flat).to(self._pool.device)

    def _admit(self, work: Work) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Bring the sequence's table and past up to ``work``; its token ids [n]."""
        known = self._known.get(work.seq)
        if known is None:
            raise _Broken("the sequence was never joined")
        ids = np.asarray(work.tokens, dtype=np.int64)
        if not len(ids):
            raise _Broken("the work holds no tokens")
        if int(ids.min()) < 0 or int(ids.max()) >= self._forward.spec.vocab_size:
            raise _Broken(
                f"a token id is outside of the vocabulary of {self._forward.spec.vocab_size}"
            )
        known.table.cut(work.keep_blocks)
        known.table.append(self._checked(work.new_blocks))
        end = work.start + len(ids)
        if work.start < 0 or end > known.table.capacity_tokens:
            raise _Broken(
                f"positions {work.start} to {end} do not lie in a table of "
                f"{known.table.capacity_tokens} tokens"
            )
        if known.past is not None:
            known.past.extend(work.start, work.tokens)
        return ids

    def _watch(
        self, plan: StepPlan, interrupted: Interrupted, began_s: float
    ) -> Callable[[int], None] | None:
        """What to do after each layer: give up where somebody waits and the layers left, which take
        as long as those done, would outlast the plan's patience."""
        if plan.patience_s == math.inf:
            return None
        n_layers = self._forward.spec.n_layers

        def watch(done: int) -> None:
            if interrupted():
                self._settle()
                left_s = (self._clock() - began_s) / done * (n_layers - done)
                if left_s > plan.patience_s:
                    raise _GivenUp

        return watch

    def _settle(self) -> None:
        """Wait for the device, or times would be those of queueing."""
        if self._pool.device.type == "cuda":
            torch.cuda.synchronize(self._pool.device)

    def _compute(
        self, shares: Sequence[_Share], tokens: Tensor, after_layer: AfterLayer | None
    ) -> Computed:
        """The step's rows; logits are those of the works that ask for a token, in their order."""
        spans = [share.span for share in shares]
        asked = [share.last_row for share in shares if share.work.sample]
        return self._forward.compute(tokens, spans, self._pool, asked, after_layer)

    def _sample(
        self, shares: Sequence[_Share], logits: Tensor, faults: list[Fault]
    ) -> list[Sampled]:
        """``logits`` [R, V] are those of the works that ask for a token."""
        asking = [share for share in shares if share.work.sample]
        if not asking:
            return []
        finite = finite_rows(logits)
        faults += [
            Fault(share.work.seq, "the model's output is not finite after these tokens")
            for share, good in zip(asking, finite, strict=True)
            if not good
        ]
        if not all(finite):
            logits = logits[torch.tensor(finite, device=logits.device)]
            asking = [share for share, good in zip(asking, finite, strict=True) if good]
        rows = [
            Row(
                seq=share.work.seq,
                choice=share.known.choice,
                position=share.span.end,
                sampling=share.known.sampling,
                past=share.known.past,
            )
            for share in asking
        ]
        return sample(logits, rows) if rows else []

    # inside: prompt scores -----------------------------------------------------------------------

    def _score(
        self, shares: Sequence[_Share], hidden: Tensor, faults: list[Fault]
    ) -> list[PromptScores]:
        results = []
        for share in shares:
            if share.work.score is None:
                continue
            try:
                results.append(self._score_one(share, hidden, share.work.score))
            except _Broken as error:
                faults.append(Fault(share.work.seq, str(error)))
        return results

    def _score_one(self, share: _Share, hidden: Tensor, n_top: int) -> PromptScores:
        """The scores of one work's prompt tokens. A token's score comes from the row before it, so
        the first one's from the last row of the work before."""
        span, seams = share.span, share.known.seams
        rows = hidden[span.row : span.row + span.n]
        n_scored = max(0, min(span.n, share.known.n_prompt - span.start))
        seam = seams.get(span.start - 1)
        if span.start > 0 and seam is None:
            raise _Broken("prompt scores need the whole prompt computed; a part of it was reused")
        share.known.seams = {span.end - 1: rows[-1].clone()}
        if seam is not None:
            share.known.seams[span.start - 1] = seam
        before = rows[: n_scored - 1] if n_scored else rows[:0]
        if seam is not None and n_scored:
            before = torch.cat([seam[None], before])
        targets = list(share.work.tokens)[n_scored - len(before) : n_scored]
        found: list[TokenScore] = []
        for low in range(0, len(before), self._score_rows):
            logits = self._forward.logits(before[low : low + self._score_rows])
            if not all(finite_rows(logits)):
                raise _Broken("the model's output is not finite within the prompt")
            found += score(logits, targets[low : low + self._score_rows], n_top)
        return PromptScores(share.work.seq, max(span.start, 1), tuple(found))


def finite_rows(logits: Tensor) -> list[bool]:
    """Which rows of ``logits`` [R, V] hold finite numbers only. One sum tells for almost all."""
    finite: list[bool] = torch.isfinite(logits.sum(1)).tolist()
    return [good or bool(torch.isfinite(logits[i]).all()) for i, good in enumerate(finite)]
