"""Who has to leave the device: what is soonest had again, and first what was borrowed."""

from __future__ import annotations

import random

import pytest

from kvasir.kv.tree import Node, PrefixTree


class Forest:
    """A tree whose blocks are numbered, and whose keys say where they are."""

    def __init__(self, n_blocks: int = 0, worth: dict[bytes, float] | None = None) -> None:
        self.worth = worth or {}
        self.tree = PrefixTree(n_blocks, worth_s=lambda node: self.worth.get(node.key, 1.0))
        self.names: dict[int, bytes] = {}

    def add(self, path: str, namespace: bytes = b"a") -> Node:
        """Add the last of ``path``, whose letters are one block each."""
        *above, last = path
        parent: Node = self.tree.root(namespace)
        if above:
            found = self.tree.get(namespace + "".join(above).encode())
            assert found is not None
            parent = found
        block = len(self.names)
        key = namespace + path.encode()
        self.names[block] = key
        return self.tree.add(key, parent, [ord(last)], block, tail=False)

    def use(self, node: Node) -> None:
        self.tree.pin(node, down_from=node.root)
        self.tree.unpin(node)

    def evict(self, count: int, asking: bytes | None = None) -> list[bytes]:
        names = [self.names[block] for block in self.tree.evict(count, for_namespace=asking)]
        self.tree.check()
        return names


def test_with_one_worth_the_least_recently_used_goes_first() -> None:
    forest = Forest()
    first, *_ = [forest.add(name) for name in "xyz"]
    forest.use(first)
    assert forest.evict(2) == [b"ay", b"az"]
    forest.add("w")
    assert forest.evict(9) == [b"ax", b"aw"]
    assert forest.evict(1) == []


def test_leaves_go_before_what_they_continue() -> None:
    forest = Forest(worth={b"axy": 5.0})
    forest.add("x")
    forest.add("xy")
    forest.add("z")
    assert forest.evict(3) == [b"az", b"axy", b"ax"]


def test_what_takes_longer_to_have_again_stays_longer_but_not_for_ever() -> None:
    forest = Forest(worth={b"ax": 3.5})
    forest.add("x")
    evicted = []
    for name in "bcdefgh":
        forest.add(name)
        evicted += forest.evict(1)
    # the clock has come to 3 when the fourth newcomer is worth 4
    assert evicted == [b"ab", b"ac", b"ad", b"ax", b"ae", b"af", b"ag"]


def test_a_use_renews_the_priority() -> None:
    forest = Forest(worth={b"ax": 1.5})
    x = forest.add("x")
    for name in "bcde":
        forest.add(name)
        forest.use(x)
        assert forest.evict(1) == [b"a" + name.encode()]


def test_a_block_that_another_tier_has_by_now_is_worth_less() -> None:
    forest = Forest(worth={b"ax": 5.0, b"ay": 2.0})
    x, _ = forest.add("x"), forest.add("y")
    forest.worth[b"ax"] = 0.5
    forest.tree.reprice(x)
    forest.tree.check()
    assert forest.evict(1) == [b"ax"]


def test_a_block_that_no_other_tier_has_any_more_is_worth_more() -> None:
    forest = Forest(worth={b"ax": 0.5, b"ay": 2.0})
    x, _ = forest.add("x"), forest.add("y")
    forest.worth[b"ax"] = 5.0
    forest.tree.reprice(x)
    assert forest.evict(2) == [b"ay", b"ax"]


def test_repricing_what_is_held_takes_effect_when_it_becomes_a_leaf() -> None:
    forest = Forest(worth={b"ax": 5.0, b"axy": 5.0, b"az": 2.0})
    x, y = forest.add("x"), forest.add("xy")
    forest.add("z")
    forest.tree.pin(y, down_from=y.root)
    forest.worth |= {b"ax": 0.5, b"axy": 0.5}
    forest.tree.reprice(x)
    forest.tree.reprice(y)
    forest.tree.check()
    assert forest.evict(1) == [b"az"]
    forest.tree.unpin(y)
    assert forest.evict(2) == [b"axy", b"ax"]


def test_what_is_borrowed_is_reclaimed_first_then_ones_own_then_others() -> None:
    forest = Forest(n_blocks=9)  # three namespaces: three blocks each
    for name in "rst":
        forest.add(name, b"a")  # the oldest, but no more than its share
    forest.add("u", b"c")
    for name in "vwxyz":
        forest.add(name, b"b")
    assert forest.evict(2, b"c") == [b"bv", b"bw"]
    assert forest.evict(2, b"c") == [b"cu", b"ar"]


def test_one_that_only_asks_counts_too() -> None:
    forest = Forest(n_blocks=8)
    for name in "uvwx":
        forest.add(name, b"a")
    for name in "yz":
        forest.add(name, b"b")
    # of two, four each: nobody has borrowed; of three, two each
    assert forest.evict(3, b"c") == [b"au", b"av", b"aw"]


