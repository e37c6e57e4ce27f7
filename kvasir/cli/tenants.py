"""`kvasir tenants create|list|disable|enable|rm`: whose things are kept apart, for the owner."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from kvasir.cli import options
from kvasir.core.config import load

app = typer.Typer(
    name="tenants",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Tenants: nobody sees files, contexts or answers of another one.",
)

JsonOption = Annotated[bool, typer.Option("--json", help="For programs.")]
NameArgument = Annotated[str, typer.Argument(metavar="NAME")]


@app.command("create")
def create(
    name: NameArgument,
    home: options.HomeOption = None,
    config_file: options.ConfigFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a tenant; `kvasir keys create --tenant NAME` lets somebody in."""
    config = load({"home": home}, file=config_file)

    from kvasir.cli.accounts import open_accounts

    with open_accounts(config) as accounts:
        tenant = accounts.create_tenant(name)
    print(tenant.model_dump_json(indent=2) if as_json else f"tenant {tenant.name} is there")


@app.command("list")
def list_tenants(
    home: options.HomeOption = None,
    config_file: options.ConfigFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """All tenants, and how many keys admit them."""
    config = load({"home": home}, file=config_file)

    from kvasir.cli.accounts import open_accounts
    from kvasir.cli.columns import columns, moment

    with open_accounts(config) as accounts:
        reply, keys = accounts.tenants(), accounts.keys().data
    if as_json:
        print(reply.model_dump_json(indent=2))
        return
    if not reply.data:
        print("there are no tenants beside the owner of the home")
        return
    rows = [("tenant", "keys", "made", "disabled")]
    for tenant in reply.data:
        n_keys = sum(key.tenant == tenant.name and key.revoked_at is None for key in keys)
        made = moment(tenant.created_at)
        rows.append((tenant.name, str(n_keys), made, moment(tenant.disabled_at)))
    print(columns(rows, right={1}))


@app.command("disable")
def disable(
    name: NameArgument,
    home: options.HomeOption = None,
    config_file: options.ConfigFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let its keys admit nobody; what it has stays."""
    _set_disabled(name, True, home, config_file, as_json)


@app.command("enable")
def enable(
    name: NameArgument,
    home: options.HomeOption = None,
    config_file: options.ConfigFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let its keys admit again."""
    _set_disabled(name, False, home, config_file, as_json)


@app.command("rm")
def remove(
    name: NameArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    home: options.HomeOption = None,
    config_file: options.ConfigFileOption = None,
) -> None:
    """Remove a tenant with its keys, files, contexts and everything that was kept for it."""
    config = load({"home": home}, file=config_file)

    from kvasir.cli.accounts import open_accounts

    with open_accounts(config) as accounts:
        if not yes and _on_a_terminal():
            typer.confirm(f"remove {name} with all its files and contexts?", abort=True, err=True)
        accounts.remove_tenant(name)
    print(f"tenant {name} is gone, with all that was its own")


def _set_disabled(
    name: str,
    disabled: bool,
    home: options.HomeOption,
    config_file: options.ConfigFileOption,
    as_json: bool,
) -> None:
    config = load({"home": home}, file=config_file)

    from kvasir.cli.accounts import open_accounts

    with open_accounts(config) as accounts:
        tenant = accounts.set_disabled(name, disabled)
    word = "disabled: its keys admit nobody" if disabled else "enabled: its keys admit again"
    print(tenant.model_dump_json(indent=2) if as_json else f"tenant {name} is {word}")


def _on_a_terminal() -> bool:
    return sys.stdin.isatty()
