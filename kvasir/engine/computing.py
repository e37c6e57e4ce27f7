"""What computes a model: native kernels of one instruction set, or plain torch; and why.

Invariant: where native kernels cannot serve, torch does, and the reason is among those that
`kvasir doctor` shows; only a wish that cannot be met is an error.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kvasir.core.config import Config
from kvasir.core.errors import ConfigError
from kvasir.kernels.native import library
from kvasir.kernels.native.library import Isa
from kvasir.model.dtype import DtypeChoice, pick_dtype
from kvasir.model.native_forward import against as against_spec
from kvasir.model.spec import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Computing:
    """What was chosen; ``isa`` is None where torch computes."""

    isa: Isa | None
    dtype: DtypeChoice
    weights: str  # "bf16", "int8", "int4" of native kernels; "" where torch's dtype says it
    kv_dtype: str  # that of the pool: the dtype's name or "int8"
    reasons: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of the kernels."""
        return f"native, {self.isa.name}" if self.isa is not None else "torch"

    @property
    def numerics(self) -> tuple[str, str]:
        """Dtype and attention as ``model.fingerprint.numerics_id`` wants them: another instruction
        set rounds otherwise."""
        if self.isa is None:
            return self.dtype.name, "exact"
        return f"{self.dtype.name}/{self.weights}", f"exact/{self.isa.name}"


def choose(config: Config, spec: ModelSpec, device: torch.device) -> Computing:
    """What computes ``spec`` on ``device`` under ``config``. Raises ``ConfigError`` where a named
    instruction set, or a format that only native kernels have, cannot be had."""
    against = _against_native(config, spec, device)
    isa: Isa | None = None
    if not against:
        isa = library.best() if config.kernels == "auto" else library.named(config.kernels)
        if isa is None:
            against = ["native: no, this CPU has none of their instruction sets"]
    reasons = [*against, *(_line(each, isa, config.kernels) for each in library.isas())]
    if isa is None:
        _refuse_wishes(config, against)
        dtype = pick_dtype(device, config.dtype)
        return Computing(
            isa=None, dtype=dtype, weights="", kv_dtype=dtype.name, reasons=tuple(reasons)
        )
    reason = "set" if config.dtype != "auto" else "native kernels compute it"
    return Computing(
        isa=isa,
        dtype=DtypeChoice(torch.bfloat16, "bfloat16", reason),
        weights="bf16" if config.weights == "auto" else config.weights,
        kv_dtype="bfloat16" if config.kv_dtype == "auto" else config.kv_dtype,
        reasons=tuple(reasons),
    )


def _against_native(config: Config, spec: ModelSpec, device: torch.device) -> list[str]:
    """Why torch computes."""
    if config.kernels == "torch":
        return ["native: no, kernels is torch"]
    reasons = []
    if device.type != "cpu":
        reasons.append(f"native: no, they are for CPUs, the device is {device.type}")
    if library.missing():
        reasons.append(f"native: no, {library.missing()}")
    if config.dtype not in ("auto", "bfloat16"):
        reasons.append(f"native: no, they compute in bfloat16, dtype is {config.dtype}")
    if config.attention != "auto":
        reasons.append(f"native: no, torch's attention {config.attention!r} was asked for")
    reasons += [f"native: no, {reason}" for reason in against_spec(spec, config.weights)]
    return reasons


def _line(isa: Isa, taken: Isa | None, wish: str) -> str:
    if isa.against:
        return f"{isa.name}: no, {isa.against}"
    if isa == taken:
        return f"{isa.name}: taken"
    if taken is None:
        return f"{isa.name}: can"
    return f"{isa.name}: can, but " + ("slower" if wish == "auto" else "another was asked for")


def _refuse_wishes(config: Config, against: list[str]) -> None:
    wishes = [
        f"{name} {value!r}"
        for name, value, plain in (
            ("kernels", config.kernels, ("auto", "torch")),
            ("weights", config.weights, ("auto",)),
            ("kv_dtype", config.kv_dtype, ("auto",)),
        )
        if value not in plain
    ]
    if wishes:
        raise ConfigError(
            f"{' and '.join(wishes)} need native kernels, which cannot be used here\n"
            + "\n".join(against)
            + "\nleave these settings at auto, or remove what is in the way"
        )
