"""The `kvasir` command: which commands there are, and how errors reach people.

Invariant: importing this module, and `kvasir --help`, import nothing heavy; a command's module is
imported when that command is called.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from typing import Any

import typer
from typer.core import TyperGroup

import kvasir
from kvasir.core.errors import KvasirError

COMMANDS: dict[str, str] = {
    "serve": "Serve a model over HTTP, with OpenAI's API.",
    "read": "Read documents once and keep them, to be asked at any time.",
    "contexts": "What is kept of documents: list, show, pin, export, rm, …",
    "ask": "Answer a question about files, or about a context.",
    "chat": "Talk with the model; every turn reads only what is new.",
    "pull": "Obtain a model, so that later commands work offline.",
    "models": "What is served and at hand; what a model would need for a file.",
    "cache": "Show, verify or clear the KV that is stored.",
    "keys": "Make, list or revoke API keys.",
    "tenants": "Make, list, disable or remove tenants.",
    "doctor": "Show the machine, the settings, the model and what was chosen, with reasons.",
    "bench": "Measure speed, side by side with other engines.",
}

_EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


class _LazyGroup(TyperGroup):
    """Commands by name; ``kvasir.cli.<name>`` is imported when its command is looked up."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"kvasir.cli.{cmd_name}")
        group = getattr(module, "app", None)
        if group is not None:  # a command with commands of its own
            return typer.main.get_command(group)
        single = typer.Typer(add_completion=False, rich_markup_mode=None)
        single.command(cmd_name, **getattr(module, "TYPER_SETTINGS", {}))(module.command)
        return typer.main.get_command(single)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort):
            raise
        except KvasirError as error:
            _explain(str(error))
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            raise typer.Exit(_EXIT_INTERRUPTED) from error
        except BrokenPipeError as error:  # the reader of our output has gone: nobody to tell
            raise typer.Exit(1) from error
        except (OSError, ValueError, TypeError, LookupError, RuntimeError) as error:
            _explain(
                f"something went wrong inside Kvasir: {type(error).__name__}: {error}\n"
                "this is a bug, or the system refused something that Kvasir did not expect\n"
                "run again with KVASIR_LOG_LEVEL=debug and report what it prints"
            )
            raise typer.Exit(1) from error


def _explain(message: str) -> None:
    """Fact, cause, what to do: at most three lines on stderr; in debug mode a traceback first."""
    if _debugging():
        traceback.print_exc()
    lines = message.splitlines() or ["unknown error"]
    print(f"kvasir: {lines[0]}", file=sys.stderr)
    for line in lines[1:3]:
        print(f"  {line}", file=sys.stderr)


def _debugging() -> bool:
    from kvasir.core.config import load

    try:
        return load().log_level == "debug"
    except KvasirError:
        return False


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"kvasir {kvasir.__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=_LazyGroup,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Kvasir reads a text once and answers any number of questions on it.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", help="Print the version.", is_eager=True, callback=_print_version
    ),
) -> None: ...
