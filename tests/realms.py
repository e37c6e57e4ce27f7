"""Realms for tests, which differ in what a test names."""

from __future__ import annotations

from kvasir.core.geometry import KvGeometry
from kvasir.core.realm import Realm


def realm(geometry: KvGeometry | None = None, **parts: str) -> Realm:
    layout = geometry.layout_id if geometry is not None else "layout"
    base = {"weights": "weights", "numerics": "virtual", "tokenizer": "bytes", "layout": layout}
    return Realm(**(base | parts))
