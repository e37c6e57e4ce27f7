"""What commands print: numbers for people, the progress of reading, what an answer took.

Invariant: everything here goes to stderr; stdout carries answers alone.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator

from kvasir.cli.client import AnswerEnd, ReadProgress

Update = Callable[[int, int], None]  # called with what is done and the total
Counted = Callable[[int, str], None]  # called with what is done and what came of it

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and line feed
_GIB = 2**30
_MIB = 2**20
_KIB = 2**10


def size(n_bytes: float) -> str:
    """``n_bytes`` in KiB, MiB or GiB."""
    if n_bytes >= _GIB:
        return f"{n_bytes / _GIB:,.1f} GiB"
    return f"{n_bytes / _MIB:,.0f} MiB" if n_bytes >= _MIB else f"{n_bytes / _KIB:,.0f} KiB"


def count(n: int, noun: str) -> str:
    """``n`` of what ``noun`` names in the singular."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def printable(text: str) -> str:
    """``text`` without control characters: a document may say anything, and not to a terminal."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def note(text: str) -> None:
    """A line on stderr."""
    print(printable(text), file=sys.stderr, flush=True)


@contextlib.contextmanager
def bar(what: str, unit: str = "tokens") -> Iterator[Update]:
    """A progress bar on a terminal, nothing elsewhere. The block calls it with done and total;
    it disappears at the end of the block."""
    if not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} " + unit),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    task = progress.add_task(what, total=None, visible=False)
    with progress:
        yield lambda done, total: progress.update(task, completed=done, total=total, visible=True)


@contextlib.contextmanager
def counted(what: str, total: int) -> Iterator[Counted]:
    """A bar on a terminal that is told how many of ``total`` are done and what came of them,
    nothing elsewhere; it disappears at the end of the block."""
    if not sys.stderr.isatty():
        yield lambda _done, _words: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f}{task.fields[words]}"),
        console=Console(stderr=True),
        transient=True,
    )
    task = progress.add_task(what, total=total, words="")
    with progress:
        yield lambda done, words: progress.update(task, completed=done, words=f" {words}")


@contextlib.contextmanager
def working(what: str) -> Iterator[None]:
    """On a terminal a line that says that ``what`` goes on, gone at the end of the block."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield


class ReadingBar:
    """The bar of one prompt: there while it is read, gone before the first piece of text."""

    def __init__(self, what: str) -> None:
        self._open = contextlib.ExitStack()
        self._update = self._open.enter_context(bar(what))

    def __enter__(self) -> ReadingBar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, progress: ReadProgress) -> None:
        """Draw ``progress``."""
        self._update(progress.processed_tokens, progress.total_tokens)

    def close(self) -> None:
        """Take the bar away; a second call does nothing."""
        self._open.close()


def took(end: AnswerEnd, *, first_text_s: float | None, total_s: float) -> str:
    """What was computed, what was reused, and how long it took, in one line."""
    read_s = total_s if first_text_s is None else first_text_s
    line = (
        f"{end.prompt_tokens:,} tokens read in {read_s:.1f} s: {end.computed_tokens:,} computed, "
        f"{end.reused_tokens:,} reused"
    )
    if end.disk_tokens:
        line += f" ({end.disk_tokens:,} from disk)"
    if end.reused_tokens == 0 and end.miss:
        line += f" ({end.miss.replace('_', ' ')})"
    generate_s = total_s - read_s
    line += f"; {end.completion_tokens:,} tokens answered in {generate_s:.1f} s"
    if end.finish_reason == "length":
        line += " (cut by --max-tokens or the window)"
    return line
