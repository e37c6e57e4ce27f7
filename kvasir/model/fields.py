"""Typed, bounded values out of a mapping that nobody vouches for (``config.json``, GGUF metadata).

Invariant: what leaves this module has the type and lies within the bounds that the caller asked
for, so nothing downstream allocates by a number that a file made up. Torch-free.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeVar

from kvasir.core.errors import CorruptWeights, ModelNotFound

T = TypeVar("T")

JSON_LIMIT_BYTES = 16 * 2**20  # config files have kilobytes; a chat template at most some more


@dataclass(frozen=True, slots=True)
class Fields:
    """A mapping and its name in error messages. A value of None (JSON null) counts as absent.

    Every method raises ``CorruptWeights`` naming the key, the value and what is accepted.
    """

    values: Mapping[str, object]
    source: str

    def has(self, key: str) -> bool:
        """Whether ``key`` is there and not null."""
        return self.values.get(key) is not None

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """A whole number in [low, high]; ``default`` where absent, required where that is None."""
        value = self.values.get(key)
        if value is None:
            return self._default(key, default)
        if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            self._refuse(key, value, "a whole number")
        if not low <= value <= high:
            self._refuse(key, value, f"a whole number from {low} to {high}")
        return value

    def number(self, key: str, low: float, high: float, default: float | None = None) -> float:
        """A finite number in [low, high]; ``default`` where absent, required where that is None."""
        value = self.values.get(key)
        if value is None:
            return self._default(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self._refuse(key, value, "a number")
        # the comparison is false for NaN, and exact for integers too large for a float
        if not low <= value <= high:
            self._refuse(key, value, f"a number from {low:g} to {high:g}")
        return float(value)

    def optional_number(self, key: str, low: float, high: float) -> float | None:
        """As ``number``, None where absent."""
        return self.number(key, low, high) if self.has(key) else None

    def flag(self, key: str, default: bool) -> bool:
        """A truth value."""
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            self._refuse(key, value, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A string; ``default`` where absent, required where that is None."""
        value = self.values.get(key)
        if value is None:
            return self._default(key, default)
        if not isinstance(value, str):
            self._refuse(key, value, "text")
        return value

    def table(self, key: str) -> Fields | None:
        """A nested object, None where absent."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            self._refuse(key, value, "an object")
        return Fields(value, f"{key} in {self.source}")

    def _default(self, key: str, default: T | None) -> T:
        if default is None:
            raise CorruptWeights(f"{self.source} has no {key!r}, which the model cannot do without")
        return default

    def _refuse(self, key: str, value: object, wanted: str) -> NoReturn:
        raise CorruptWeights(f"{self.source} says {key} = {shorten(value)}; expected {wanted}")


def shorten(value: object, limit: int = 60) -> str:
    """``value`` for an error message: never long, never a failure to print a huge number."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**30:
        return f"a number of {int(math.log10(2) * value.bit_length())} digits"
    text = repr(value)
    return text if len(text) <= limit else text[:limit] + "…"


def read_json_object(path: Path, limit_bytes: int = JSON_LIMIT_BYTES) -> dict[str, object]:
    """The JSON object in ``path``.

    Raises ``ModelNotFound`` where the file cannot be read and ``CorruptWeights`` where it is longer
    than ``limit_bytes``, is no JSON object, or uses NaN or Infinity.
    """
    try:
        with path.open("rb") as file:
            data = file.read(limit_bytes + 1)
    except OSError as error:
        raise ModelNotFound(f"cannot read {path}: {error.strerror}") from error
    if len(data) > limit_bytes:
        raise CorruptWeights(f"{path} is longer than the {limit_bytes} bytes that are read of it")
    return parse_json_object(data, str(path))


def parse_json_object(data: bytes, source: str) -> dict[str, object]:
    """The JSON object in ``data``; ``CorruptWeights`` naming ``source`` where it is none."""
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # ValueError covers Unicode and JSON errors
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise CorruptWeights(f"{source} is not valid JSON: {reason}") from error
    if not isinstance(value, dict):
        raise CorruptWeights(f"{source} holds a JSON {type(value).__name__}; expected an object")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
