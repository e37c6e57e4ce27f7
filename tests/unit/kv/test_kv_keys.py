"""Block keys: change anything that the KV depends on, and the key is another."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from realms import realm

from kvasir.kv.keys import NO_PARENT, KeyChain

BASE = {
    "namespace": b"tenant",
    "numerics": "numerics",
    "layout": "layout",
    "parent": b"p" * 32,
    "tokens": (1, 2, 3, 4),
}


def key_of(namespace: bytes, numerics: str, layout: str, parent: bytes, tokens: tuple) -> bytes:
    return KeyChain(namespace, realm(numerics=numerics, layout=layout)).key(parent, tokens)


@given(
    st.fixed_dictionaries(
        {
            "namespace": st.binary(max_size=8),
            "numerics": st.text(max_size=4),
            "layout": st.text(max_size=4),
            "parent": st.sampled_from([NO_PARENT, b"p" * 32, b"q" * 32]),
            "tokens": st.lists(st.integers(0, 2**31 - 1), max_size=5).map(tuple),
        }
    )
)
def test_keys_are_equal_only_when_every_field_is(other: dict) -> None:
    assert (key_of(**BASE) == key_of(**other)) == (other == BASE)


def test_fields_do_not_run_into_each_other() -> None:
    assert key_of(b"ab", "c", "d", b"", (1,)) != key_of(b"a", "bc", "d", b"", (1,))
    assert key_of(b"a", "bc", "d", b"", (1,)) != key_of(b"a", "b", "cd", b"", (1,))


def test_chained_keys_name_the_whole_beginning() -> None:
    chain = KeyChain(b"t", realm())
    one: list[bytes] = []
    two: list[bytes] = []
    chain.extend(one, [1, 2, 3, 4, 5, 6, 7], 2)
    chain.extend(two, [9, 2, 3, 4, 5, 6], 2)
    assert len(one) == len(two) == 3
    assert not set(one) & set(two)  # one different token at the front changes every key behind it


def test_extending_continues_where_it_stopped() -> None:
    chain = KeyChain(b"t", realm())
    whole: list[bytes] = []
    grown: list[bytes] = []
    tokens = list(range(11))
    chain.extend(whole, tokens, 3)
    for end in range(len(tokens) + 1):
        chain.extend(grown, tokens[:end], 3)
    assert whole == grown
