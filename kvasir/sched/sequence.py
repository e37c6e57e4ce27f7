"""The scheduler's record of one choice of one request. Mutable; only the scheduler touches it."""

from __future__ import annotations

from collections import Counter

from kvasir.core.events import Miss, Usage
from kvasir.core.requests import Request
from kvasir.core.tiers import Tier
from kvasir.kv.keys import KeyChain
from kvasir.kv.lease import Lease
from kvasir.kv.restore import Restore


class Sequence:
    """Token ids, how many of them have KV, and the lease that holds it.

    ``behind`` is all that planning needs: 1 while an answer is generated, more while a prompt is
    read, whatever the reason (new, preempted, extended).
    """

    __slots__ = (
        "admitted_s",
        "arrived_s",
        "bypassed",
        "chain",
        "choice",
        "computed",
        "differs_at",
        "first_token_s",
        "id",
        "joined",
        "kept_token",
        "keys",
        "lease",
        "matched_blocks",
        "miss",
        "preemptions",
        "request",
        "restore",
        "restore_refused",
        "reused",
        "reused_by_tier",
        "scored_to",
        "served_s",
        "tokens",
    )

    def __init__(
        self, seq_id: int, request: Request, choice: int, chain: KeyChain, keys: list[bytes]
    ) -> None:
        self.id = seq_id
        self.request = request
        self.choice = choice
        self.tokens: list[int] = list(request.tokens)
        self.computed = 0
        self.lease: Lease | None = None
        self.chain = chain
        self.keys = keys  # of the full blocks of ``tokens``, known so far
        self.joined = False  # whether the runner knows this sequence
        self.matched_blocks = 0  # what the last look into the cache found, while waiting
        self.bypassed = 0  # how often a later arrival was admitted first
        self.reused = -1  # prompt tokens found at first admission; -1 before it
        self.reused_by_tier: Counter[Tier] = Counter()  # the same tokens by where they were
        self.restore: Restore | None = None  # brings back what is stored of ``tokens``
        # (blocks that could be had, blocks matched) when a restore could not be begun
        self.restore_refused = (-1, -1)
        self.differs_at = -1  # the first prompt token that was neither found nor on its way
        self.miss: Miss | None = None
        self.kept_token: int | None = None  # of the closest text, where this one differs
        self.scored_to = 0  # prompt positions whose scores have been reported end here
        self.served_s = 0.0  # virtual service time: what fair shares compare
        self.preemptions = 0
        self.arrived_s = 0.0
        self.admitted_s = 0.0
        self.first_token_s = 0.0

    @property
    def n_prompt(self) -> int:
        return len(self.request.tokens)

    @property
    def scored(self) -> bool:
        """Whether this choice reports the prompt's log-probabilities; the first one does."""
        return self.request.prompt_logprobs is not None and self.choice == 0

    @property
    def behind(self) -> int:
        """Tokens whose KV is still to be computed."""
        return len(self.tokens) - self.computed

    @property
    def reach(self) -> int:
        """Of those, how many can be computed now: what is behind them may be on its way."""
        restore = self.lease.restore if self.lease is not None else None
        if restore is None or restore.done:
            return self.behind
        return max(0, min(self.behind, restore.front - self.computed))

    @property
    def generated(self) -> int:
        """Tokens generated so far."""
        return len(self.tokens) - self.n_prompt

    @property
    def decoding(self) -> bool:
        """Whether all that is missing is the token generated last."""
        return self.behind == 1 and self.generated > 0

    def usage(self, now_s: float, completion_tokens: int) -> Usage:
        """What this choice has cost up to now."""
        admitted = self.admitted_s or now_s
        first = self.first_token_s or now_s
        found = 0 <= self.differs_at < self.n_prompt - 1 and self.miss is not Miss.PROMPT_LOGPROBS
        return Usage(
            prompt_tokens=self.n_prompt,
            reused_tokens=max(0, self.reused),
            reused_by_tier=dict(self.reused_by_tier),
            completion_tokens=completion_tokens,
            miss=self.miss,
            differs_at=self.differs_at if found else None,
            kept_token=self.kept_token if found else None,
            queued_s=admitted - self.arrived_s,
            read_s=first - admitted,
            generate_s=now_s - first,
            preemptions=self.preemptions,
        )
