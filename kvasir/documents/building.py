"""Builds a document piece by piece: text with its pages, headings and what was not read.

Invariant: what is built satisfies ``values.check``, is encodable as UTF-8, holds no NUL, and was
charged to the allowance. Text is changed no further than that and ``\\n`` for line ends.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from kvasir.documents.allowance import Allowance
from kvasir.documents.values import Document, Heading, Page, Unread

MAX_TITLE_CHARS = 200
MAX_LABEL_CHARS = 40
MAX_REASON_CHARS = 400
_SPACE = re.compile(r"\s+")


def normalised(text: str) -> str:
    """``text`` with ``\\n`` line ends, without NUL and lone surrogates."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # joins pairs of surrogates, replaces single ones
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def one_line(text: str, most: int) -> str:
    """``text`` on one line, of at most ``most`` characters and an ellipsis where it was longer."""
    if len(text) > 4 * most:
        text = text[: 4 * most]
    text = _SPACE.sub(" ", normalised(text)).strip()
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def limited(unread: Iterable[Unread], most: int) -> tuple[Unread, ...]:
    """The first ``most`` of ``unread``; the last one says how many more there are."""
    rows = list(unread)
    if len(rows) > most:
        more = len(rows) - most + 1
        rows[most - 1 :] = [Unread(None, rows[most - 1].what, f"and {more:,} more like this")]
    return tuple(rows)


class Builder:
    """A document that is being built. For one thread."""

    def __init__(self, name: str, media_type: str, allowance: Allowance) -> None:
        self.name = name
        self.media_type = media_type
        self.allowance = allowance
        self.encoding: str | None = None
        self._parts: list[str] = []
        self._length = 0
        self._pages: list[Page] = []
        self._page: tuple[str, int] | None = None  # label and start of the page being filled
        self._headings: list[Heading] = []
        self._unread: list[Unread] = []
        self._more_headings = 0

    @property
    def length(self) -> int:
        """Characters so far: the offset of what is added next."""
        return self._length

    def add(self, text: str) -> None:
        """Append ``text``. Raises ``Exhausted`` where that is more than is left."""
        text = normalised(text)
        self.allowance.charge_text(len(text.encode("utf-8")))
        self._parts.append(text)
        self._length += len(text)

    def start_page(self, label: str) -> None:
        """What is added from now on is on the next page; what came before any page is on it too."""
        self._end_page()
        start = self._length if self._pages else 0
        self._page = (one_line(label, MAX_LABEL_CHARS), start)

    def _end_page(self) -> None:
        if self._page is not None:
            label, start = self._page
            number = len(self._pages)
            self._pages.append(Page(number, label or str(number + 1), start, self._length))

    def heading(self, level: int, title: str, start: int | None = None) -> None:
        """A heading of what begins at ``start``, else of what is added next. An empty title is
        none."""
        title = one_line(title, MAX_TITLE_CHARS)
        if not title:
            return
        if len(self._headings) >= self.allowance.limits.headings:
            self._more_headings += 1
            return
        at = self._length if start is None else start
        self._headings.append(Heading(max(1, min(level, 99)), title, at))

    def unread(self, what: str, reason: str, page: int | None = None) -> None:
        """Note something that is not in the text."""
        self._unread.append(Unread(page, what, one_line(reason, MAX_REASON_CHARS)))

    def document(self) -> Document:
        """The document. Whatever was added belongs to its pages, if there are any."""
        self._end_page()
        self._page = None
        if self._more_headings:
            self.unread("heading", f"{self._more_headings:,} further headings are not listed")
        return Document(
            name=self.name,
            media_type=self.media_type,
            text="".join(self._parts),
            pages=tuple(self._pages) or (Page(0, "1", 0, self._length),),
            headings=tuple(sorted(self._headings, key=lambda heading: heading.start)),
            unread=limited(self._unread, self.allowance.limits.unread),
            paged=bool(self._pages),
            encoding=self.encoding,
        )
