"""Files made into contexts and read, with a bar: what `kvasir read`, `ask` and `contexts` share.

Invariant: Ctrl-C while something is read cancels that reading and says what is kept; uploads that
were only made for a context are gone when the block that needed them is left.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from kvasir.cli import show
from kvasir.cli.client import ServerError
from kvasir.cli.context_client import ENDED, Context, Contexts, Reading, Unread
from kvasir.cli.documents import media_type_of
from kvasir.cli.receipts import duration, refusal_words, stopped_text, unread_lines
from kvasir.core.errors import KvasirError, RequestError
from kvasir.documents.media import FIRST_BYTES

STDIN = "-"
STDIN_NAME = "standard input"
_MOST_NAME_CHARS = 120
_MOST_NAMES = 100


class NoRoom(ServerError):
    """Its KV could not be kept as promised, so nothing was begun."""


@dataclass(frozen=True, slots=True)
class Source:
    """A file as it is uploaded."""

    name: str
    path: Path


@contextlib.contextmanager
def sources_of(paths: Sequence[str]) -> Iterator[list[Source]]:
    """The files at ``paths`` for the block: standard input is read first, a folder packed and told
    what of it is left out.

    Raises ``RequestError`` for what is not there, gives no text or cannot be packed: before any
    model is loaded.
    """
    with contextlib.ExitStack() as stack:
        scratch: Path | None = None
        found: list[Source] = []
        for number, path in enumerate(paths):
            place = Path(path)
            if path != STDIN and not place.is_dir():
                found.append(_checked(path))
                continue
            if scratch is None:
                scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvasir-")))
            target = scratch / str(number)
            if path == STDIN:
                with target.open("xb") as stream:
                    shutil.copyfileobj(sys.stdin.buffer, stream)
                found.append(Source(STDIN_NAME, target))
            else:
                found.append(_packed(place, target))
        yield found


def _checked(path: str) -> Source:
    """The file at ``path``, which can be opened and looks as if it gave text."""
    source = Source(Path(path).name, Path(path))
    try:
        with source.path.open("rb") as stream:
            head = stream.read(FIRST_BYTES)
    except (OSError, ValueError) as error:
        raise RequestError(
            f"cannot read {path}: {getattr(error, 'strerror', None) or error}\n"
            "the arguments are files and folders, and of `kvasir ask` the question last\n"
            'for example: kvasir ask report.pdf "Who wrote this?"'
        ) from error
    media_type_of(source.name, head)
    return source


def _packed(folder: Path, target: Path) -> Source:
    from kvasir.documents.folders import pack_folder  # rarely needed

    name = folder.resolve().name
    missing = pack_folder(folder, target)
    for line in unread_lines([Unread(name, u.page, u.what, u.reason) for u in missing]):
        show.note(line)
    return Source(f"{name}.zip", target)


@contextlib.contextmanager
def uploaded(contexts: Contexts, sources: Sequence[Source]) -> Iterator[list[str]]:
    """Ids of the files with the server, for the block. Raises ``ServerError`` where one cannot be
    read."""
    ids: list[str] = []
    try:
        with show.working("reading files"):
            for source in sources:
                with source.path.open("rb") as stream:
                    ids.append(_upload(contexts, source.name, stream))
        yield ids
    finally:
        for file_id in ids:
            with contextlib.suppress(KvasirError):  # they expire by themselves
                contexts.forget_file(file_id)


def _upload(contexts: Contexts, name: str, stream: IO[bytes]) -> str:
    try:
        return contexts.upload(name, stream)
    except ServerError as error:
        if error.code not in ("unsupported_file", "unreadable_file"):
            raise
        raise ServerError(refusal_lines(str(error)), code=error.code) from error


def refusal_lines(message: str) -> str:
    """Why a file gives no text, as fact, cause and what to do."""
    fact, _, why = message.partition(": ")
    cause, _, rest = why.partition("; ")
    return "\n".join(line for line in (fact, cause, rest) if line)


def create(contexts: Contexts, wanted: Mapping[str, Any]) -> Context:
    """The context that ``wanted`` describes. Raises ``NoRoom`` and ``ServerError``."""
    try:
        return contexts.create(wanted)
    except ServerError as error:
        if error.code != "storage_full":
            raise
        raise NoRoom(refusal_words(str(error)), code=error.code) from error


def name_after(paths: Sequence[str]) -> str:
    """How a context of these files is called where nobody has said it."""
    first = STDIN_NAME if paths[0] == STDIN else Path(paths[0]).resolve().name
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    name = "".join(c for c in first if c.isprintable()).strip()[: _MOST_NAME_CHARS - len(more)]
    if not name or name.startswith(("ctx_", "file-")):
        name = f"text {name}".strip()
    return name + more


def named(contexts: Contexts, context: Context, name: str) -> Context:
    """``context`` with a name: its own where it has one, else ``name``, with a number behind it
    where another context is called so."""
    if context.name is not None:
        return context
    for number in range(1, _MOST_NAMES):
        tried = name if number == 1 else f"{name} {number}"
        try:
            return contexts.change(context.id, name=tried)
        except ServerError as error:
            if error.code != "name_taken":
                raise
    return context


def follow(contexts: Contexts, context: Context) -> Context:
    """``context`` once its reading has ended well, with a bar meanwhile.

    Raises ``KvasirError`` where it ended otherwise. ``KeyboardInterrupt`` cancels the reading.
    """
    if context.status in ENDED:
        return _completed(context)
    seen = context.processed
    try:
        with _bar(context) as update:
            for step in contexts.follow(context.id):
                if isinstance(step, Context):
                    return _completed(step)
                seen = step.processed
                update(step)
    except KeyboardInterrupt:
        stopped = contexts.cancel(context.id)
        if stopped.status != "completed":
            show.note(stopped_text(stopped, max(stopped.processed, seen)))
        raise
    raise KvasirError("the server stopped telling how the reading goes; ask again")


def _completed(context: Context) -> Context:
    if context.status == "completed":
        return context
    raise KvasirError(
        f"{context.called} was not read to its end: it is {context.status}\n"
        f"{context.error or 'somebody ended its reading'}\n"
        "what was read of it is kept, and the same command goes on from there"
    )


@contextlib.contextmanager
def _bar(context: Context) -> Iterator[Callable[[Reading], None]]:
    """A bar with tokens, speed, bytes and the time that is left, on a terminal."""
    with show.counted("reading", context.tokens) as update:
        yield lambda step: update(step.processed, told(step, context))


def told(step: Reading, context: Context) -> str:
    """Speed, bytes and the time that is left, for behind the count of tokens."""
    if step.processed >= step.total:
        return "tokens; finishing" if context.sectioned else "tokens; saving"
    done_bytes = context.n_bytes * step.processed // max(1, step.total)
    parts = ["tokens"]
    if step.tokens_per_s:
        parts.append(f"{step.tokens_per_s:,.0f} tokens/s")
    parts.append(f"{show.size(done_bytes)} of {show.size(context.n_bytes)}")
    if step.eta_s is not None:
        parts.append(f"{duration(step.eta_s)} left")
    return ", ".join(parts)
