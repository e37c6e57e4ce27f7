"""`kvasir models`: what is served and at hand, and what a model would need to read a file whole."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvasir.cli import options
from kvasir.core.config import Config, load
from kvasir.core.errors import KvasirError, ModelNotFound

if TYPE_CHECKING:
    from kvasir.cli.client import Client
    from kvasir.cli.model_need import Need
    from kvasir.cli.reading import Source

_NOT_SERVED = "not measured: `kvasir serve` it, then `kvasir read --dry-run` predicts it"


def command(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL",
            help="Folders, GGUF files or hub ids that are here already; with --for.",
            show_default="the one that is configured",
        ),
    ] = None,
    files: Annotated[
        list[str] | None,
        typer.Option("--for", metavar="FILE", help="A file or folder; may be given again."),
    ] = None,
    home: options.HomeOption = None,
    config_file: options.ConfigFileOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Show what is served and what is at hand. With --for: what window, memory and time each MODEL
    would need to read FILE whole. Loads no weights."""
    config = load({"home": home}, file=config_file)
    if not files:
        if models:
            raise typer.BadParameter("MODELs are compared for a file: name it with --for")
        rows = _at_hand(config)
        print(json.dumps(rows, indent=2) if as_json else _rows_text(rows, config))
        return
    needs = _needs(config, models or [config.model], files)
    if as_json:
        print(json.dumps([dataclasses.asdict(need) for need in needs], indent=2))
        return

    from kvasir.cli.model_need import need_text

    print("\n\n".join(need_text(need) for need in needs))


def _needs(config: Config, models: Sequence[str], paths: Sequence[str]) -> list[Need]:
    from kvasir.cli import show
    from kvasir.cli.context_client import Unread
    from kvasir.cli.model_need import extracted, need_of
    from kvasir.cli.reading import sources_of
    from kvasir.cli.receipts import unread_lines
    from kvasir.engine.survey import model_cache
    from kvasir.model.source import model_name

    cache = model_cache(config)
    located = [(model_name(model), _located(model, cache)) for model in models]
    needs: list[Need] = []
    with sources_of(paths) as sources:
        with show.working("reading files"):
            extraction = extracted([(source.name, source.path) for source in sources])
        documents = extraction.documents
        missing = [Unread(None, u.page, u.what, u.reason) for u in extraction.unread]
        missing += [Unread(d.name, u.page, u.what, u.reason) for d in documents for u in d.unread]
        for line in unread_lines(missing):
            show.note(line)
        for name, path in located:
            with show.working(f"counting tokens of {name}"):
                need = need_of(name, path, documents)
            with _serving(config, name) as client:
                needs.append(_with_time(need, client, sources))
    return needs


def _located(model: str, cache: Path) -> Path:
    from kvasir.model.source import at_hand

    path = at_hand(model, cache)
    if path is None:
        raise ModelNotFound(
            f"the model {model or 'for demonstration'} is not here yet\n"
            "nothing is obtained to compare models\n"
            f"obtain it with: kvasir pull {model}".rstrip()
        )
    return path


def _with_time(need: Need, client: Client | None, sources: Sequence[Source]) -> Need:
    """``need`` with what the running server predicts, where it runs this model."""
    if client is None:
        return dataclasses.replace(need, measured=_NOT_SERVED)

    from kvasir.cli.context_client import Contexts
    from kvasir.cli.reading import uploaded

    contexts = Contexts(client)
    with uploaded(contexts, sources) as ids:
        forecast = contexts.forecast({"file_ids": ids})
    told = "in sections, " if forecast.sectioned else ""
    return dataclasses.replace(
        need, read_s=forecast.read_s, measured=f"{told}as the running server has measured itself"
    )


@contextlib.contextmanager
def _serving(config: Config, model: str) -> Iterator[Client | None]:
    """A client of the home's server for the block where it runs and serves ``model``."""
    from kvasir.cli.client import Client
    from kvasir.cli.home import Home

    with Client(Home(config.home).socket_path) as client:
        try:
            served = client.model_names()
        except KvasirError:
            served = []
        yield client if model in served[:1] else None


def _at_hand(config: Config) -> list[dict[str, Any]]:
    """What is served on the home, and what its cache holds."""
    from kvasir.cli.client import Client
    from kvasir.cli.home import Home
    from kvasir.engine.survey import model_cache

    rows: list[dict[str, Any]] = []
    with Client(Home(config.home).socket_path) as client, contextlib.suppress(KvasirError):
        names, window = client.model_names(), client.window()
        rows.append({"model": names[0], "state": "served", "window": window, "aliases": names[1:]})
    rows += [_cached(name, path) for name, path in _in_cache(model_cache(config))]
    return rows


def _in_cache(cache: Path) -> Iterator[tuple[str, Path]]:
    from kvasir.model import embedded

    path = embedded.at_hand(cache)
    if path is not None:
        yield embedded.DEFAULT.name, path
    for snapshot in sorted(cache.glob("hub/*/snapshots/*")):
        yield snapshot.parent.parent.name.replace("--", "/", 1), snapshot


def _cached(name: str, path: Path) -> dict[str, Any]:
    from kvasir.model.files import open_model

    row: dict[str, Any] = {"model": name, "state": "at hand", "path": str(path)}
    try:
        files = open_model(path)
    except KvasirError as error:
        return row | {"state": f"cannot be used: {error}"}
    n_bytes = sum(each.stat().st_size for each in files.weight_files())
    return row | {"window": files.spec.window, "bytes": n_bytes}


def _rows_text(rows: Sequence[dict[str, Any]], config: Config) -> str:
    from kvasir.cli import show
    from kvasir.cli.columns import columns

    if not rows:
        return f"no server runs on {config.home} and no model is in it; `kvasir pull` obtains one"
    table = [("model", "", "window", "on disk", "")]
    for row in rows:
        window = f"{row['window']:,}" if "window" in row else ""
        size = show.size(row["bytes"]) if "bytes" in row else ""
        more = ", ".join(row.get("aliases", ())) and f"also {', '.join(row['aliases'])}"
        table.append((row["model"], row["state"], window, size, more or row.get("path", "")))
    return columns(table, right={2, 3})
