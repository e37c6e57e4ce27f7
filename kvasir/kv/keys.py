"""Names of blocks: a chained SHA-256 that binds a block to everything its KV depends on.

Key = SHA-256 over the length-prefixed (namespace, realm, parent key, token ids).
Change one field and the key is another, so KV of another tenant, model, precision or layout can
never be mistaken for this one's.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

from kvasir.core.realm import Realm

KEY_BYTES = 32
NO_PARENT = b""


class KeyChain:
    """Makes the keys of one namespace in one realm."""

    def __init__(self, namespace: bytes, realm: Realm) -> None:
        self._begin = hashlib.sha256()
        for field in (namespace, realm.id):
            self._begin.update(_prefixed(field))

    def key(self, parent: bytes, tokens: Sequence[int]) -> bytes:
        """The key of the block (or tail) that holds ``tokens`` behind the block ``parent``."""
        digest = self._begin.copy()
        digest.update(_prefixed(parent))
        digest.update(_prefixed(array("i", tokens).tobytes()))
        return digest.digest()

    def extend(self, keys: list[bytes], tokens: Sequence[int], block_tokens: int) -> None:
        """Append to ``keys`` those of all full blocks of ``tokens`` that are not in it yet."""
        for index in range(len(keys), len(tokens) // block_tokens):
            parent = keys[-1] if keys else NO_PARENT
            first = index * block_tokens
            keys.append(self.key(parent, tokens[first : first + block_tokens]))


def _prefixed(field: bytes) -> bytes:
    return len(field).to_bytes(8, "little") + field
