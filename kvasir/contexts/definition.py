"""What a context is made of, and its fingerprint: equal content on an equal model is one context.

Invariant: the fingerprint covers everything that the context's token ids depend on, and nothing
else: not its name, its owner, its expiry.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kvasir.contexts.layout import LAYOUT, Message
from kvasir.core.realm import Realm
from kvasir.documents.values import Document, check, check_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """Everything that decides a context's text. ``turns`` are messages after the documents;
    ``section_tokens`` is the size of sections, where the documents need any."""

    documents: tuple[Document, ...]
    instructions: str | None = None
    turns: tuple[Message, ...] = ()
    section_tokens: int

    @property
    def n_chars(self) -> int:
        """Characters of all documents."""
        return sum(len(document.text) for document in self.documents)

    def fingerprint(self, realm: Realm) -> str:
        """Its identity on a model: "sha256:" and 64 hexadecimal digits."""
        digest = hashlib.sha256(realm.id)
        rest = {
            "layout": LAYOUT,
            "instructions": self.instructions,
            "turns": [[turn["role"], turn["content"]] for turn in self.turns],
            "section_tokens": self.section_tokens,
        }
        _feed(digest, json.dumps(rest, sort_keys=True))
        for document in self.documents:
            _feed(digest, document.name)
            _feed(digest, document.text)
            # where sections are cut, and what their headers say
            pages = [asdict(page) for page in document.pages]
            _feed(digest, json.dumps([document.paged, pages]))
            _feed(digest, json.dumps([asdict(heading) for heading in document.headings]))
        return f"sha256:{digest.hexdigest()}"

    def to_json(self) -> dict[str, Any]:
        """As numbers, strings, lists and objects; ``from_json`` gives the same value again."""
        return {
            "layout": LAYOUT,
            "documents": [document.to_json() for document in self.documents],
            "instructions": self.instructions,
            "turns": [dict(turn) for turn in self.turns],
            "section_tokens": self.section_tokens,
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Definition:
        """The definition that ``to_json`` wrote. Raises ``ValueError`` for anything else."""
        try:
            if data["layout"] != LAYOUT:
                raise ValueError(f"layout {data['layout']!r} is not {LAYOUT}, which is spoken here")
            documents = tuple(Document.from_json(each) for each in data["documents"])
            instructions, section_tokens = data["instructions"], data["section_tokens"]
            turns = _turns(data["turns"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"this is not the definition of a context: {error}") from error
        if instructions is not None:
            check_text(instructions)
        if type(section_tokens) is not int or section_tokens < 1:
            raise ValueError("its section_tokens are no number of tokens")
        for document in documents:
            check(document)
        return Definition(
            documents=documents,
            instructions=instructions,
            turns=turns,
            section_tokens=section_tokens,
        )


def _turns(data: Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    turns = tuple({"role": t["role"], "content": t["content"]} for t in data)
    roles = [turn["role"] for turn in turns]
    check_text(*(turn["content"] for turn in turns))
    if any(role not in ("user", "assistant") for role in roles) or roles[:1] == ["assistant"]:
        raise ValueError("its turns are not those of a user and an assistant")
    return turns


def _feed(digest: hashlib._Hash, text: str) -> None:
    encoded = text.encode("utf-8", errors="surrogatepass")
    digest.update(len(encoded).to_bytes(8, "little") + encoded)
