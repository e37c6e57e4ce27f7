"""Which dtype a model runs in on a device, with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from kvasir.core.errors import ConfigError

BY_NAME: Mapping[str, torch.dtype] = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}
# instructions that multiply bfloat16 matrices faster than float32: AMX, AVX-512; Arm's BFMMLA
FAST_BF16 = ("amx_bf16", "avx512_bf16", "bf16")


@dataclass(frozen=True, slots=True)
class DtypeChoice:
    """A dtype, its name, and why it was taken."""

    dtype: torch.dtype
    name: str
    reason: str


def pick_dtype(device: torch.device, wanted: str = "auto") -> DtypeChoice:
    """``wanted`` where it names a dtype; for "auto", bfloat16 where ``device`` computes it fast,
    else float16 on a GPU and float32 on a CPU. Raises ``ConfigError`` for an unknown name."""
    if wanted != "auto":
        if wanted not in BY_NAME:
            raise ConfigError(f"dtype {wanted!r} is unknown; choose one of {', '.join(BY_NAME)}")
        return DtypeChoice(BY_NAME[wanted], wanted, "set")
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return _choice("bfloat16", "the GPU computes bfloat16")
        return _choice("float16", "the GPU does not compute bfloat16")
    return for_cpu(cpu_features())


def for_cpu(features: frozenset[str]) -> DtypeChoice:
    """The choice for a CPU with these ``features``."""
    fast = [name for name in FAST_BF16 if name in features]
    if fast:
        return _choice("bfloat16", f"the CPU has {fast[0]}")
    return _choice("float32", f"the CPU has none of {', '.join(FAST_BF16)}")


def cpu_features() -> frozenset[str]:
    """The CPU's instruction sets, by the names that torch's own dispatch uses."""
    return frozenset(k for k, v in torch.cpu.get_capabilities().items() if v is True)


def _choice(name: str, reason: str) -> DtypeChoice:
    return DtypeChoice(BY_NAME[name], name, reason)
