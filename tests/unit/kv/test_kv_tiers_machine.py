"""The whole KV cache with all its tiers, in random order, against a serial oracle.

Small pool, small caps, several tenants with the same texts, forks, aborts, restarts with and
without a power cut, flipped bits, disks of any speed. After each step every slot that nobody may
read holds poison, so that whoever reads one answers wrongly.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from simulated_folder import SimulatedFolder
from stepped_mover import _Drop
from virtual_engine import VirtualEngine

from kvasir.core.costs import StepCosts
from kvasir.core.realm import namespace_tag
from kvasir.core.tiers import Tier
from kvasir.kv.restore import Stage
from kvasir.kv.text import KeyedText, keyed
from kvasir.kv.tree import common_length
from kvasir.sched.virtual import POISON, expected_answer
from kvasir.tiers.folder import Folder
from kvasir.tiers.ram import RamFolder

EXAMPLES = int(os.environ.get("KVASIR_TEST_MACHINE_EXAMPLES", "100"))

BLOCK_TOKENS = 4
RECORD_BYTES = 4_096 + 200  # about what a small record takes
NAMESPACES = [b"a", b"b", b"c"]
DOCUMENTS = [[(d * 37 + i * i) % 251 for i in range(90)] for d in range(2)]
CHUNKY = StepCosts((1e-3, 2e-3, 0.0, 1e-3, 0.0))  # a few blocks a step; 4,000 bytes/s of KV

RATES = st.tuples(  # of reading and writing, bytes/s
    st.sampled_from([3_000, 8_000, 20_000, 1e9]), st.sampled_from([4_000, 40_000, 1e9])
)

Text = tuple[bytes, tuple[int, ...]]  # whose, and what


def flip(folder: Folder, which: int, bit: int) -> bool:
    """Flip one bit of some record; False where there is none."""
    if isinstance(folder, SimulatedFolder):
        contents = [(n, [f.seen, f.kept]) for n, f in sorted(folder.seen.items())]
    else:
        assert isinstance(folder, RamFolder)
        contents = [(n, [f.content]) for n, f in sorted(folder._files.items())]
    contents = [(name, copies) for name, copies in contents if len(copies[0]) > 4_096]
    if not contents:
        return False
    _, copies = contents[which % len(contents)]
    # What lies between the header and the planes is zeros that mean nothing.
    places = [*range(4_096, len(copies[0])), *range(40)]
    at = places[bit // 8 % len(places)]
    for content in copies:
        if at < len(content):
            content[at] ^= 1 << bit % 8
    return True


def stale_slots(made: VirtualEngine) -> Iterator[int]:
    """Every slot of the pool that nobody may read before it is written again."""
    cache, size = made.cache, made.geometry.block_tokens
    blocks = set(cache._device.pool.free_blocks())
    for doomed in cache._restorer._given_up.values():
        blocks.update(doomed.blocks)
    for restore in cache._restorer._active:
        for piece in restore.pieces:
            if piece.stage is Stage.QUEUED:
                blocks.update(piece.blocks)
    for block in blocks:
        yield from range(block * size, (block + 1) * size)
    for node in cache._tree:
        yield from range(node.block * size + len(node.tokens), (node.block + 1) * size)
    for sequence in made.sched._running.values():
        if sequence.lease is not None:
            for position in range(sequence.computed, len(sequence.lease.blocks) * size):
                yield sequence.lease.blocks[position // size] * size + position % size


def poison(made: VirtualEngine) -> None:
    for slot in stale_slots(made):
        made.slots[slot] = POISON


def check_stores(made: VirtualEngine) -> None:
    """The caps hold, and each shelf names what is in its store, but for what is being dropped."""
    dropped = {(j.tier, j.record) for j, *_ in made.mover._writes.jobs if isinstance(j, _Drop)}
    for tier, store in made.mover.stores.items():
        shelf = made.cache.stored.shelf(tier)
        assert store.used_bytes <= store.cap_bytes
        assert shelf.used_bytes <= shelf.cap_bytes
        shelved = {extent.name for extent in shelf}
        leaving = {name for of, name in dropped if of is tier}
        assert shelved <= store.records.keys(), "the index names what is not there"
        assert store.records.keys() - shelved <= leaving, "the index has lost what is there"
        still = sum(r.file_bytes for n, r in store.records.items() if n not in shelved)
        assert shelf.used_bytes + still >= store.used_bytes


def check_usage(made: VirtualEngine, asked: list[Text]) -> None:
    """What was reused adds up, and its owner had asked for it."""
    for (name, _), answer in made.answers.items():
        if answer.finished is None:
            continue
        request, usage = made.requests[name], answer.finished.usage
        assert sum(usage.reused_by_tier.values()) == usage.reused_tokens
        assert usage.reused_tokens <= max(0, len(request.tokens) - 1)
        others = [t for whose, t in asked if whose == request.namespace]
        if request.n == 1:
            others.remove((*request.tokens, *answer_of(request)))
        known = max((common_length(request.tokens, text) for text in others), default=0)
        assert usage.reused_tokens <= known, "reused what its owner never asked for"


def answer_of(request: object) -> list[int]:
    r = request
    return expected_answer(r.namespace, r.tokens, r.max_tokens, seed=r.sampling.seed)  # type: ignore[attr-defined]


class TiersMachine(RuleBasedStateMachine):
    """One engine after another over the same folders."""

    def __init__(self) -> None:
        super().__init__()
        self.made: VirtualEngine
        self.asked: list[Text] = []  # prompts with their answers, of all engines

    @initialize(
        n_blocks=st.sampled_from([28, 36, 48, 96]),
        cap=st.sampled_from([6, 12, 40]),
        with_host=st.booleans(),
        simulated=st.booleans(),
        rates=RATES,
        history=st.lists(st.sampled_from(NAMESPACES[:2]), max_size=2, unique=True),
    )
    def begin(
        self,
        n_blocks: int,
        cap: int,
        with_host: bool,
        simulated: bool,
        rates: tuple[float, float],
        history: list[bytes],
    ) -> None:
        """``history`` are those who have something stored from the beginning."""
        self.n_blocks, self.cap_bytes = n_blocks, cap * RECORD_BYTES
        self.with_host = with_host
        self.disk: Folder = SimulatedFolder() if simulated else RamFolder(self.cap_bytes)
        self.damaged = False
        self.open(rates)
        for namespace in history:
            self.ask(DOCUMENTS[0], namespace, max_tokens=9)
        if history:
            self.settle()
            self.open(rates)

    def open(self, rates: tuple[float, float]) -> None:
        self.rates = rates
        self.held: dict[str, Text] = {}  # holds end with the process
        self.durable: set[str] = set()  # holders whose text was durable once
        folders: dict[Tier, Folder] = {}
        if self.with_host:
            folders[Tier.HOST] = RamFolder(self.cap_bytes)
        folders[Tier.DISK] = self.disk
        self.folders = folders
        self.made = VirtualEngine(
            n_blocks=self.n_blocks,
            block_tokens=BLOCK_TOKENS,
            costs=CHUNKY,
            folders=folders,
            cap_bytes=self.cap_bytes,
            read_bytes_per_s=rates[0],
            write_bytes_per_s=rates[1],
            audit_one_in=1,
            max_running=4,
            max_waiting=8,
        )
        self.made.cache.fit.costs = CHUNKY

    # requests ------------------------------------------------------------------------------------

    def ask(self, tokens: list[int], namespace: bytes, **fields: int | None) -> None:
        room = self.n_blocks * BLOCK_TOKENS
        max_tokens = fields.pop("max_tokens") or 0
        tokens = tokens[: room - max_tokens]
        made = self.made
        name = made.submit(tokens, namespace=namespace, max_tokens=max_tokens, **fields)
        self.asked.append((namespace, (*tokens, *answer_of(made.requests[name]))))

    @rule(
        document=st.sampled_from(DOCUMENTS),
        length=st.one_of(st.just(90), st.integers(1, 90)),
        extra=st.lists(st.integers(0, 255), max_size=6),
        max_tokens=st.sampled_from([0, 1, 3, 9, 25]),
        namespace=st.sampled_from(NAMESPACES),
        n=st.sampled_from([1, 1, 1, 2]),
        scored=st.sampled_from([None, None, None, None, 1]),
        transient=st.sampled_from([False, False, False, True]),
    )
    def submit(
        self,
        document: list[int],
        length: int,
        extra: list[int],
        max_tokens: int,
        namespace: bytes,
        n: int,
        scored: int | None,
        transient: bool,
    ) -> None:
        tokens = document[:length] + extra
        asked = {"n": n, "prompt_logprobs": scored, "transient": transient}
        self.ask(tokens, namespace, max_tokens=max_tokens, **asked)
        self.made.step()
        self.after_each_step()

    @precondition(lambda self: self.asked)
    @rule(
        which=st.integers(0, 1000),
        keep=st.one_of(st.just(1000), st.integers(1, 100)),
        extra=st.lists(st.integers(0, 255), min_size=1, max_size=5),
        max_tokens=st.sampled_from([1, 6, 14]),
    )
    def follow_up(self, which: int, keep: int, extra: list[int], max_tokens: int) -> None:
        """Go on with a conversation, also from the middle of it, also after a restart."""
        namespace, text = self.asked[which % len(self.asked)]
        self.ask([*text[:keep], *extra], namespace, max_tokens=max_tokens)

    @precondition(lambda self: self.made.requests)
    @rule(which=st.integers(0, 1000))
    def abort(self, which: int) -> None:
        names = sorted(self.made.requests)
        self.made.abort(names[which % len(names)])

    # keeping -------------------------------------------------------------------------------------

    def keyed(self, text: Text) -> KeyedText:
        namespace, tokens = text
        return keyed(self.made.cache.chain(namespace), namespace, tokens, BLOCK_TOKENS)

    @rule(
        holder=st.sampled_from(["h1", "h2"]),
        document=st.sampled_from(DOCUMENTS),
        length=st.integers(1, 60),
        namespace=st.sampled_from(NAMESPACES),
        read=st.booleans(),
    )
    def hold(
        self, holder: str, document: list[int], length: int, namespace: bytes, read: bool
    ) -> None:
        text = namespace, tuple(document[:length])
        self.made.cache.keeping.hold(holder, [self.keyed(text)])
        self.held[holder] = text
        self.durable.discard(holder)
        if read:
            self.ask(list(text[1]), namespace, max_tokens=0)
            self.settle()

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 1), dropped=st.booleans())
    def let_go(self, which: int, dropped: bool) -> None:
        holder = sorted(self.held)[which % len(self.held)]
        text = self.held.pop(holder)
        self.durable.discard(holder)
        assert self.made.cache.keeping.let_go(holder)
        if dropped:
            self.made.cache.keeping.drop([self.keyed(text)])

    def check_held(self) -> None:
        """What is held and was durable once is durable, whatever else was asked and stored."""
        keeping = self.made.cache.keeping
        for holder, text in self.held.items():
            found = keeping.residence(self.keyed(text))
            assert found.held or len(text[1]) < BLOCK_TOKENS
            if found.durable:
                self.durable.add(holder)
            elif holder in self.durable:
                assert self.damaged, f"{holder} held {text}, and it is gone: {found}"

    # time ----------------------------------------------------------------------------------------

    @rule(steps=st.integers(1, 12), given_up=st.sampled_from([False, False, False, True]))
    def step(self, steps: int, given_up: bool) -> None:
        for _ in range(steps):
            self.made.step(lambda: given_up)
            self.after_each_step()

    @rule(to_s=st.sampled_from([1e-3, 0.05, 2.0]))
    def wait(self, to_s: float) -> None:
        """Nothing comes; what moves goes on."""
        self.made.clock.advance(to_s)
        self.made.step()
        self.after_each_step()

    @rule()
    def run_out(self) -> None:
        self.drain()

    @rule()
    def settle(self) -> None:
        """Until nothing is computed, moved or to be audited: then nothing is held."""
        self.drain()
        made = self.made
        made.save()
        while made.engine.rest():
            made.save()
        self.after_each_step()
        assert not made.cache.loading
        assert not made.cache.saving
        assert not [node for node in made.cache._tree if node.pins]
        assert not made.cache._restorer._active
        for tier, store in made.mover.stores.items():
            assert made.cache.stored.shelf(tier).used_bytes == store.used_bytes

    def drain(self) -> None:
        made = self.made
        for _ in range(5_000):
            if made.engine.idle and not made._commands:
                break
            made.step()
            poison(made)
        else:
            raise AssertionError("still not idle")
        for name, request in made.requests.items():
            ended = [made.answer(name, c).finished is not None for c in range(request.n)]
            assert all(ended) or name in made.refused
        self.after_each_step()

    # what goes wrong -----------------------------------------------------------------------------

    @rule(
        trouble=st.sampled_from(["clear", "damage", "damage", "restart", "settle", "power cut"]),
        data=st.data(),
    )
    def go_wrong(self, trouble: str, data: st.DataObject) -> None:
        if trouble == "clear":
            whose = data.draw(st.sampled_from([None, *NAMESPACES]))
            tag = None if whose is None else namespace_tag(whose)
            self.durable.clear()
            self.made.cache.keeping.clear(data.draw(st.sampled_from([None, Tier.DISK])), tag)
        elif trouble == "damage":
            tier = data.draw(st.sampled_from(sorted(self.folders)))
            which, bit = data.draw(st.integers(0, 50)), data.draw(st.integers(0, 8_000))
            if flip(self.folders[tier], which, bit) and tier is Tier.DISK:
                self.damaged = True
        elif trouble == "power cut":
            self.cut_power(data)
        else:
            if trouble == "settle":
                self.settle()
            self.restart(data.draw(RATES))

    def restart(self, rates: tuple[float, float]) -> None:
        """The process is gone, whatever it was doing."""
        kept = self.kept()
        self.open(rates)
        self.still_there(kept)

    def cut_power(self, data: st.DataObject) -> None:
        if not isinstance(self.disk, SimulatedFolder):
            return
        kept = self.kept()
        choices = iter(data.draw(st.lists(st.integers(0, 1), min_size=20, max_size=20)))
        self.disk = self.disk.crash(lambda n: next(choices, 0) % n)
        self.open(self.rates)
        self.still_there(kept)

    def kept(self) -> set[str]:
        return {extent.name for extent in self.made.cache.stored.shelf(Tier.DISK)}

    def still_there(self, kept: set[str]) -> None:
        """What was said to be kept is found, unless there is a reason."""
        store = self.made.mover.stores[Tier.DISK]
        if not self.damaged and not store.counts["over_cap"]:
            assert kept <= store.records.keys()

    # what is always so ---------------------------------------------------------------------------

    def after_each_step(self) -> None:
        made = self.made
        poison(made)
        made.cache.check()
        check_stores(made)
        self.check_held()

    @invariant()
    def everything_is_in_order(self) -> None:
        self.after_each_step()
        assert self.made.cache.auditor.failures == 0
        check_usage(self.made, self.asked)
        for name in self.made.requests:
            assert self.made.right(name), f"wrong text for {self.made.requests[name]}"

    def teardown(self) -> None:
        if hasattr(self, "made"):
            self.settle()
            self.everything_is_in_order()


TiersMachine.TestCase.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestTiersMachine = TiersMachine.TestCase
