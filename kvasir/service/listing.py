"""The query of a list: after, limit, order, and what else a route knows; all else is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fastapi import Request

from kvasir.service.errors import bad_request

MAX_LIMIT = 1000
_DEFAULT_LIMIT = 100
_MAX_CHARS = 128


@dataclass(frozen=True, slots=True)
class PageQuery:
    """Which page of a list is asked for."""

    after: str | None
    limit: int
    order: Literal["asc", "desc"]
    extra: Mapping[str, str]


def page_of(request: Request, extra: Sequence[str] = ()) -> PageQuery:
    """The page that ``request`` asks for; raises a 400 that names the wrong parameter."""
    given: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in ("after", "limit", "order", *extra):
            raise bad_request(
                f"There is no parameter {name[:100]!r}; there are after, limit, order"
                f"{''.join(f', {each}' for each in extra)}.",
                name[:100],
            )
        if name in given or len(value) > _MAX_CHARS:
            raise bad_request(f"The parameter {name!r} comes twice or is too long.", name)
        given[name] = value
    limit = given.pop("limit", str(_DEFAULT_LIMIT))
    if not (limit.isascii() and limit.isdigit()) or not 1 <= int(limit) <= MAX_LIMIT:
        raise bad_request(f"'limit' must be a whole number from 1 to {MAX_LIMIT}.", "limit")
    order: Literal["asc", "desc"] = "asc" if given.get("order") == "asc" else "desc"
    if given.pop("order", order) != order:
        raise bad_request("'order' must be asc or desc.", "order")
    return PageQuery(given.pop("after", None), int(limit), order, given)
