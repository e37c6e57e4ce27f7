"""The compiled library, where there is one, and which instruction sets it can use on this machine.

Invariant: importing never fails. Where the package was installed without a compiler there is no
library, ``missing`` says so, and every caller falls back to plain torch.
"""

from __future__ import annotations

import ctypes
import importlib.machinery
from ctypes import POINTER, c_char_p, c_double, c_int, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from kvasir.core.config import NATIVE_KERNELS
from kvasir.core.errors import ConfigError
from kvasir.kernels.native import abi

_FOLDER = Path(__file__).parent.parent
_STEM = "_native"
_EMULATED = "amx_emulated"  # the code for AMX on emulated tiles: slow, for tests alone


@dataclass(frozen=True, slots=True)
class Isa:
    """An instruction set that the library has kernels for."""

    number: int
    name: str
    against: str  # why it cannot be used here; "" where it can


@cache
def load() -> ctypes.CDLL | None:
    """The library; None where it was not built or is of another version."""
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = _FOLDER / (_STEM + suffix)
        if path.is_file():
            break
    else:
        return None
    try:
        library = ctypes.CDLL(str(path))
        if library.kvasir_abi_version() != abi.VERSION:
            return None
        _declare(library)
    except (OSError, AttributeError):
        return None
    return library


def required() -> ctypes.CDLL:
    """The library. Raises ``ConfigError`` where there is none."""
    library = load()
    if library is None:
        raise ConfigError(f"there are no native kernels: {missing()}")
    return library


def missing() -> str:
    """Why there are no native kernels; "" where there are."""
    if load() is not None:
        return ""
    return "not built (no C++ compiler at installation, or for another version); reinstall with g++"


def isas() -> tuple[Isa, ...]:
    """Every instruction set of the library, none where there is no library."""
    library = load()
    if library is None:
        return ()
    return tuple(
        Isa(
            number,
            library.kvasir_isa_name(number).decode(),
            library.kvasir_isa_against(number).decode(),
        )
        for number in range(library.kvasir_isa_count())
    )


def best() -> Isa | None:
    """The fastest instruction set that can be used here."""
    by_name = {isa.name: isa for isa in isas() if not isa.against and isa.name != _EMULATED}
    return next((by_name[name] for name in NATIVE_KERNELS if name in by_name), None)


def named(name: str) -> Isa:
    """The instruction set ``name``. Raises ``ConfigError`` where it cannot be used here."""
    for isa in isas():
        if isa.name == name:
            if isa.against:
                raise ConfigError(f"kernels {name!r} cannot be used here: {isa.against}")
            return isa
    raise ConfigError(f"kernels {name!r} cannot be used here: {missing() or 'they do not exist'}")


def _declare(library: ctypes.CDLL) -> None:
    model, step = POINTER(abi.Model), POINTER(abi.Step)
    for name, result, arguments in (
        ("kvasir_isa_name", c_char_p, (c_int,)),
        ("kvasir_isa_against", c_char_p, (c_int,)),
        ("kvasir_packed_bytes", c_int64, (c_int32, c_int64, c_int64)),
        ("kvasir_pack_bf16", None, (c_void_p, c_int64, c_int64, c_void_p)),
        ("kvasir_pack_int8", None, (c_void_p, c_int64, c_int64, c_void_p)),
        ("kvasir_pack_int4", None, (*(c_void_p,) * 3, c_int64, c_int64, c_void_p)),
        ("kvasir_kv_row_bytes", c_int64, (model,)),
        ("kvasir_open", c_void_p, (model, c_int, c_int)),
        ("kvasir_close", None, (c_void_p,)),
        ("kvasir_run", c_int, (c_void_p, step)),
        ("kvasir_scratch_bytes", c_int64, (c_void_p,)),
        ("kvasir_read_rate", c_double, (c_int, c_int64)),
        ("kvasir_peak_rate", c_double, (c_int, c_int32, c_int)),
    ):
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments
