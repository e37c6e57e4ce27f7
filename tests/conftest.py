"""What every test layer shares: the demonstration model, obtained once per machine."""

from __future__ import annotations

from pathlib import Path

import platformdirs
import pytest

from kvasir.core.errors import ModelNotFound
from kvasir.model import source


@pytest.fixture(scope="session")
def embedded_gguf() -> Path:
    """The demonstration model's GGUF file, kept in the platform's cache folder. Skips where it is
    neither there nor to be had."""
    cache = Path(platformdirs.user_cache_dir("kvasir")) / "models"
    try:
        return source.resolve("", cache, print)
    except ModelNotFound as error:
        pytest.skip(f"the demonstration model cannot be obtained: {error}")
