"""The limits within which the scheduler works. Frozen; derived once from the config."""

from __future__ import annotations

from dataclasses import dataclass

from kvasir.core.config import Config

MAX_STEP_TOKENS = 4096  # read in one step; the memory that a step takes is reckoned with it
_PATIENCE, _LONG_STRETCH = 2.0, 20.0  # step budgets
_LAYER_BUDGETS = 0.7  # that one layer of a long step may take


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on what runs and waits, and the time that one step may take."""

    window: int  # tokens of prompt and answer together
    max_running: int = 64  # sequences
    max_waiting: int = 256  # requests
    max_waiting_tokens: int = 4_000_000
    step_budget_s: float = 0.1
    reading_share: float = 0.25  # of a step that is kept for reading, however many answers run
    patience: float = _PATIENCE  # budgets that a newcomer may wait for the end of a step
    long_stretch: float = _LONG_STRETCH  # budgets that a step may take while no answer is running
    max_step_tokens: int = MAX_STEP_TOKENS
    answer_room_tokens: int = 256  # reserved ahead, where free, so that an answer lies in one run

    @classmethod
    def of(cls, config: Config, window: int, n_layers: int) -> Limits:
        """The limits that ``config`` asks for with a model of that ``window`` and depth. A step can
        be given up between two layers, so few layers allow shorter ones only."""
        return cls(
            window=window,
            max_running=config.max_running,
            max_waiting=config.max_waiting,
            max_waiting_tokens=config.max_waiting_tokens,
            step_budget_s=config.step_budget_ms / 1000,
            long_stretch=max(_PATIENCE, min(_LONG_STRETCH, _LAYER_BUDGETS * n_layers)),
        )
