"""Rows as columns, for people."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence


def columns(rows: Sequence[Sequence[str]], *, right: Collection[int] = ()) -> str:
    """``rows`` as columns, some of them aligned on their right."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if at in right else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def moment(time_s: float | None) -> str:
    """A time to the minute, nothing for none."""
    return "" if time_s is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(time_s))
