"""What a server serves, as one frozen value; the only thing that the command line hands over."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from kvasir.catalog.catalog import Catalog
from kvasir.core.geometry import KvGeometry, ModelCard
from kvasir.core.ports import Engine
from kvasir.text.codec import TextCodec


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """One model with its engine and its text codec; the catalog; the home, in which texts are kept,
    and its secret (32 random bytes)."""

    card: ModelCard
    geometry: KvGeometry
    engine: Engine
    codec: TextCodec
    catalog: Catalog
    home: Path
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds that keep one client from hurting the others. The defaults are the product's; tests
    shorten them."""

    body_bytes: int = 64 * 2**20
    body_s: float = 120.0  # for a whole body to arrive
    verdict_s: float = 0.5  # how long a stream's headers wait, so that a refusal is a status
    silence_s: float = 10.0  # until the first keep-alive comment
    pulse_s: float = 5.0  # between the further ones
    unread_events: int = 20_000  # events that a slow reader may leave behind before it is cut off
    stalled_step_s: float = 60.0  # a step older than this makes /health answer 503
