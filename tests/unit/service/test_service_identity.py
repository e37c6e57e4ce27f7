"""Keys of the catalog at the door: whom they admit, for how long that is believed."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Iterator

import pytest

from kvasir.catalog.catalog import Catalog, open_catalog
from kvasir.core.clock import VirtualClock
from kvasir.core.realm import namespace_tag
from kvasir.service.errors import ApiError
from kvasir.service.identity import REMEMBERED_S, Caller, Identity

SECRET = b"s" * 32
HOSTILE = 10_000


@pytest.fixture
def catalog() -> Iterator[Catalog]:
    with contextlib.closing(open_catalog("sqlite://")) as made:
        made.tenants.add("ann", 1)
        yield made


def who(identity: Identity, *values: bytes | str) -> Caller | None:
    """The caller with these headers, None for a 401."""
    headers = [v if isinstance(v, bytes) else f"Bearer {v}".encode() for v in values]
    return asyncio.run(admitted(identity, headers))


async def admitted(identity: Identity, headers: list[bytes]) -> Caller | None:
    """The caller, None for a 401; anything else is an error of the test's."""
    try:
        return await identity.identify(headers)
    except ApiError as error:
        if (error.status, error.code) != (401, "invalid_api_key"):
            raise
        return None


def tenant(identity: Identity, *values: bytes | str) -> str | None:
    caller = who(identity, *values)
    return caller and caller.tenant


def now() -> int:
    return int(time.time())


def test_from_the_first_key_on_one_is_needed(catalog: Catalog) -> None:
    clock = VirtualClock()
    identity = Identity({}, SECRET, catalog, clock=clock)
    assert tenant(identity) == "local"
    key, text = catalog.keys.create("ann", "admin", "", None, now())
    clock.advance(REMEMBERED_S)
    assert who(identity) is None
    assert who(identity, "kv_" + "x" * 43) is None
    caller = who(identity, text)
    assert caller is not None
    assert (caller.tenant, caller.role, caller.key_id, caller.owner) == (
        "ann",
        "admin",
        key.id,
        False,
    )
    assert caller.namespace == identity.namespace_of("ann")


def test_a_revoked_key_is_believed_for_two_seconds_at_most(catalog: Catalog) -> None:
    clock = VirtualClock()
    identity = Identity({}, SECRET, catalog, clock=clock)
    key, text = catalog.keys.create("ann", "tenant", "", None, now())
    catalog.keys.create("ann", "tenant", "another", None, now())
    assert tenant(identity, text) == "ann"
    catalog.keys.revoke(key.id, now())
    clock.advance(REMEMBERED_S - 0.01)
    assert tenant(identity, text) == "ann"
    clock.advance(0.01)
    assert tenant(identity, text) is None
    assert REMEMBERED_S <= 2


def test_who_is_told_of_a_change_believes_nothing_any_more(catalog: Catalog) -> None:
    identity = Identity({}, SECRET, catalog, clock=VirtualClock())
    key, text = catalog.keys.create("ann", "tenant", "", None, now())
    catalog.keys.create("ann", "tenant", "another", None, now())
    assert tenant(identity, text) == "ann"
    catalog.keys.revoke(key.id, now())
    identity.forget()
    assert tenant(identity, text) is None


def test_a_key_that_was_found_is_not_looked_up_again_and_again(catalog: Catalog) -> None:
    identity = Identity({}, SECRET, catalog, clock=VirtualClock())
    _, text = catalog.keys.create("ann", "tenant", "", None, now())
    asked = []
    find = catalog.keys.find
    catalog.keys.find = lambda text, at: asked.append(text) or find(text, at)  # type: ignore
    for _ in range(5):
        assert tenant(identity, text) == "ann"
    assert len(asked) == 1


def test_keys_of_the_settings_stay_beside_those_of_the_catalog(catalog: Catalog) -> None:
    import hashlib

    _, text = catalog.keys.create("ann", "tenant", "", None, now())
    identity = Identity({hashlib.sha256(b"old").hexdigest(): "bob"}, SECRET, catalog)
    assert tenant(identity, "old") == "bob"
    assert tenant(identity, text) == "ann"
    assert tenant(identity, "new") is None
    caller = who(identity, "old")
    assert caller is not None
    assert (caller.role, caller.key_id) == ("tenant", "configured")
    assert set(identity.tenants().values()) == {"local", "ann", "bob"}
    assert identity.tenants()[namespace_tag(identity.namespace_of("ann"))] == "ann"


def test_expired_keys_do_not_open_the_server_and_the_last_revoked_one_does(
    catalog: Catalog,
) -> None:
    clock = VirtualClock()
    identity = Identity({}, SECRET, catalog, clock=clock)
    key, text = catalog.keys.create("ann", "tenant", "", 2, 1)  # it has expired long ago
    assert tenant(identity, text) is None
    assert tenant(identity) is None
    catalog.keys.revoke(key.id, now())
    clock.advance(REMEMBERED_S)
    assert tenant(identity) == "local"


def test_a_key_is_believed_no_longer_than_until_it_expires(catalog: Catalog) -> None:
    identity = Identity({}, SECRET, catalog, clock=VirtualClock())
    _, text = catalog.keys.create("ann", "tenant", "", now() + 1, now())
    assert tenant(identity, text) == "ann"
    (_, until_s) = next(iter(identity._found.values()))
    assert until_s <= 1.0


def test_where_the_network_can_reach_it_a_key_is_needed_always(catalog: Catalog) -> None:
    identity = Identity({}, SECRET, catalog, always=True)
    assert tenant(identity) is None
    assert tenant(identity, "x") is None


def test_no_hostile_header_is_let_in_or_is_an_error(catalog: Catalog) -> None:
    _, text = catalog.keys.create("ann", "admin", "", None, now())
    revoked, gone = catalog.keys.create("ann", "admin", "", None, now())
    catalog.keys.revoke(revoked.id, now())
    identity = Identity({"0" * 64: "bob"}, SECRET, catalog)
    right = f"Bearer {text}".encode()
    keys = [right, f"Bearer {gone}".encode(), right.upper()]

    async def knock() -> list[list[bytes]]:
        chance = random.Random(5)
        tried = (hostile(chance, keys) for _ in range(HOSTILE))
        return [v for v in tried if await admitted(identity, v) and not same_key(v, text)]

    assert asyncio.run(knock()) == []
    assert asyncio.run(identity.identify([right])).tenant == "ann"


def hostile(chance: random.Random, keys: list[bytes]) -> list[bytes]:
    """A header value near one of ``keys``, or several, or noise."""
    mutated = bytearray(chance.choice(keys))
    match chance.randrange(6):
        case 0:
            mutated[chance.randrange(len(mutated))] ^= 1 << chance.randrange(8)
        case 1:
            del mutated[chance.randrange(len(mutated)) :]
        case 2:
            at = chance.randrange(7, len(mutated))
            mutated[at:at] = chance.randbytes(chance.randrange(1, 5))
        case 3:
            mutated = bytearray(b"Bearer " + chance.randbytes(chance.randrange(600)))
        case 4:
            mutated = bytearray(chance.randbytes(chance.randrange(60)))
        case 5:
            return [bytes(mutated)] * chance.randrange(2, 4)
    return [bytes(mutated)]


def same_key(values: list[bytes], text: str) -> bool:
    """Whether a change has left the right key as it was: another case of "Bearer", a space."""
    scheme, _, key = values[0].partition(b" ")
    return len(values) == 1 and scheme.lower() == b"bearer" and key.strip() == text.encode()
