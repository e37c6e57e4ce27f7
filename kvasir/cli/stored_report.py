"""What of the stored KV a model could use, and what it would cost to compute the rest again.

Invariant: only headers are read and nothing is changed, so this may run beside a server.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

from kvasir.cli import show
from kvasir.core.config import Config
from kvasir.core.realm import Realm
from kvasir.engine.storage import disk_cap, stored_folder
from kvasir.tiers.folder import RealFolder
from kvasir.tiers.record import VERSION, Record, differs_in
from kvasir.tiers.record_file import Found, Kind, look


def stored_report(config: Config, realm: Realm | None) -> dict[str, Any]:
    """What lies in the home's folder of stored KV, as plain values: sums, and what of it is of
    which use in ``realm`` (None: not known, because no model could be looked at)."""
    folder, cap = stored_folder(config), disk_cap(config)
    report: dict[str, Any] = {
        "folder": str(folder),
        "cap_bytes": cap.n_bytes,
        "cap_reason": cap.reason,
        "problem": None,
    }
    files: list[Found] = []
    if folder.is_dir():
        try:
            with contextlib.closing(RealFolder(folder)) as opened:
                files.extend(look(opened))
        except OSError as error:
            report["problem"] = f"it cannot be read: {error.strerror or error}"
    records = [found.record for found in files if found.record is not None]
    newer = [found.n_bytes for found in files if found.kind is Kind.NEWER]
    return report | {
        "unreadable": sum(found.kind is Kind.DAMAGED for found in files),
        "newer_format": {"files": len(newer), "bytes": sum(newer)},
        "all": _sums(records),
        "older_format": _sums([record for record in records if record.version < VERSION]),
        "usable": None,
        "of_no_use": None,
        **({} if realm is None else _by_use(records, realm)),
    }


def stored_lines(report: dict[str, Any]) -> list[str]:
    """The report for people."""
    everything = report["all"]
    lines = [
        report["folder"],
        f"cap {show.size(report['cap_bytes'])}, {report['cap_reason']}",
        _sums_line("stored", everything),
    ]
    if report["problem"]:
        lines.append(report["problem"])
    if report["unreadable"]:
        files = show.count(report["unreadable"], "file")
        lines.append(f"{files} of no use: no whole records; the next start drops them")
    newer = report["newer_format"]
    if newer["files"]:
        lines.append(
            f"in a format after version {VERSION}: {show.count(newer['files'], 'file')}, "
            f"{show.size(newer['bytes'])}; left to the newer Kvasir that wrote it, and counts "
            "towards the cap"
        )
    if not everything["records"]:
        return lines
    older = report["older_format"]
    if older["records"]:
        lines.append(
            _sums_line(f"in the format before version {VERSION}", older)
            + "; it is read as it is, and will not be once there is another format"
        )
    if report["usable"] is None:
        return [*lines, "what of it is of use is not known without the model"]
    lines.append(_sums_line("usable as it would run now", report["usable"]))
    return [*lines, *(_useless_line(group) for group in report["of_no_use"])]


def _useless_line(group: dict[str, Any]) -> str:
    what = f"of no use, computed with other {' and '.join(group['differs_in'])}"
    return f"{_sums_line(what, group)}; {_again(group)}"


def _by_use(records: Iterable[Record], realm: Realm) -> dict[str, Any]:
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(differs_in(record, realm), []).append(record)
    usable = groups.pop((), [])
    return {
        "usable": _sums(usable),
        "of_no_use": [
            {"differs_in": list(parts), **_sums(its)} for parts, its in sorted(groups.items())
        ],
    }


def _sums(records: Iterable[Record]) -> dict[str, Any]:
    """``compute_s`` is what the records say that say it; ``unsaid_records`` do not."""
    listed = list(records)
    return {
        "records": len(listed),
        "tokens": sum(len(record.tokens) for record in listed),
        "bytes": sum(record.file_bytes for record in listed),
        "compute_s": sum(record.compute_s for record in listed),
        "unsaid_records": sum(not record.compute_s for record in listed),
    }


def _sums_line(what: str, sums: dict[str, Any]) -> str:
    records, tokens = show.count(sums["records"], "record"), show.count(sums["tokens"], "token")
    return f"{what}: {records}, {tokens}, {show.size(sums['bytes'])}"


def _again(sums: dict[str, Any]) -> str:
    """What computing it again would take, as far as the records say."""
    if sums["unsaid_records"] == sums["records"]:
        return "they do not say how long computing them again takes"
    rest = f", {sums['unsaid_records']:,} not counted" if sums["unsaid_records"] else ""
    return f"computing them again takes about {sums['compute_s']:,.0f} s{rest}"
