"""`kvasir keys create|list|revoke`: API keys, for the owner of the home."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Annotated

import typer

from kvasir.cli import options
from kvasir.core.config import load

if TYPE_CHECKING:
    from kvasir.service.accounts import KeyReply

app = typer.Typer(
    name="keys",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="API keys. From the first one on, every request over TCP needs one; commands on the home "
    "do not.",
)

JsonOption = Annotated[bool, typer.Option("--json", help="For programs.")]
_DURATION = re.compile(r"([1-9]\d{0,5})([mhd])")
_UNITS_S = {"m": 60, "h": 3600, "d": 86_400}


@app.command("create")
def create(
    tenant: Annotated[
        str, typer.Option("--tenant", help="Whose key it is; `kvasir tenants` lists them.")
    ] = "local",
    role: Annotated[
        str, typer.Option("--role", help="tenant, or admin: may also manage tenants and keys.")
    ] = "tenant",
    label: Annotated[str, typer.Option("--label", help="To tell keys apart.")] = "",
    expires_in: Annotated[
        str | None,
        typer.Option("--expires-in", help="Such as 90d, 12h or 30m.", show_default="never"),
    ] = None,
    home: options.HomeOption = None,
    config_file: options.ConfigFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key. It is printed this once, alone on stdout; only its digest is kept."""
    config = load({"home": home}, file=config_file)
    expires_at = None if expires_in is None else int(time.time()) + _seconds(expires_in)

    from pydantic import ValidationError

    from kvasir.cli import show
    from kvasir.cli.accounts import open_accounts
    from kvasir.service.accounts import NewKeyRequest

    try:
        wanted = NewKeyRequest.model_validate(
            {"tenant": tenant, "role": role, "label": label, "expires_at": expires_at}
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise typer.BadParameter(f"--{first['loc'][0]}: {first['msg']}") from error
    with open_accounts(config) as accounts:
        made = accounts.create_key(wanted)
        now = time.time()
        first_key = sum(_state(key, now) != "revoked" for key in accounts.keys().data) == 1
    if as_json:
        print(made.model_dump_json(indent=2))
        return
    print(made.key)
    show.note(f"{made.id}: role {made.role} of {made.tenant}; the key cannot be shown again")
    if first_key:
        show.note("this is the first key: requests over TCP need one from now on")


@app.command("list")
def list_keys(
    home: options.HomeOption = None,
    config_file: options.ConfigFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """All keys, also those that admit nobody any more; never the keys themselves."""
    config = load({"home": home}, file=config_file)

    from kvasir.cli.accounts import open_accounts
    from kvasir.cli.columns import columns, moment

    with open_accounts(config) as accounts:
        reply = accounts.keys()
    if as_json:
        print(reply.model_dump_json(indent=2))
        return
    if not reply.data:
        print("there are no keys")
        return
    now = time.time()
    head = ("key", "ends in", "tenant", "role", "state", "made", "expires", "last used", "label")
    rows = [
        (
            key.id,
            key.hint,
            key.tenant,
            key.role,
            _state(key, now),
            moment(key.created_at),
            moment(key.expires_at),
            moment(key.last_used_at),
            _printable(key.label),
        )
        for key in reply.data
    ]
    print(columns([head, *rows]))


@app.command("revoke")
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="KEY", help="As `kvasir keys list` names it.")],
    home: options.HomeOption = None,
    config_file: options.ConfigFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a key admit nobody any more; at once, where the home's server runs."""
    config = load({"home": home}, file=config_file)

    from kvasir.cli import show
    from kvasir.cli.accounts import open_accounts

    with open_accounts(config) as accounts:
        key = accounts.revoke_key(key_id)
        left = [each for each in accounts.keys().data if each.revoked_at is None]
    print(key.model_dump_json(indent=2) if as_json else f"{key.id} admits nobody any more")
    if not left and not config.keys:
        show.note("no key is left: on 127.0.0.1 the server answers everybody on this machine")


def _state(key: KeyReply, now: float) -> str:
    if key.revoked_at is not None:
        return "revoked"
    return "expired" if key.expires_at is not None and key.expires_at <= now else "active"


def _seconds(duration: str) -> int:
    match = _DURATION.fullmatch(duration)
    if match is None:
        raise typer.BadParameter(
            f"--expires-in is a time such as 90d, 12h or 30m, not {duration!r}"
        )
    return int(match[1]) * _UNITS_S[match[2]]


def _printable(label: str) -> str:
    """A label that does nothing to a terminal."""
    return "".join(c if c.isprintable() else "?" for c in label)
