"""What everything about contexts works with, as one frozen value; and whose a context is.

Invariant: a namespace is made from the tenant's name and the home's secret, by the one function
that is given here; nothing in a request can change it.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from kvasir.catalog.catalog import Catalog
from kvasir.catalog.values import ContextRow, SectionRow
from kvasir.contexts.definition import Definition
from kvasir.contexts.store import StoreBroken, TextStore
from kvasir.core.costs import StepCosts
from kvasir.core.errors import RequestError
from kvasir.core.geometry import KvGeometry, ModelCard
from kvasir.core.ports import Engine
from kvasir.text.codec import TextCodec

_ID_BYTES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """The served model, the catalog and the texts. Thread-safe; holds no state of its own.

    ``turn`` is held by whoever decides something about contexts from what there is of them: that
    one is new, that there is room for it, that its time is over.
    """

    engine: Engine
    codec: TextCodec
    card: ModelCard
    geometry: KvGeometry
    catalog: Catalog
    store: TextStore
    namespace_of: Callable[[str], bytes] = field(repr=False)
    now_s: Callable[[], float] = time.time
    turn: threading.RLock = field(default_factory=threading.RLock, repr=False, compare=False)

    def now(self) -> int:
        """Unix time in whole seconds."""
        return int(self.now_s())

    def costs(self) -> StepCosts:
        """What computing costs, as the engine has learnt it so far."""
        match self.engine.status().cost_coefficients:
            case (a, b, c, d, e):
                return StepCosts((a, b, c, d, e))
        return StepCosts()

    def definition(self, row: ContextRow) -> Definition:
        """What ``row`` is made of. Raises ``StoreBroken``, ``NoContext`` where it was deleted
        since it was looked up."""
        try:
            return Definition.from_json(self.store.definition(row.id))
        except StoreBroken:
            self.check_there(row)
            raise
        except ValueError as error:
            raise StoreBroken(
                f"The text of the context {row.name or row.id} cannot be read: {error}. Delete it "
                "and create it again."
            ) from error

    def tokens(self, row: ContextRow) -> dict[int, bytes]:
        """The token ids of all parts of ``row``, as ``outline.packed`` writes them. Raises
        ``NoContext`` where it was deleted since it was looked up."""
        ids = self.catalog.contexts.section_tokens(row.id)
        if not ids:
            self.check_there(row)
        return ids

    def sections(self, row: ContextRow) -> tuple[SectionRow, ...]:
        """The parts of ``row``. Raises ``NoContext`` where it was deleted since."""
        found = self.catalog.contexts.sections(row.id)
        if not found:
            self.check_there(row)
        return found

    def check_there(self, row: ContextRow) -> None:
        """Raise ``NoContext`` where ``row`` was deleted since it was looked up."""
        self.find(row.tenant, row.id)

    def find(self, tenant: str, name: str) -> ContextRow:
        """The context of ``tenant`` with that id, or else that name. Raises ``NoContext``, in the
        same words whether it is another tenant's or nobody's."""
        row = self.catalog.contexts.get(tenant, name) or self.catalog.contexts.by_name(tenant, name)
        if row is None:
            raise NoContext(
                f"There is no context {name[:100]!r}. GET /v1/contexts lists yours; "
                "`kvasir contexts list` does so on the command line."
            )
        return row


class NoContext(RequestError):
    """No context of that tenant has that id or name."""

    def __init__(self, message: str) -> None:
        super().__init__(message, param="context", code="context_not_found")


def new_id(prefix: str) -> str:
    """A fresh id; nobody can guess one."""
    return prefix + secrets.token_hex(_ID_BYTES)
