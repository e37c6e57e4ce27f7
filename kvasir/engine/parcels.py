"""Export and import of stored KV as parcels, on a caller's thread.

The engine's thread is only asked where things are; the mover carries the bytes; packing, hashing
and checking are done here. Invariant: one parcel is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Protocol, TypeVar

from kvasir.core.errors import NotStored
from kvasir.kv.cache import KvCache
from kvasir.kv.restore import Piece
from kvasir.kv.text import keyed
from kvasir.tiers.parcel import cut, pack, parcel_of, unpack

T = TypeVar("T")


class Asking(Protocol):
    """How the engine's thread is asked: the client, or a test that steps by hand."""

    def call(self, function: Callable[[], T]) -> T:
        """What ``function`` gives, called between two steps."""
        ...

    def result(self, future: Future[T]) -> T:
        """What ``future`` is given, by something that was begun with ``call``."""
        ...


def export(
    asking: Asking, cache: KvCache, namespace: bytes, tokens: Sequence[int]
) -> Iterator[bytes]:
    """See ``core.ports.Engine.parcels``."""
    text = keyed(cache.chain(namespace), namespace, tokens, cache.geometry.block_tokens)
    transport = cache.keeping.transport
    n_planes = 2 * cache.geometry.n_layers
    for piece in asking.call(lambda: transport.pieces(text)):
        planes = _fetched(asking, cache, piece)
        # The last block may be stored as the beginning of a longer one: its part is a tail then.
        wanted = min(piece.end, len(text.tokens)) - piece.start
        full = wanted - wanted % cache.geometry.block_tokens
        for first, count in ((0, full), (full, wanted - full)):
            if count:
                start = piece.start + first
                parcel = parcel_of(cache.realm, cache.geometry, text.tokens[: start + count], start)
                yield pack(parcel, cut(planes, n_planes, piece.n_tokens, first, count))


def take_in(asking: Asking, cache: KvCache, namespace: bytes, data: bytes) -> int:
    """See ``core.ports.Engine.accept``."""
    parcel, planes = unpack(data, cache.realm, cache.geometry)
    chain = cache.chain(namespace)
    text = keyed(chain, namespace, parcel.tokens, cache.geometry.block_tokens)
    ended: Future[str] = Future()
    transport = cache.keeping.transport
    asking.call(lambda: transport.keep(text, parcel.start, planes, ended.set_result))
    problem = asking.result(ended)
    if problem:
        raise NotStored(
            f"The imported KV could not be stored: {problem}. Make room (`kvasir cache size` shows "
            "what there is) or repair the disk, and import it again."
        )
    return parcel.n_tokens


def _fetched(asking: Asking, cache: KvCache, piece: Piece) -> memoryview:
    into = memoryview(bytearray(piece.n_bytes))
    ended: Future[str] = Future()
    transport = cache.keeping.transport
    asking.call(lambda: transport.fetch(piece, into, ended.set_result))
    problem = asking.result(ended)
    if problem:
        raise NotStored(
            f"Stored KV could not be read: {problem}. Have the text read again, and export it once "
            "it is completed."
        )
    return into
