"""What of the stored KV a model could use, and what it would cost to compute the rest again.

Invariant: only headers are read and nothing is changed, so this may run beside a server.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from kvasir.cli import show
from kvasir.core.config import Config
from kvasir.core.realm import Realm
from kvasir.engine.storage import disk_cap, stored_folder
from kvasir.tiers.folder import Folder, RealFolder
from kvasir.tiers.record import PRELUDE, VERSION, Damaged, Record, decode_header, differs_in
from kvasir.tiers.record import header_size as size_of_header

_SUFFIX = ".kv"


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
    records: list[Record] = []
    unreadable = 0
    if folder.is_dir():
        try:
            with contextlib.closing(RealFolder(folder)) as opened:
                for found in _headers(opened):
                    if found is None:
                        unreadable += 1
                    else:
                        records.append(found)
        except OSError as error:
            report["problem"] = f"it cannot be read: {error.strerror or error}"
    return report | {
        "unreadable": unreadable,
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


def _headers(folder: Folder) -> Iterator[Record | None]:
    """The header of every record in ``folder``; None for a file that is no whole record. Those that
    are removed meanwhile are passed over."""
    for name in _names(folder):
        if not name.endswith(_SUFFIX):
            continue  # one that is being written
        try:
            yield _header(folder, name)
        except FileNotFoundError:
            continue
        except (Damaged, OSError):
            yield None


def _names(folder: Folder) -> list[str]:
    """Its names; listing fails where a file goes just then, so it is tried again."""
    for _ in range(20):
        with contextlib.suppress(FileNotFoundError):
            return [name for name, _ in folder.names()]
    return [name for name, _ in folder.names()]


def _header(folder: Folder, name: str) -> Record:
    with folder.open(name) as file:

        def first(n_bytes: int) -> bytes:
            if n_bytes > file.size:
                raise Damaged("it is shorter than its header")
            data = bytearray(n_bytes)
            if file.read(0, memoryview(data)) != n_bytes:
                raise Damaged("it ends within its header")
            return bytes(data)

        record, _ = decode_header(first(size_of_header(first(PRELUDE.size))))
        if record.file_bytes != file.size or name != record.name + _SUFFIX:
            raise Damaged("it is not the file that its header speaks of")
        return record


def _sums_line(what: str, sums: dict[str, Any]) -> str:
    records, tokens = show.count(sums["records"], "record"), show.count(sums["tokens"], "token")
    return f"{what}: {records}, {tokens}, {show.size(sums['bytes'])}"


def _again(sums: dict[str, Any]) -> str:
    """What computing it again would take, as far as the records say."""
    if sums["unsaid_records"] == sums["records"]:
        return "they do not say how long computing them again takes"
    rest = f", {sums['unsaid_records']:,} not counted" if sums["unsaid_records"] else ""
    return f"computing them again takes about {sums['compute_s']:,.0f} s{rest}"
