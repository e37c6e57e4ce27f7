"""What commands say of contexts: receipts, forecasts, what was not read. Words alone.

Invariant: everything that was not read is counted, also where not every row is shown.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from itertools import groupby

from kvasir.cli import show
from kvasir.cli.client import in_lines
from kvasir.cli.columns import moment
from kvasir.cli.context_client import Context, Forecast, Unread

_MOST_ROWS = 12  # of what was not read; `kvasir contexts show` has all
_MINUTE_S = 60
_HOUR_S = 3600


def receipt_text(context: Context, *, existed: bool = False, again: str = "") -> str:
    """What was read, where it is kept, until when and what that survives, and how to go on.

    ``existed`` says that it was there already, complete; ``again`` is the question's command.
    """
    lines = [_headline(context, existed)]
    if context.sectioned:
        sections = show.count(context.sections, "section")
        lines.append(f"  longer than the window, so it is {sections}, each read by itself")
    lines += [f"  {line}" for line in (kept_text(context), *unread_lines(context.unread))]
    ask = again or f'kvasir ask --context {shlex.quote(context.called)} "QUESTION"'
    return "\n".join([*lines, f"  to ask: {ask}"])


def short_receipt(context: Context) -> str:
    """The same in one line, for a question that needed the reading."""
    parts = f" in {show.count(context.sections, 'section')}" if context.sectioned else ""
    read = f" read in {duration(context.read_s)}" if context.kept != "text" else ""
    line = f"{context.called}: {context.tokens:,} tokens{parts}{read}; {kept_text(context)}"
    missing = len(context.unread)
    if missing:
        name = shlex.quote(context.called)
        line += f"; {_things(missing)} not read (kvasir contexts show {name})"
    return line


def _headline(context: Context, existed: bool) -> str:
    if existed:
        return (
            f"{context.called} is there already: {context.tokens:,} tokens, read "
            f"{moment(context.created_at)}; nothing had to be computed"
        )
    if context.kept == "text":
        return f"{context.called} is laid out: {context.tokens:,} tokens"
    return (
        f"{context.called} is read: {context.tokens:,} tokens in {duration(context.read_s)} "
        f"({context.computed:,} computed, {context.reused:,} kept already)"
    )


def kept_text(context: Context) -> str:
    """Where, how long, and what that survives."""
    size = show.size(context.n_bytes)
    until = until_text(context)
    if context.kept == "text":
        return f"its text alone is kept, {until}; a question computes what it needs"
    if context.kept == "memory":
        return (
            f"kept in memory alone ({size}), {until} at the longest: gone when the server ends or "
            "memory is needed"
        )
    return f"kept on disk ({size}), {until}; {_survives(context)}"


def until_text(context: Context) -> str:
    """Until when it is kept."""
    if context.pinned:
        return "pinned until it is unpinned or removed"
    if context.until is None:
        return "until it is removed"
    return f"until {moment(context.until)}"


def _survives(context: Context) -> str:
    survived = [
        what
        for what, does in (
            ("a restart", context.survives_restart),
            ("memory pressure", context.survives_pressure),
        )
        if does
    ]
    return f"survives {' and '.join(survived)}" if survived else "survives no restart"


def stopped_text(context: Context, processed: int) -> str:
    """What is kept of a reading that was ended early, of which ``processed`` tokens were read."""
    kept_bytes = context.n_bytes * processed // max(1, context.tokens)
    name = shlex.quote(context.called)
    return (
        f"stopped: {processed:,} of {context.tokens:,} tokens are read and kept "
        f"({show.size(kept_bytes)})\n"
        "the same command goes on from there\n"
        f"kvasir contexts rm {name} forgets it"
    )


def forecast_text(name: str, forecast: Forecast) -> str:
    """What a dry run has found."""
    parts = (
        f"longer than the window: {show.count(forecast.sections, 'section')}"
        if forecast.sectioned
        else "fits the window whole"
    )
    lines = [f"{name}: {forecast.tokens:,} tokens, {parts}"]
    if forecast.existing is not None:
        lines.append(f"  it is there already: {forecast.existing}")
    lines.append(f"  reading it takes about {duration(forecast.read_s)}, were nothing of it known")
    if forecast.sectioned:
        lines.append(
            f"  a question to all of its sections takes about {duration(forecast.sweep_s)}"
        )
    room = "there is room for it" if forecast.fits else "there is no room for it"
    lines.append(f"  its KV takes {show.size(forecast.n_bytes)}; {room}")
    if forecast.refusal:
        lines += [f"  {line}" for line in refusal_words(forecast.refusal).splitlines()]
    lines += [f"  {line}" for line in unread_lines(forecast.unread)]
    return "\n".join([*lines, "nothing was done"])


def refusal_words(message: str) -> str:
    """Why there is no room, in lines and with the words of the command line."""
    return in_lines(message.replace('keep: "text"', "--keep text"))


def unread_lines(unread: Sequence[Unread], most: int = _MOST_ROWS) -> list[str]:
    """What was not read and why, pages with the same reason together; nothing where all was."""
    if not unread:
        return []
    rows = []
    ordered = sorted(
        unread,
        key=lambda u: (u.document or "", u.what, u.reason, u.page is None, u.page or 0),
    )
    for (document, what, reason, _), found in groupby(
        ordered, key=lambda u: (u.document, u.what, u.reason, u.page is None)
    ):
        members = list(found)
        pages = [u.page for u in members if u.page is not None]
        times = "" if pages or len(members) == 1 else f" ({len(members):,} times)"
        where = document or ""
        if pages:
            where = _pages(pages) + (f" of {document}" if document else "")
        thing = "" if what == "page" and pages else f"{what}{times}"
        subject = ", ".join(part for part in (where, thing) if part)
        rows.append((min(pages, default=-1), f"  {subject}: {reason}"))
    shown = [row for _, row in sorted(rows, key=lambda row: row[0])]
    lines = [f"not read: {_things(len(unread))}", *shown[:most]]
    if len(shown) > most:
        lines.append(f"  and {len(shown) - most:,} more kinds (kvasir contexts show has all)")
    return lines


def _things(n: int) -> str:
    return "1 thing" if n == 1 else f"{n:,} things"


def _pages(pages: Iterable[int]) -> str:
    """Indexes of pages as people count them: page 3, pages 3-5, 9."""
    numbers = sorted({page + 1 for page in pages})
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    spans = [str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs]
    if not spans:
        return ""
    return ("page " if len(numbers) == 1 else "pages ") + ", ".join(spans)


def duration(seconds: float) -> str:
    """``seconds`` for people."""
    if seconds < _MINUTE_S:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < _HOUR_S:
        return f"{whole // _MINUTE_S} min {whole % _MINUTE_S} s"
    return f"{whole // _HOUR_S} h {whole % _HOUR_S // _MINUTE_S} min"
