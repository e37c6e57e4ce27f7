"""`kvasir cache list|size|verify|clear`: the KV that is stored, for the owner of the home."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from kvasir.cli import options
from kvasir.core.config import Config, load

if TYPE_CHECKING:
    from kvasir.service.replies import CacheReply

app = typer.Typer(
    name="cache",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Show, verify or clear the KV that is stored: through the server that runs on the home, "
    "else in its folder.",
)

TierOption = Annotated[
    str | None, typer.Option("--tier", help="Only this tier: host or disk.", show_default=False)
]
TenantOption = Annotated[
    str | None,
    typer.Option(
        "--tenant", help="Only this tenant; `local` where no keys are set.", show_default=False
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="For programs.")]


@app.command("list")
def list_records(
    tier: TierOption = None,
    tenant: TenantOption = None,
    home: options.HomeOption = None,
    config_file: options.ConfigFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Every record, the one last used first."""
    config = _config(home, config_file, tier)
    reply = _narrowed(_stored(config), tier, tenant)

    from kvasir.cli.stored_text import records_text

    print(reply.model_dump_json(indent=2) if as_json else records_text(reply))


@app.command("size")
def size(
    tier: TierOption = None,
    tenant: TenantOption = None,
    home: options.HomeOption = None,
    config_file: options.ConfigFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Sums by tier and by tenant."""
    config = _config(home, config_file, tier)
    reply = _narrowed(_stored(config), tier, tenant)

    from kvasir.cli.stored_text import sizes_text

    print(
        reply.model_dump_json(indent=2, include={"tiers", "tenants"})
        if as_json
        else sizes_text(reply)
    )


@app.command("verify")
def verify(
    home: options.HomeOption = None,
    config_file: options.ConfigFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read everything again. What is damaged is dropped, and computed anew when it is needed.

    Ends with 1 where something was damaged.
    """
    config = _config(home, config_file)

    from kvasir.cli.stored import open_stored
    from kvasir.cli.stored_text import damage_text

    with open_stored(config) as stored:
        verified = stored.verify()
    if as_json:
        print(verified.model_dump_json(indent=2))
    else:
        print(damage_text(verified))
    if verified.damaged or verified.unreadable:
        raise typer.Exit(1)


@app.command("clear")
def clear(
    tier: TierOption = None,
    tenant: TenantOption = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    home: options.HomeOption = None,
    config_file: options.ConfigFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Forget what is stored. Nothing is lost but time: it is computed anew when it is needed."""
    config = _config(home, config_file, tier)

    from kvasir.cli import show
    from kvasir.cli.stored import open_stored
    from kvasir.cli.stored_text import sizes_text

    with open_stored(config) as stored:
        if not yes and _on_a_terminal():
            print(sizes_text(_narrowed(stored.show(), tier, tenant)), file=sys.stderr)
            typer.confirm("forget this?", abort=True, err=True)
        cleared = stored.clear(tier, tenant)
    print(
        json.dumps({"cleared": cleared}) if as_json else f"{show.count(cleared, 'record')} cleared"
    )


def _on_a_terminal() -> bool:
    return sys.stdin.isatty()


def _config(home: object, config_file: object, tier: str | None = None) -> Config:
    from kvasir.core.tiers import STORED_TIERS

    known = [known.value for known in STORED_TIERS]
    if tier is not None and tier not in known:
        raise typer.BadParameter(f"--tier is one of {', '.join(known)}, not {tier!r}")
    return load({"home": home}, file=config_file)  # type: ignore[arg-type]


def _stored(config: Config) -> CacheReply:
    from kvasir.cli.stored import open_stored

    with open_stored(config) as stored:
        return stored.show()


def _narrowed(reply: CacheReply, tier: str | None, tenant: str | None) -> CacheReply:
    """What of ``reply`` was asked for."""

    def wanted(its_tier: str, its_tenant: str | None) -> bool:
        return tier in (None, its_tier) and tenant in (None, its_tenant)

    return reply.model_copy(
        update={
            "records": [r for r in reply.records if wanted(r.tier, r.tenant)],
            "tiers": [t for t in reply.tiers if tenant is None and wanted(t.tier, None)],
            "tenants": [t for t in reply.tenants if wanted(t.tier, t.tenant)],
        }
    )
