"""Fair shares of a step among the sequences that are behind by more than one token.

Start-time fair queueing over predicted seconds: the sequence that has been served least goes first,
a newcomer starts level with the least served, and every share is at least a quantum, so that a
short prompt is read at once and long ones do not crumble into tiny chunks. Over time each of N
sequences receives 1/N of the machine.

Source: P. Goyal, H. Vin, H. Cheng, "Start-time Fair Queueing", SIGCOMM 1996.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kvasir.core.costs import StepCosts
from kvasir.sched.sequence import Sequence

QUANTUM_TOKENS = 128  # the smallest chunk worth a visit, except for the end of a prompt
_STRETCH = 1.2  # a chunk may grow by this much where that saves a whole further step


@dataclass(frozen=True, slots=True)
class Share:
    """``n_tokens`` of ``sequence`` in this step."""

    sequence: Sequence
    n_tokens: int


def level(newcomer: Sequence, others: Iterable[Sequence]) -> None:
    """Let ``newcomer`` start level with the least served of ``others``."""
    least = min((s.served_s for s in others), default=None)
    if least is not None:
        newcomer.served_s = max(newcomer.served_s, least)


def first_through_s(sequences: list[Sequence], costs: StepCosts) -> float:
    """Predicted seconds until the first of ``sequences`` has been read, if ``divide`` shares the
    time among them."""
    shortest_s = min((costs.prefill_s(s.reach, s.computed) for s in sequences), default=0.0)
    return shortest_s * len(sequences)


def divide(
    budget_s: float, sequences: list[Sequence], costs: StepCosts, most_tokens: int
) -> list[Share]:
    """Who reads how many tokens within ``budget_s``, ``most_tokens`` in all; somebody always reads
    something.

    What a sequence does not need of its share flows to those behind it in the order.
    """
    order = sorted(sequences, key=lambda s: (s.served_s, s.arrived_s, s.id))
    shares: list[Share] = []
    left_s = budget_s
    for position, sequence in enumerate(order):
        slice_s = left_s / (len(order) - position)
        fair_tokens = max(QUANTUM_TOKENS, most_tokens // (len(order) - position))
        n_tokens = min(_chunk(sequence, slice_s, left_s, costs), fair_tokens, most_tokens)
        cost_s = costs.prefill_s(n_tokens, sequence.computed)
        if shares and cost_s > left_s * _STRETCH:
            break
        shares.append(Share(sequence, n_tokens))
        left_s -= cost_s
        most_tokens -= n_tokens
        if left_s <= 0 or most_tokens <= 0:
            break
    return shares


def _chunk(sequence: Sequence, slice_s: float, left_s: float, costs: StepCosts) -> int:
    """Tokens for a slice of ``slice_s``, no less than a quantum where ``left_s`` allows one."""
    quantum = min(QUANTUM_TOKENS, costs.prefill_tokens(left_s, sequence.computed))
    n_tokens = max(1, quantum, costs.prefill_tokens(slice_s, sequence.computed))
    if sequence.reach <= n_tokens * _STRETCH:
        return sequence.reach
    return n_tokens
