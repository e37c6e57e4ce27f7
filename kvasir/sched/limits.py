"""The limits within which the scheduler works. Frozen; derived once from the config."""

from __future__ import annotations

from dataclasses import dataclass

from kvasir.core.config import Config


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on what runs and waits, and the time that one step may take."""

    window: int  # tokens of prompt and answer together
    max_running: int = 64  # sequences
    max_waiting: int = 256  # requests
    max_waiting_tokens: int = 4_000_000
    step_budget_s: float = 0.1
    reading_share: float = 0.25  # of a step that is kept for reading, however many answers run
    lone_stretch: float = 2.5  # budgets that a step may take while one prompt is all there is
    answer_room_tokens: int = 256  # reserved ahead, where free, so that an answer lies in one run

    @classmethod
    def of(cls, config: Config, window: int) -> Limits:
        """The limits that ``config`` asks for with a model of that ``window``."""
        return cls(
            window=window,
            max_running=config.max_running,
            max_waiting=config.max_waiting,
            max_waiting_tokens=config.max_waiting_tokens,
            step_budget_s=config.step_budget_ms / 1000,
        )
