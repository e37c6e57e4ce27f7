"""Contexts in columns and words, for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kvasir.cli import show
from kvasir.cli.columns import columns, moment
from kvasir.cli.context_client import Context
from kvasir.cli.receipts import duration, kept_text, unread_lines

_NOTHING = "there are no contexts; `kvasir read FILE` makes one"
_MOST_TITLE_CHARS = 60
_ALL = 10**9


def list_text(found: Sequence[Context]) -> str:
    """A line for each context."""
    if not found:
        return _NOTHING
    head = ("name", "status", "tokens", "sections", "size", "kept", "last asked", "not read")
    return columns([head, *(_row(context) for context in found)], right={2, 3, 4})


def _row(context: Context) -> tuple[str, ...]:
    until = "pinned" if context.pinned else f"until {moment(context.until)}"
    if context.until is None and not context.pinned:
        until = "until removed"
    return (
        context.called,
        status_text(context),
        f"{context.tokens:,}",
        f"{context.sections:,}" if context.sectioned else "whole",
        show.size(context.n_bytes) if context.kept != "text" else "",
        f"{context.kept}, {until}",
        moment(context.last_active_at) if context.requests else "never",
        f"{len(context.unread):,}" if context.unread else "",
    )


def status_text(context: Context) -> str:
    """How far it is."""
    if context.status == "in_progress":
        return f"reading, {context.processed * 100 // max(1, context.tokens)} %"
    return context.status


def show_text(context: Context) -> str:
    """All about one."""
    parts = (
        f"{context.sections:,} sections, each read by itself: it is longer than the window"
        if context.sectioned
        else "one, read whole"
    )
    asked = (
        f"{show.count(context.requests, 'time')}, last {moment(context.last_active_at)}"
        if context.requests
        else "never"
    )
    raw = context.raw
    rows = [
        ("name", context.name or ""),
        ("id", context.id),
        ("status", status_text(context) + (f": {context.error}" if context.error else "")),
        ("model", f"{context.model}, KV in {raw['kv']['dtype']}"),
        ("made", f"{moment(context.created_at)}, {context.origin}"),
        ("text", f"{raw['chars']:,} characters, {context.tokens:,} tokens"),
        ("parts", parts),
        (
            "read",
            f"in {duration(context.read_s)}: {context.computed:,} tokens computed, "
            f"{context.reused:,} kept already"
            if context.kept != "text"
            else "whenever it is asked",
        ),
        ("stored", kept_text(context).removeprefix("kept ")),
        ("asked", asked),
    ]
    if raw["parent"]:
        rows.append(("forked from", raw["parent"]))
    rows += [(f"  {key}", value) for key, value in raw["metadata"].items()]
    lines = [columns(rows)]
    lines += unread_lines(context.unread, most=_ALL) or ["everything was read"]
    return "\n".join(lines)


def sections_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for each section, and its summary below."""
    if not rows:
        return "it has no sections"
    head = ("", "title", "pages", "tokens", "")
    table = columns([head, *(_section_row(row) for row in rows)], right={0, 2, 3}).splitlines()
    lines = [table[0]]
    for line, row in zip(table[1:], rows, strict=True):
        lines.append(line)
        if row["summary"]:
            lines.append(f"      {row['summary']}")
    return "\n".join(lines)


def _section_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    title = " > ".join(row["title_path"])
    if len(title) > _MOST_TITLE_CHARS:
        title = f"{title[: _MOST_TITLE_CHARS - 1]}…"
    return (
        f"{row['index'] + 1}",
        title,
        _pages(row["first_page"] + 1, row["last_page"] + 1),
        f"{row['tokens']:,}",
        "" if row["read"] else "not read yet",
    )


def _pages(first: int, last: int) -> str:
    return f"{first}" if first == last else f"{first}-{last}"


def implicit_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for each text that is kept without being a context."""
    if not rows:
        return "no text is kept beside contexts"
    head = ("tokens", "size", "kept", "last asked", "begins")
    return columns(
        [
            head,
            *(
                (
                    f"{row['tokens']:,}",
                    show.size(row["bytes"]),
                    row["tier"],
                    moment(row["last_active_at"]),
                    _begins(row["preview"]),
                )
                for row in rows
            ),
        ],
        right={0, 1},
    )


def _begins(preview: str) -> str:
    text = " ".join("".join(c if c.isprintable() else " " for c in preview).split())
    return text if len(text) <= _MOST_TITLE_CHARS else f"{text[: _MOST_TITLE_CHARS - 1]}…"
