"""Why not more of a prompt was found: what is known of the first block that was not."""

from __future__ import annotations

from collections.abc import Sequence

from kvasir.core.events import Miss
from kvasir.core.realm import namespace_tag
from kvasir.kv.stored import StoredTiers
from kvasir.kv.tree import PrefixTree, common_length

_TELLING = 16  # common first tokens by which a text of another realm is recognised
_REASONS = {
    "weights": Miss.WEIGHTS_CHANGED,
    "numerics": Miss.NUMERICS_CHANGED,
    "adapter": Miss.ADAPTER_CHANGED,
    "layout": Miss.LAYOUT_CHANGED,
    "tokenizer": Miss.TOKENIZER_CHANGED,
}


def why_not_more(
    tree: PrefixTree,
    stored: StoredTiers,
    namespace: bytes,
    tokens: Sequence[int],
    keys: Sequence[bytes],
    matched: tuple[int, int],
    differs: bool,
) -> Miss | None:
    """The reason why of ``tokens``, whose whole blocks have ``keys``, only as many blocks and
    tokens were found as ``matched`` says; ``differs`` says that a kept text goes on otherwise
    there. None where all that can be reused was found, and where nothing kept is longer."""
    depth, found = matched
    if len(tokens) < 2:
        return Miss.TOO_SHORT
    if found >= len(tokens) - 1:
        return None
    tag = namespace_tag(namespace)
    known = _lost(tree, stored, keys[depth]) if depth < len(keys) else None
    known = known or _changed(stored, tag, tokens, found)
    if known is not None or (found and not differs):
        return known
    if not differs and tree.empty_below(namespace) and stored.has_nothing_of(tag):
        return Miss.FIRST_SEEN
    return Miss.DIFFERENT_TEXT


def _lost(tree: PrefixTree, stored: StoredTiers, key: bytes) -> Miss | None:
    """What became of the block ``key``, if it was kept once."""
    if stored.was_damaged(key):
        return Miss.DAMAGED
    if tree.was_evicted(key) or stored.was_evicted(key):
        return Miss.EVICTED
    return None


def _changed(stored: StoredTiers, tag: bytes, tokens: Sequence[int], found: int) -> Miss | None:
    """In what the realm differs in which more of ``tokens`` is kept. Ids of another tokenizer
    cannot be compared: it is only named where nothing of this realm is kept."""
    differing: set[str] = set()
    for record in stored.foreign.values():
        extent = record.extent
        if extent.namespace_tag != tag or extent.start > 0:
            continue
        if "tokenizer" in record.differs_in:
            if not found and stored.has_nothing_of(tag):
                differing.update(record.differs_in)
        elif common_length(extent.tokens, tokens) >= max(found + 1, min(_TELLING, len(tokens))):
            differing.update(record.differs_in)
    return next((miss for part, miss in _REASONS.items() if part in differing), None)
