"""Which kernel attends, and why: every kernel says what speaks against it, and the first in order
of speed that nothing speaks against is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from kvasir.attention.batch import Planner
from kvasir.core.errors import ConfigError
from kvasir.kernels import reference, torch_cpu, torch_sdpa


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What a kernel needs to know to say whether it can attend here."""

    device: torch.device
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Backend:
    """A kernel as it is chosen by name."""

    name: str
    summary: str
    against: Callable[[Situation], list[str]]  # reasons why it cannot attend here
    plan: Planner


@dataclass(frozen=True, slots=True)
class Choice:
    """The kernel that attends, and a line for each kernel: taken, not needed, or refused why."""

    backend: Backend
    reasons: tuple[str, ...]


BACKENDS = (
    Backend(
        "torch-cpu",
        "reads runs of blocks in place: oneDNN products for single tokens, flash for chunks",
        lambda s: torch_cpu.against(s.device, s.dtype),
        torch_cpu.plan,
    ),
    Backend(
        "torch-sdpa",
        "scaled_dot_product_attention on any device",
        lambda _: [],
        torch_sdpa.plan,
    ),
    Backend("reference", "float64, for comparison only", lambda _: [], reference.plan),
)


def choose(situation: Situation, wish: str = "auto") -> Choice:
    """The kernel named ``wish``, or the fastest that can attend here.

    Raises ``ConfigError`` for an unknown name, or where something speaks against the named kernel.
    """
    names = [backend.name for backend in BACKENDS]
    if wish not in ("auto", *names):
        raise ConfigError(
            f"setting 'attention' is {wish!r}; choose one of auto, {', '.join(names)}"
        )
    taken: Backend | None = None
    reasons = []
    for backend in BACKENDS:
        against = backend.against(situation)
        if wish == backend.name and against:
            raise ConfigError(
                f"attention {wish!r} cannot be used here: {'; '.join(against)}; set it to auto"
            )
        if against:
            reasons.append(f"{backend.name}: no, {'; '.join(against)}")
        elif taken is None and wish in ("auto", backend.name):
            taken = backend
            reasons.append(f"{backend.name}: taken, {backend.summary}")
        else:
            why = "another was asked for" if taken is None or wish != "auto" else "slower"
            reasons.append(f"{backend.name}: can, but {why}")
    if taken is None:  # the reference kernel refuses nothing
        raise ConfigError("no attention kernel can be used here")
    return Choice(taken, tuple(reasons))
