"""The catalog of a home, opened by whoever owns the home.

Invariant: a home has one catalog and a catalog one home. What lies in a home and is named by no row
is removed at the start, so a wrong database would cost all of its texts.
"""

from __future__ import annotations

import hashlib

from kvasir.catalog.catalog import Catalog, open_catalog
from kvasir.cli.home import OwnedHome
from kvasir.contexts.store import has_texts
from kvasir.core.config import Config, database_url


def open_own_catalog(config: Config, owned: OwnedHome) -> Catalog:
    """The catalog that ``config`` names. Raises ``ConfigError`` where it cannot be used, is that of
    another home, or is new while the home has texts that another one names."""
    catalog = open_catalog(database_url(config))
    try:
        digest = hashlib.sha256(b"kvasir home" + owned.secret()).hexdigest()
        catalog.claim(digest, has_texts=has_texts(owned.home.path))
    except BaseException:
        catalog.close()
        raise
    return catalog
