"""`kvasir contexts …`: what is kept of documents, for the owner of the home."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvasir.cli import options
from kvasir.core.config import load

if TYPE_CHECKING:
    from kvasir.cli.context_client import Context, Contexts

app = typer.Typer(
    name="contexts",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="What is kept of documents. Contexts go by their names or ids; `kvasir read` makes them, "
    "`kvasir ask --context` asks them.",
)

NameArgument = Annotated[str, typer.Argument(metavar="CONTEXT", help="Its name or id.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@app.command("list")
def list_contexts(
    implicit: Annotated[
        bool,
        typer.Option("--implicit", help="Texts that are kept only because they were asked about."),
    ] = False,
    model: options.ModelOption = None,
    home: options.HomeOption = None,
    config_file: options.ConfigFileOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """All contexts, the newest first."""
    from kvasir.cli.contexts_text import implicit_text, list_text

    with _contexts(model, home, config_file) as contexts:
        if implicit:
            rows = contexts.implicit()
            print(json.dumps(rows, indent=2) if as_json else implicit_text(rows))
            return
        found = contexts.all()
    raw = [dict(each.raw) for each in found]
    print(json.dumps(raw, indent=2) if as_json else list_text(found))


@app.command("show")
def show_context(
    name: NameArgument,
    sections: Annotated[
        bool, typer.Option("--sections", help="Its sections and their summaries, too.")
    ] = False,
    model: options.ModelOption = None,
    home: options.HomeOption = None,
    config_file: options.ConfigFileOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """One context: what it holds, where and how long it is kept, and what was not read."""
    from kvasir.cli.contexts_text import sections_text, show_text

    with _contexts(model, home, config_file) as contexts:
        context = contexts.find(name)
        rows = contexts.sections(context.id) if sections else []
    if as_json:
        raw = dict(context.raw)
        print(json.dumps(raw | {"section_list": rows} if sections else raw, indent=2))
        return
    print(show_text(context))
    if sections:
        print("\n" + sections_text(rows))


@app.command("rename")
def rename(
    name: NameArgument,
    new_name: Annotated[str, typer.Argument(metavar="NAME")],
    model: options.ModelOption = None,
    home: options.HomeOption = None,
    config_file: options.ConfigFileOption = None,
) -> None:
    """Give a context another name."""
    with _contexts(model, home, config_file) as contexts:
        changed = contexts.change(contexts.find(name).id, name=new_name)
    print(f"{name} is {changed.called} now")


@app.command("pin")
def pin(
    name: NameArgument,
    model: options.ModelOption = None,
    home: options.HomeOption = None,
    config_file: options.ConfigFileOption = None,
) -> None:
    """Keep a context until it is unpinned or removed."""
    _change(name, model, home, config_file, pinned=True)


@app.command("unpin")
def unpin(
    name: NameArgument,
    model: options.ModelOption = None,
    home: options.HomeOption = None,
    config_file: options.ConfigFileOption = None,
) -> None:
    """Let a context expire again, as it did before it was pinned."""
    _change(name, model, home, config_file, pinned=False)


@app.command("renew")
def renew(
    name: NameArgument,
    ttl: Annotated[
        str | None,
        typer.Option("--ttl", help="Such as 90m, 12h or 7d.", show_default="what it has"),
    ] = None,
    model: options.ModelOption = None,
    home: options.HomeOption = None,
    config_file: options.ConfigFileOption = None,
) -> None:
    """Keep a context longer: from now on, for the time it has or for another one."""
    options.check_ttl(ttl)
    _change(name, model, home, config_file, **({"ttl": ttl} if ttl else {}))


@app.command("fork")
def fork(
    name: NameArgument,
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="FILE", help="Further documents, behind those it has."),
    ] = None,
    new_name: Annotated[
        str | None, typer.Option("--name", help="What to call it.", show_default="after this one")
    ] = None,
    instructions: Annotated[
        str | None,
        typer.Option("--instructions", help="Others; then nothing of its KV can be shared."),
    ] = None,
    ttl: options.TtlOption = None,
    model: options.ModelOption = None,
    home: options.HomeOption = None,
    config_file: options.ConfigFileOption = None,
) -> None:
    """Make another context that begins with all of this one, and read only what is new."""
    options.check_ttl(ttl)
    if not files and not instructions:
        raise typer.BadParameter("without FILEs or --instructions it is the same context")

    from kvasir.cli.reading import sources_of, uploaded

    wishes = {"name": new_name, "instructions": instructions, "ttl": ttl}
    wanted: dict[str, Any] = {key: value for key, value in wishes.items() if value is not None}
    with _contexts(model, home, config_file) as contexts:
        parent = contexts.find(name)
        with sources_of(files or []) as sources, uploaded(contexts, sources) as ids:
            wanted["file_ids"] = ids
            child = contexts.fork(parent.id, wanted)
        _read_and_tell(contexts, child, f"{parent.called}, forked")


@app.command("export")
def export(
    name: NameArgument,
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="Where to.", show_default="CONTEXT.kvasir"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    model: options.ModelOption = None,
    home: options.HomeOption = None,
    config_file: options.ConfigFileOption = None,
) -> None:
    """Write a context as one signed file, with its text and its KV."""
    from kvasir.cli import show
    from kvasir.cli.exporting import default_file, signer_here, write_export

    with _contexts(model, home, config_file) as contexts:
        context = contexts.find(name)
        target = file or default_file(context)
        n_bytes = write_export(contexts, context, target, replace=force)
    print(f"{context.called} is in {target} ({show.size(n_bytes)})")
    signer = signer_here(load({"home": home}, file=config_file).home)
    show.note(f"signed by {signer}: homes that have it in trusted_signers take the KV as it is")


@app.command("import")
def take_in(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `export` has written.")],
    model: options.ModelOption = None,
    home: options.HomeOption = None,
    config_file: options.ConfigFileOption = None,
) -> None:
    """Take in an exported context.

    Its KV is taken as it is where this home or one of the setting trusted_signers has signed it;
    else the text is read anew.
    """
    from kvasir.cli import show
    from kvasir.cli.exporting import read_export, signer_of

    with _contexts(model, home, config_file) as contexts:
        context = read_export(contexts, file)
        computed = _read_and_tell(contexts, context, file.stem)
    if computed:
        show.note(
            f"{computed:,} tokens were computed anew: the signer {signer_of(file)} is not in "
            "trusted_signers, or that KV is of another model or another numeric format"
        )


@app.command("rm")
def remove(
    names: Annotated[list[str], typer.Argument(metavar="CONTEXT", help="Names or ids.")],
    yes: YesOption = False,
    model: options.ModelOption = None,
    home: options.HomeOption = None,
    config_file: options.ConfigFileOption = None,
) -> None:
    """Forget contexts: their text and their KV. What others share with them stays."""
    from kvasir.cli.contexts_text import list_text

    with _contexts(model, home, config_file) as contexts:
        found = [contexts.find(name) for name in names]
        if not yes and sys.stdin.isatty():
            print(list_text(found), file=sys.stderr)
            typer.confirm("forget this?", abort=True, err=True)
        for context in found:
            contexts.delete(context.id)
            print(f"{context.called} is gone")


@app.command("cancel")
def cancel(
    name: NameArgument,
    model: options.ModelOption = None,
    home: options.HomeOption = None,
    config_file: options.ConfigFileOption = None,
) -> None:
    """Stop reading a context; what was read is kept."""
    from kvasir.cli.receipts import stopped_text

    with _contexts(model, home, config_file) as contexts:
        context = contexts.cancel(contexts.find(name).id)
    if context.status == "cancelled":
        print(stopped_text(context, context.processed))
    else:
        print(f"{context.called} is not being read: it is {context.status}")


def _change(name: str, model: Any, home: Any, config_file: Any, **wishes: Any) -> None:
    from kvasir.cli.receipts import kept_text

    with _contexts(model, home, config_file) as contexts:
        context = contexts.change(contexts.find(name).id, **wishes)
    print(f"{context.called}: {kept_text(context)}")


def _read_and_tell(contexts: Contexts, made: Context, name: str) -> int:
    """Follow the reading of a new context and print its receipt; how many tokens were computed."""
    from kvasir.cli.reading import follow, named
    from kvasir.cli.receipts import receipt_text

    context = named(contexts, made, name)
    existed = made.status == "completed"  # what is new is not read yet
    context = follow(contexts, context)
    print(receipt_text(context, existed=existed))
    return 0 if existed else context.computed


@contextlib.contextmanager
def _contexts(model: str | None, home: Any, config_file: Any) -> Iterator[Contexts]:
    """The contexts of the home's server, or of one that lives as long as the block."""
    config = load({"model": model, "home": home}, file=config_file)

    from kvasir.cli.connect import connect
    from kvasir.cli.context_client import Contexts

    with connect(config) as connection:
        yield Contexts(connection.client)
