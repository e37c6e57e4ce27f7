"""What the tests of the official clients know of their server."""

from __future__ import annotations

from dataclasses import dataclass

ALIAS = "gpt-4o-mini"
WINDOW = 2048


@dataclass(frozen=True)
class Address:
    """Where the server listens, and what it calls its model."""

    url: str
    model: str
