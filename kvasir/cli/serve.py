"""`kvasir serve [MODEL]`: one model over HTTP and over the home's socket, until a signal."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from kvasir.cli import options
from kvasir.cli.options import DEFAULTS
from kvasir.core.config import Config, database_url, load
from kvasir.core.geometry import KvGeometry, ModelCard
from kvasir.core.tiers import Tier, TierStatus


def command(
    model: options.ModelArgument = None,
    host: Annotated[
        str | None, typer.Option("--host", help="Address to listen on.", show_default=DEFAULTS.host)
    ] = None,
    port: Annotated[
        int | None,
        typer.Option("--port", help="0 takes any free one.", show_default=str(DEFAULTS.port)),
    ] = None,
    home: options.HomeOption = None,
    alias: Annotated[
        list[str] | None,
        typer.Option("--alias", help="A further name for the model; may be repeated."),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option("--allowed-host", help="A further Host name to answer to; repeatable."),
    ] = None,
    device: options.DeviceOption = None,
    dtype: options.DtypeOption = None,
    kernels: options.KernelsOption = None,
    weights: options.WeightsOption = None,
    kv_dtype: options.KvDtypeOption = None,
    attention: Annotated[
        str | None,
        typer.Option(
            "--attention", help="Torch's, from `kvasir doctor`.", show_default=DEFAULTS.attention
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", help="CPU threads.", show_default="one per core")
    ] = None,
    kv_gib: options.KvGibOption = None,
    host_gib: options.HostGibOption = None,
    disk_gib: options.DiskGibOption = None,
    max_window: options.MaxWindowOption = None,
    max_running: Annotated[
        int | None,
        typer.Option(
            "--max-running",
            help="Answers computed together.",
            show_default=str(DEFAULTS.max_running),
        ),
    ] = None,
    max_waiting: Annotated[
        int | None,
        typer.Option(
            "--max-waiting", help="Requests queued.", show_default=str(DEFAULTS.max_waiting)
        ),
    ] = None,
    step_budget_ms: Annotated[
        float | None,
        typer.Option(
            "--step-budget-ms",
            help="Time of one step.",
            show_default=f"{DEFAULTS.step_budget_ms:g}",
        ),
    ] = None,
    grace_s: Annotated[
        float | None,
        typer.Option(
            "--grace-s",
            help="Seconds that running answers get to finish.",
            show_default=f"{DEFAULTS.grace_s:g}",
        ),
    ] = None,
    log_level: Annotated[
        str | None,
        typer.Option(
            "--log-level", help="debug, info, warning or error.", show_default=DEFAULTS.log_level
        ),
    ] = None,
    config_file: options.ConfigFileOption = None,
) -> None:
    """Serve MODEL with OpenAI's API (docs at /docs of the address).

    SIGTERM or Ctrl-C lets running answers finish for the grace, then ends them cleanly; a second
    one ends at once.
    """
    config = load(
        {
            "model": model,
            "host": host,
            "port": port,
            "home": home,
            "alias": alias or None,
            "allowed_hosts": allowed_host or None,
            "device": device,
            "dtype": dtype,
            "kernels": kernels,
            "weights": weights,
            "kv_dtype": kv_dtype,
            "attention": attention,
            "threads": threads,
            "kv_gib": kv_gib,
            "host_gib": host_gib,
            "disk_gib": disk_gib,
            "max_window": max_window,
            "max_running": max_running,
            "max_waiting": max_waiting,
            "step_budget_ms": step_budget_ms,
            "grace_s": grace_s,
            "log_level": log_level,
        },
        file=config_file,
    )
    _log_to_stderr(config.log_level)
    _serve(config)


def _serve(config: Config) -> None:
    from kvasir.cli import show
    from kvasir.cli.compose import compose
    from kvasir.cli.home import open_home
    from kvasir.cli.listener import Listener, bind_tcp, end_on_signals

    home = open_home(config.home)
    # What can be refused at once is refused before the model is loaded.
    with contextlib.ExitStack() as stack:
        owned = stack.enter_context(home.own())
        keyed = _keyed(config)
        tcp = stack.enter_context(bind_tcp(config.host, config.port))
        unix = stack.enter_context(owned.bind_socket())
        server = compose(config, owned, report=show.note)

        built = server.built

        def announce() -> None:
            kept = kept_lines(built.engine.status().tiers, home.stored)
            print(announcement(built.card, built.geometry, _address(tcp), keyed, kept))
            sys.stdout.flush()

        listener = Listener(
            server.app,
            [tcp, unix],
            grace_s=config.grace_s,
            stop_engine=built.engine.stop,
            on_ready=announce,
        )
        end_on_signals(listener)
        listener.listen()
    show.note("ended")


def _keyed(config: Config) -> bool:
    """Whether requests over TCP will need a key. Raises ``ConfigError`` where they must and there
    is none."""
    from kvasir.catalog.catalog import open_catalog
    from kvasir.service.identity import check_bind, is_loopback

    with contextlib.closing(open_catalog(database_url(config))) as catalog:
        check_bind(config, catalog.keys.count_active(int(time.time())))
        wanted = bool(config.keys) or catalog.keys.any_unrevoked()
        return wanted or not is_loopback(config.host)


def kept_lines(tiers: Sequence[TierStatus], folder: Path) -> str:
    """A line for each stored tier: how much it may keep, and where."""
    from kvasir.cli import show

    places = {Tier.HOST: "KV in RAM", Tier.DISK: "KV on disk"}
    return "".join(
        f"\n  {places[tier.tier]:<9} up to {show.size(tier.cap_bytes)}"
        + (f" in {folder}" if tier.tier is Tier.DISK else "")
        + (f", but {tier.failure}" if tier.failure else "")
        for tier in tiers
    )


def announcement(
    card: ModelCard, geometry: KvGeometry, address: str, keyed: bool, kept: str = ""
) -> str:
    """What a new user needs: what is served, where, ``kept`` (see ``kept_lines``), and two examples
    to paste."""
    kind = "a small demonstration model, " if card.demonstration else ""
    body = json.dumps(
        {"model": card.name, "messages": [{"role": "user", "content": "What is a raven?"}]}
    )
    header = " -H 'authorization: Bearer YOUR_KEY'" if keyed else ""
    key = "YOUR_KEY" if keyed else "none"
    return f"""
Kvasir serves {card.name} ({kind}{card.dtype}, window {card.window:,} tokens)
  KV pool   {geometry.pool_tokens:,} tokens{kept}
  address   {address}/v1
  docs      {address}/docs

  curl {address}/v1/chat/completions{header} -H 'content-type: application/json' \\
    -d '{body}'

  from openai import OpenAI
  client = OpenAI(base_url="{address}/v1", api_key="{key}")
  answer = client.chat.completions.create(
      model="{card.name}", messages=[{{"role": "user", "content": "What is a raven?"}}])
  print(answer.choices[0].message.content)

Ctrl-C ends."""


def _address(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _log_to_stderr(level: str) -> None:
    """Log lines on stderr. Neither prompts nor keys are ever given to a logger."""
    from kvasir.core.errors import ConfigError

    known = logging.getLevelNamesMapping()
    if level.upper() not in known:
        raise ConfigError(
            f"setting 'log_level' is {level!r}; choose one of debug, info, warning, error"
        )
    logging.basicConfig(
        level=known[level.upper()], format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    if level.lower() != "debug":  # their infos repeat what is printed anyway
        for name in ("uvicorn", "httpx2", "httpcore2"):
            logging.getLogger(name).setLevel(logging.WARNING)
