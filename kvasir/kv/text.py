"""A text of a namespace with the keys of its blocks: what a hold or a look begins with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvasir.core.realm import namespace_tag
from kvasir.kv.held import HeldText
from kvasir.kv.keys import NO_PARENT, KeyChain


@dataclass(frozen=True, slots=True)
class KeyedText:
    """A text of a namespace, and the keys of its full blocks and of its tail."""

    namespace: bytes
    tokens: tuple[int, ...]
    keys: tuple[bytes, ...]
    rest: tuple[int, ...]  # the tokens behind the full blocks; the tail has them, if any
    tail_key: bytes  # of the last full block where nothing is behind it

    @property
    def tag(self) -> bytes:
        """The namespace's tag."""
        return namespace_tag(self.namespace)

    @property
    def held(self) -> HeldText:
        """The text as an index knows it."""
        return HeldText(self.tag, self.keys, self.rest)

    @property
    def all_keys(self) -> tuple[bytes, ...]:
        """Of the full blocks, then of the tail where there is one."""
        return (*self.keys, self.tail_key) if self.rest else self.keys


def keyed(chain: KeyChain, namespace: bytes, tokens: Sequence[int], block_tokens: int) -> KeyedText:
    """``tokens`` with their keys, by the ``chain`` of ``namespace``. Hashes all of them: not to be
    called on the engine's thread for long texts."""
    keys: list[bytes] = []
    chain.extend(keys, tokens, block_tokens)
    rest = tuple(tokens[len(keys) * block_tokens :])
    last = keys[-1] if keys else NO_PARENT
    return KeyedText(
        namespace, tuple(tokens), tuple(keys), rest, chain.key(last, rest) if rest else last
    )
