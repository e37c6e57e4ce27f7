"""The realm: everything beside the tokens and their owner that KV depends on.

KV is only ever reused within one realm. A realm's tag keeps its parts apart, so that a miss can say
which of them is another one.
"""

from __future__ import annotations

import hashlib
from dataclasses import astuple, dataclass, fields

PART_BYTES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Realm:
    """How KV came about, part by part; every part is an id in words."""

    weights: str  # digest of the model's files
    numerics: str  # spec, dtypes and attention policy
    adapter: str = ""  # none
    tokenizer: str  # digest of what turns text into ids
    layout: str  # of a block's planes

    @property
    def tag(self) -> bytes:
        """One digest of 16 bytes per part, in the order of the fields."""
        return b"".join(_digest(part) for part in astuple(self))

    @property
    def id(self) -> bytes:
        """The parts, each behind its length; part of every KV key."""
        encoded = [part.encode() for part in astuple(self)]
        return b"".join(len(part).to_bytes(8, "little") + part for part in encoded)


TAG_BYTES = PART_BYTES * len(fields(Realm))


def differences(a: bytes, b: bytes) -> tuple[str, ...]:
    """The names of the parts in which the realms with the tags ``a`` and ``b`` differ."""
    found = []
    for index, field in enumerate(fields(Realm)):
        part = slice(index * PART_BYTES, (index + 1) * PART_BYTES)
        if a[part] != b[part]:
            found.append(field.name)
    return tuple(found)


def namespace_tag(namespace: bytes) -> bytes:
    """The 16 bytes by which stored KV says whose it is; the namespace is a secret and not in it."""
    return hashlib.sha256(b"kvasir namespace tag" + namespace).digest()[:PART_BYTES]


def _digest(part: str) -> bytes:
    return hashlib.sha256(part.encode()).digest()[:PART_BYTES]