def test_what_is_held_counts_but_stays() -> None:
    forest = Forest(n_blocks=4)
    held = [forest.add(name, b"a") for name in "wxy"]
    for node in held:
        forest.tree.pin(node, down_from=node.root)
    forest.add("z", b"b")
    assert forest.evict(1, b"a") == [b"bz"]
    assert forest.evict(1, b"a") == []
    forest.tree.unpin(held[1])
    assert forest.evict(1, b"b") == [b"ax"]


def test_without_shares_all_namespaces_give_way_alike() -> None:
    forest = Forest()
    for name, namespace in zip("wxyz", (b"a", b"b", b"a", b"a"), strict=True):
        forest.add(name, namespace)
    assert forest.evict(3, b"a") == [b"aw", b"bx", b"ay"]


def test_clearing_spares_what_is_held_and_other_namespaces() -> None:
    forest = Forest()
    held = forest.add("x")
    for path in ("xy", "xyz", "w"):
        forest.add(path)
    forest.add("x", b"b")
    forest.tree.pin(held, down_from=held.root)
    gone = forest.tree.clear(lambda namespace: namespace == b"a")
    forest.tree.check()
    assert {forest.names[block] for block in gone} == {b"axy", b"axyz", b"aw"}
    assert [node.key for node in forest.tree] == [b"ax", b"bx"]
    assert (forest.tree.n_idle, forest.tree.evicted_blocks) == (1, 0)


def test_a_block_is_removed_with_all_that_continues_it() -> None:
    forest = Forest()
    nodes = {path: forest.add(path) for path in ("x", "xy", "xyz", "xyw", "xv")}
    gone = forest.tree.remove_below(nodes["xy"])
    forest.tree.check()
    assert {forest.names[block] for block in gone} == {b"axy", b"axyz", b"axyw"}
    assert forest.evict(9) == [b"axv", b"ax"]


@pytest.mark.parametrize("seed", range(6))
def test_every_eviction_is_the_right_one(seed: int) -> None:
    """Against the rule in words, at random: class of the namespace, then priority, then age."""
    rng = random.Random(seed)
    forest = Forest(n_blocks=12, worth={})
    tree, namespaces, held = forest.tree, [b"a", b"b", b"c", b"d"], []
    for step in range(400):
        action = rng.random()
        namespace = rng.choice(namespaces)
        if action < 0.5:
            own = [n for n in tree if n.key[:1] == namespace and len(n.key) < 5]
            path = (rng.choice(own).key[1:].decode() if own and rng.random() < 0.6 else "") + chr(
                300 + step
            )
            forest.worth[namespace + path.encode()] = rng.choice([0.5, 1.0, 2.0, 8.0])
            forest.add(path, namespace)
        elif action < 0.6 and len(tree):
            node = rng.choice(list(tree))
            tree.pin(node, down_from=node.root)
            held.append(node)
        elif action < 0.7 and held:
            tree.unpin(held.pop(rng.randrange(len(held))))
        elif action < 0.8 and len(tree):
            forest.use(rng.choice(list(tree)))
        else:
            asking = rng.choice([*namespaces, None])
            counts = {ns: sum(n.key[:1] == ns for n in tree) for ns in namespaces}
            n_tenants = sum(count > 0 or ns == asking for ns, count in counts.items())
            share = 12 // max(1, n_tenants)
            blocks = {n.block: n for n in tree}
            expected = []
            for _ in range(rng.randrange(1, 6)):
                gone = {blocks[block].key for block in expected}
                leaves = [
                    n
                    for n in tree
                    if not n.pins
                    and n.key not in gone
                    and not any(c.parent is n and c.key not in gone for c in tree)
                ]
                if not leaves:
                    break
                first = min(
                    leaves,
                    key=lambda n: (
                        0 if counts[n.key[:1]] > share else 1 if n.key[:1] == asking else 2,
                        n.priority,
                        n.used,
                    ),
                )
                counts[first.key[:1]] -= 1
                expected.append(first.block)
            # nodes of one chain share a use: which of two equal ones goes first is free
            got = tree.evict(len(expected), for_namespace=asking)
            assert [(blocks[b].priority, blocks[b].used) for b in got] == [
                (blocks[b].priority, blocks[b].used) for b in expected
            ]
        tree.check()


def test_stale_entries_do_not_pile_up() -> None:
    forest = Forest()
    forest.add("w")
    node = forest.add("x")
    for _ in range(1000):
        forest.use(node)
    forest.tree.check()
    assert len(forest.tree.root(b"a").leaves) < 100


@pytest.mark.parametrize("wrong", ["count", "list"])
def test_the_check_finds_what_is_wrong(wrong: str) -> None:
    forest = Forest()
    root = forest.add("x").root
    if wrong == "count":
        root.n_blocks += 1
    else:
        root.leaves.clear()
    with pytest.raises(RuntimeError):
        forest.tree.check()
