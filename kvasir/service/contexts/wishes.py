"""From a request's body to the context that it asks for: files looked up, texts made documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kvasir.catalog.values import ContextRow
from kvasir.contexts import filing
from kvasir.contexts.creating import Wanted
from kvasir.contexts.definition import Definition
from kvasir.contexts.layout import Message as Turn
from kvasir.contexts.library import Library
from kvasir.contexts.outline import default_section_tokens
from kvasir.contexts.promise import NoRoom, disk
from kvasir.core.errors import RequestError
from kvasir.documents.limits import MIB
from kvasir.documents.values import Document, Page
from kvasir.service.contexts.bodies import ContextRequest, ForkRequest, InputItem
from kvasir.service.schemas import Message

MOST_CHARS = 128 * MIB  # of all documents of a context: as many as one file may give


def wanted_of(library: Library, tenant: str, body: ContextRequest) -> Wanted:
    """What ``body`` asks for. Raises ``RequestError`` where a file is not there or is no text, and
    ``NoRoom`` where it has to be on a disk that there is not."""
    if body.tier == "disk" and body.keep == "kv" and disk(library) is None:
        raise NoRoom(
            "Nothing can be kept on disk: this server has no disk tier, or it has failed. Start it "
            "with --disk-gib above 0, or leave tier out; it is kept in memory then, for as long "
            "as the server runs and has room."
        )
    documents, file_ids, unread = _documents(library, tenant, body.input, body.file_ids)
    definition = Definition(
        documents=documents,
        instructions=body.instructions or None,
        turns=_turns(body.messages),
        section_tokens=body.section_tokens or default_section_tokens(library.card.window),
    )
    return Wanted(
        tenant=tenant,
        definition=definition,
        name=body.name,
        keep=body.keep,
        pinned=bool(body.pinned),
        expiry=body.expiry,
        summaries=body.summaries,
        metadata=body.metadata or {},
        file_ids=file_ids,
        unread=unread,
    )


def fork_of(library: Library, parent: ContextRow, body: ForkRequest) -> Wanted:
    """The child of ``parent`` that ``body`` asks for: what it adds stands behind all of the
    parent's. Raises ``RequestError``."""
    before = library.definition(parent)
    documents, file_ids, unread = _documents(
        library, parent.tenant, body.input, body.file_ids, before.n_chars
    )
    if documents and before.turns:
        raise RequestError(
            "This context has turns behind its documents, so a further document would stand before "
            "what was said already. Fork the context that has the documents alone.",
            param="input",
        )
    turns = _turns(body.messages)
    instructions = body.instructions or before.instructions
    if not documents and not turns and instructions == before.instructions:
        raise RequestError(
            "This fork adds nothing, so it would be the same context. Give it files, text, turns "
            "or other instructions; PATCH renames a context.",
            param="input",
        )
    definition = Definition(
        documents=(*before.documents, *documents),
        instructions=instructions,
        turns=(*before.turns, *turns),
        section_tokens=before.section_tokens,
    )
    return Wanted(
        tenant=parent.tenant,
        definition=definition,
        name=body.name,
        keep=parent.keep,
        pinned=bool(body.pinned),
        expiry=body.expiry,
        summaries=bool(parent.definition.get("summaries")),
        metadata=body.metadata or {},
        file_ids=(*parent.file_ids, *file_ids),
        unread=(*(u for u in parent.unread if u.get("document") is None), *unread),
        parent=parent.id,
        origin="fork",
    )


def _documents(
    library: Library,
    tenant: str,
    items: Sequence[InputItem],
    file_ids: Sequence[str],
    n_chars: int = 0,
) -> tuple[tuple[Document, ...], tuple[str, ...], tuple[Mapping[str, Any], ...]]:
    """The documents of ``items`` and of the files behind them; ids of files; what was not read.
    They follow documents of ``n_chars`` characters."""
    documents: list[Document] = []
    files: list[str] = []
    unread: list[Mapping[str, Any]] = []
    sources: list[InputItem | str] = [*items, *file_ids]
    for number, item in enumerate(sources, start=1):
        if isinstance(item, InputItem) and item.type == "input_text":
            n_chars += len(item.text or "")
            _check_size(n_chars)
            documents.append(_text(item, number))
            continue
        file_id = item if isinstance(item, str) else item.file_id or ""
        row = filing.find(library, tenant, file_id)
        n_chars += row.n_chars
        _check_size(n_chars)  # before its text is in memory; a file may be named many times
        extraction = filing.extracted(library, row)
        documents += extraction.documents
        files.append(row.id)
        unread += [each for each in row.unread if each.get("document") is None]
    return tuple(documents), tuple(files), tuple(unread)


def _check_size(n_chars: int) -> None:
    if n_chars > MOST_CHARS:
        raise RequestError(
            f"Together the documents have more than the {MOST_CHARS:,} characters that a context "
            "may have. Make several contexts of them.",
            param="input",
        )


def _text(item: InputItem, number: int) -> Document:
    text = item.text or ""
    return Document(
        name=item.title or f"text {number}",
        media_type="text/plain",
        text=text,
        pages=(Page(0, "1", 0, len(text)),),
    )


def _turns(messages: Sequence[Message]) -> tuple[Turn, ...]:
    turns = tuple({"role": m.role, "content": m.content} for m in messages)
    if any(turn["role"] not in ("user", "assistant") for turn in turns):
        raise RequestError(
            "Turns behind documents are the user's and the assistant's; what the system says is "
            "the field instructions.",
            param="messages",
        )
    if turns and turns[0]["role"] != "user":
        raise RequestError("The first turn must be the user's.", param="messages")
    return turns
