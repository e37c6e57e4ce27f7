"""Summaries of a sectioned context, made once by the model: of each section, and over them a tree
that follows the document's own titles.

Invariant: a summary that was made is kept and never made again; a context without them, or with
some, can be asked all the same.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby

from kvasir.catalog.values import ContextRow, SectionRow
from kvasir.contexts.asking import plain_ids, tail_ids
from kvasir.contexts.batch import run_all
from kvasir.contexts.library import Library
from kvasir.contexts.outline import room_tokens, unpacked
from kvasir.core.requests import Request

Unwanted = Callable[[], bool]

_WIDTH = 8
_MAX_TOKENS = 64
_OF_SECTION = (
    "Summarise the text above in one or two sentences. Name the people, places and topics."
)
_OF_SEVERAL = (
    "These are summaries of the parts of {title}, in their order:\n\n{parts}\n\n"
    "Summarise all of it in one or two sentences."
)


@dataclass(frozen=True, slots=True)
class Branch:
    """A summary of the sections ``first`` … ``last``, which stand under the same titles."""

    title_path: tuple[str, ...]
    first: int
    last: int
    summary: str


def make(library: Library, row: ContextRow, unwanted: Unwanted) -> None:
    """Make what is missing of the summaries of ``row``. Raises ``Cancelled``."""
    _of_sections(library, row, unwanted)
    if not library.store.has_tree(row.id):
        sections = library.catalog.contexts.sections(row.id)
        branches = _branches(library, row, sections, unwanted)
        library.store.put_tree(row.id, [asdict(branch) for branch in branches])


def tree(library: Library, row: ContextRow) -> tuple[Branch, ...]:
    """The branches over the sections of ``row``, outermost titles first; none where they were not
    made."""
    return tuple(
        Branch(tuple(b["title_path"]), int(b["first"]), int(b["last"]), str(b["summary"]))
        for b in library.store.tree(row.id)
    )


def groups(sections: Sequence[SectionRow]) -> Iterator[tuple[tuple[str, ...], list[SectionRow]]]:
    """Runs of at least two sections under common titles, the innermost titles first."""
    deepest = max((len(section.title_path) for section in sections), default=0)
    for depth in range(deepest, 0, -1):
        deep = (s for s in sections if len(s.title_path) >= depth)
        for (_, path), found in groupby(deep, key=lambda s: (s.document, s.title_path[:depth])):
            members = list(found)
            if len(members) > 1:
                yield path, members


def _of_sections(library: Library, row: ContextRow, unwanted: Unwanted) -> None:
    contexts, namespace = library.catalog.contexts, library.namespace_of(row.tenant)
    missing = [s for s in contexts.sections(row.id) if s.summary is None]
    if not missing:
        return
    ids = contexts.section_tokens(row.id)
    tail = tail_ids(library, row, _OF_SECTION)
    stamp = secrets.token_hex(4)  # what was aborted before may still be known to the engine
    by_id = {f"sum-{row.id}-{stamp}-{section.index}": section for section in missing}

    def requests() -> Iterator[Request]:
        for request_id, section in by_id.items():
            yield _request(
                library, request_id, namespace, [*unpacked(ids[section.index]), *tail], _MAX_TOKENS
            )

    for done in run_all(library.engine, requests(), width=_WIDTH, cancelled=unwanted):
        if done.problem:
            continue  # it has none then, which is no reason to fail
        text = library.codec.tokenizer.decode(done.tokens)
        contexts.set_summary(row.id, by_id[done.request.id].index, " ".join(text.split()))


def _branches(
    library: Library, row: ContextRow, sections: Sequence[SectionRow], unwanted: Unwanted
) -> list[Branch]:
    """Level by level: a branch's parts are the branches and sections right below it."""
    made: dict[tuple[int, int], Branch] = {}
    for depth_path, members in groups(sections):
        parts = _parts_below(members, made)
        text = _summary(library, row, " > ".join(depth_path), parts, unwanted)
        first, last = members[0].index, members[-1].index
        made[first, last] = Branch(depth_path, first, last, text)
    return sorted(made.values(), key=lambda branch: (len(branch.title_path), branch.first))


def _parts_below(members: Sequence[SectionRow], made: dict[tuple[int, int], Branch]) -> list[str]:
    parts: list[str] = []
    at = members[0].index
    by_index = {section.index: section for section in members}
    while at <= members[-1].index:
        widest = max(
            (b for b in made.values() if b.first == at), key=lambda b: b.last, default=None
        )
        if widest is not None and widest.last <= members[-1].index:
            parts.append(widest.summary)
            at = widest.last + 1
        else:
            parts.append((by_index[at].summary or "") if at in by_index else "")
            at += 1
    return [part for part in parts if part]


def _summary(
    library: Library, row: ContextRow, title: str, parts: Sequence[str], unwanted: Unwanted
) -> str:
    """One summary of several, in levels where they do not fit the window together."""
    window = library.card.window
    most = window - room_tokens(window)
    while len(parts) > 1:
        lengths = library.codec.tokenizer.count(parts)
        joined: list[str] = []
        for number, group in enumerate(fitting(parts, lengths, most - 2 * _MAX_TOKENS)):
            question = _OF_SEVERAL.format(title=title, parts="\n".join(f"- {p}" for p in group))
            request = _request(
                library,
                f"sum-{row.id}-{secrets.token_hex(4)}-{len(parts)}-{number}",
                library.namespace_of(row.tenant),
                plain_ids(library, question),
                _MAX_TOKENS,
            )
            for done in run_all(library.engine, [request], width=1, cancelled=unwanted):
                text = "" if done.problem else library.codec.tokenizer.decode(done.tokens)
                joined.append(" ".join(text.split()))
        if len(joined) >= len(parts):
            break
        parts = joined
    return parts[0] if parts else ""


def fitting(items: Sequence[str], lengths: Sequence[int], most: int) -> Iterator[list[str]]:
    """``items`` in groups of at most ``most`` tokens; one that is longer is a group by itself."""
    group: list[str] = []
    size = 0
    for item, length in zip(items, lengths, strict=True):
        if group and size + length > most:
            yield group
            group, size = [], 0
        group.append(item)
        size += length
    if group:
        yield group


def _request(
    library: Library, request_id: str, namespace: bytes, ids: Sequence[int], max_tokens: int
) -> Request:
    return Request(
        id=request_id,
        namespace=namespace,
        tokens=ids,
        max_tokens=max_tokens,
        stop_token_ids=library.codec.tokenizer.eos_ids,
        transient=True,
    )
