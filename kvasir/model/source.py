"""Where a model comes from: the demonstration model, a local path, or a hub id. Torch-free.

Invariant: ``resolve`` gives a local path that is complete; what is there already is used without a
network.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from kvasir.core.errors import ModelNotFound
from kvasir.model import embedded

Report = Callable[[str], None]

_HUB_ID = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@(?P<revision>[\w][\w./-]{0,127}))?",
    re.ASCII,
)


def resolve(model: str, cache: Path, report: Report, *, refresh: bool = False) -> Path:
    """The local path of ``model``, obtained first where it is not there yet.

    ``model`` is "" (the demonstration model), a folder, a .gguf file, or a hub id "org/name" or
    "org/name@revision". What is obtained is kept under ``cache``. ``refresh`` asks the hub again
    for a repository that is there. ``report`` is told, in words, what takes time. Raises
    ``ModelNotFound`` saying what failed and what to do next.
    """
    if not model:
        return embedded.obtain(cache, report)
    path = _local(model)
    if path is not None:
        return path
    match = _hub_match(model)
    if match is None:
        raise ModelNotFound(
            f"there is no model at {model!r}. Give a folder in the Hugging Face layout, a .gguf "
            "file, a hub id such as org/name, or nothing for the demonstration model."
        )
    from kvasir.model.hub import obtain  # noqa: PLC0415 - the hub's client takes long to import

    return obtain(match["repo"], match["revision"] or "main", cache, report, refresh=refresh)


def at_hand(model: str, cache: Path) -> Path | None:
    """The local path of ``model`` where ``resolve`` would need no network, else None."""
    if not model:
        return embedded.at_hand(cache)
    path = _local(model)
    match = None if path is not None else _hub_match(model)
    if match is None:
        return path
    from kvasir.model import hub  # noqa: PLC0415 - the hub's client takes long to import

    return hub.at_hand(match["repo"], match["revision"] or "main", cache)


def model_name(model: str) -> str:
    """The name under which ``model`` is served: never a path of this machine."""
    if not model:
        return embedded.DEFAULT.name
    match = None if _local(model) is not None else _hub_match(model)
    if match is not None:
        return match["repo"]
    path = Path(model).expanduser().resolve()
    return path.stem if path.suffix == ".gguf" else path.name


def is_demonstration(model: str) -> bool:
    """Whether ``model`` is the demonstration model, which is called what it is."""
    return not model


def _local(model: str) -> Path | None:
    try:
        path = Path(model).expanduser()
        return path if path.exists() else None
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, an unknown user after ~
        return None


def _hub_match(model: str) -> re.Match[str] | None:
    match = _HUB_ID.fullmatch(model)
    if match is None or ".." in model or model.endswith(".gguf"):
        return None
    return match
