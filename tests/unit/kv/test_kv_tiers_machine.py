"""The whole KV cache with all its tiers, in random order, against a serial oracle.

Small pool, small caps, several tenants with the same texts, forks, aborts, restarts with and
without a power cut, flipped bits, disks of any speed. After each step every slot that nobody may
read holds poison, so that whoever reads one answers wrongly.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from simulated_folder import SimulatedFolder
from stepped_mover import _Drop
from virtual_engine import Answer, VirtualEngine, text

from kvasir.core.costs import StepCosts
from kvasir.core.realm import namespace_tag
from kvasir.core.tiers import Tier
from kvasir.kv.restore import Stage
from kvasir.kv.tree import common_length
from kvasir.sched.virtual import POISON, expected_answer
from kvasir.tiers.folder import Folder
from kvasir.tiers.ram import RamFolder

EXAMPLES = int(os.environ.get("KVASIR_TEST_MACHINE_EXAMPLES", "150"))

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
        blocks.update(doomed)
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
        self.made.cache._saver.run_blocks = 6  # several records a text

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
    ) -> None:
        tokens = document[:length] + extra
        self.ask(tokens, namespace, max_tokens=max_tokens, n=n, prompt_logprobs=scored)
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
            self.made.cache.clear(data.draw(st.sampled_from([None, Tier.DISK])), tag)
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


# what the machine reaches rarely ------------------------------------------------------------------

SEEDS = range(12)
BREAK_EVEN = 8 / 2e-3  # bytes/s at which loading takes as long as computing (``CHUNKY``)


def engine(folders: dict[Tier, Folder], **fields: float) -> VirtualEngine:
    """With several records a text, so that one can be lost and others not."""
    made = VirtualEngine(folders=folders, costs=CHUNKY, **fields)  # type: ignore[arg-type]
    made.cache.fit.costs = CHUNKY
    made.cache._saver.run_blocks = 6
    return made


def kept_book(rng: random.Random, n_tokens: int) -> tuple[dict[Tier, Folder], list[int]]:
    """A disk with a text of which nothing is in memory."""
    folders: dict[Tier, Folder] = {Tier.DISK: RamFolder(2**20)}
    book = text(rng, n_tokens)
    made = engine(folders, n_blocks=256)
    made.ask(book, max_tokens=1)
    made.save()
    return folders, book


def damage_at(folders: dict[Tier, Folder], made: VirtualEngine, position: int) -> None:
    """Flip a bit of the last block of the record that holds ``position``."""
    shelf, folder = made.cache.stored.shelf(Tier.DISK), folders[Tier.DISK]
    assert isinstance(folder, RamFolder)
    name = next(e.name for e in shelf if e.start <= position < e.start + len(e.tokens))
    folder._files[f"{name}.kv"].content[-1] ^= 1


def reused(answer: Answer) -> int:
    assert answer.finished is not None
    return answer.finished.usage.reused_tokens


def run_poisoned(made: VirtualEngine) -> None:
    """Until idle and saved; then all answers are right and nothing is held."""
    for _ in range(5_000):
        if made.engine.idle and not made._commands:
            break
        made.step()
        poison(made)
        made.cache.check()
        check_stores(made)
    made.save()
    assert made.engine.idle
    assert all(made.right(name) for name in made.requests)
    assert not [node for node in made.cache._tree if node.pins]
    assert not made.cache.loading


def test_a_lost_beginning_is_kept_again_though_what_follows_it_was_not_lost() -> None:
    rng = random.Random(1)
    folders, book = kept_book(rng, 100)
    second = engine(folders)
    damage_at(folders, second, 0)
    assert reused(second.ask([*book, 1])) == 0
    second.save()
    assert reused(engine(folders).ask([*book, 2])) == len(book)


def rates(rng: random.Random) -> float:
    return BREAK_EVEN * rng.choice([0.7, 1, 1.5, 3, 10])


def meeting(made: VirtualEngine) -> bool:
    """Whether somebody computes towards what is being loaded."""
    running = made.sched._running.values()
    return any(s.lease is not None and s.lease.restore is not None for s in running)


def some_steps(made: VirtualEngine, most: int, rng: random.Random) -> None:
    for _ in range(rng.randrange(1, most)):
        made.step()
        poison(made)
        made.cache.check()


def test_several_requests_follow_one_restore_and_the_first_may_go() -> None:
    for seed in SEEDS:
        rng = random.Random(seed)
        folders, book = kept_book(rng, 200)
        made = engine(folders, n_blocks=256, read_bytes_per_s=rates(rng))
        leader = made.submit([*book, 1], max_tokens=3)
        some_steps(made, 3, rng)
        made.submit([*book[: rng.randrange(20, 200)], 2, 3], max_tokens=3)
        made.submit([*book, 9, 9], max_tokens=2)
        some_steps(made, 6, rng)
        if rng.random() < 0.5:
            made.abort(leader)
        run_poisoned(made)
        assert made.sched.counts["computed_tokens"] < len(book) + 20  # once for all


def test_what_is_on_its_way_is_not_loaded_a_second_time() -> None:
    rng = random.Random(5)
    folders, book = kept_book(rng, 200)
    made = engine(folders, n_blocks=256, read_bytes_per_s=10 * BREAK_EVEN)
    for question in range(3):
        made.submit([*book, question])
    made.step()
    blocks = list(made.cache._restorer.blocks())
    assert len(blocks) <= len(book) / BLOCK_TOKENS
    run_poisoned(made)
    assert made.cache.restored_blocks == len(blocks) == len(book) / BLOCK_TOKENS


def test_a_damaged_middle_is_computed_while_the_front_is_met() -> None:
    met = damaged = 0
    for seed in SEEDS:
        rng = random.Random(seed)
        folders, book = kept_book(rng, 240)
        made = engine(folders, n_blocks=256, read_bytes_per_s=rates(rng))
        damage_at(folders, made, rng.randrange(72, 200))
        made.submit([*book, 1])
        made.submit([*book, 2, 2])
        some_steps(made, 3, rng)
        met += meeting(made)
        run_poisoned(made)
        damaged += made.mover.stores[Tier.DISK].counts["damaged"]
        assert made.sched.counts["computed_tokens"] < len(book) + 20  # once for both
    assert met
    assert damaged


def test_the_one_that_computes_the_front_may_go_at_any_time() -> None:
    met = given_up = 0
    for seed in range(30):
        rng = random.Random(seed)
        folders, book = kept_book(rng, 240)
        n_blocks = rng.choice([70, 130, 256])
        rate = BREAK_EVEN * rng.choice([1, 1.5])
        made = engine(folders, n_blocks=n_blocks, read_bytes_per_s=rate)
        leader = made.submit([*book, 1])
        made.submit([*book, 2, 2])
        some_steps(made, 10, rng)
        met += meeting(made)
        made.abort(leader)
        made.submit(text(rng, 200), max_tokens=8)
        made.step()
        given_up += bool(made.cache._restorer._given_up)
        run_poisoned(made)
    assert met
    assert given_up


def test_a_restore_that_is_larger_than_the_room_waits_or_is_computed() -> None:
    for seed in SEEDS:
        rng = random.Random(seed)
        folders, book = kept_book(rng, 240)
        made = engine(folders, n_blocks=rng.choice([64, 66, 70]), read_bytes_per_s=rates(rng))
        busy = text(rng, rng.randrange(20, 120))
        made.submit(busy, max_tokens=rng.randrange(1, 20), namespace=b"b")
        some_steps(made, 4, rng)
        made.submit([*book, 1])
        made.submit([*book[: rng.randrange(240)], 2, 2])
        run_poisoned(made)


def test_what_a_restore_continues_is_not_evicted() -> None:
    for seed in SEEDS:
        rng = random.Random(seed)
        folders, book = kept_book(rng, 240)
        made = engine(folders, n_blocks=rng.choice([70, 90, 130]), read_bytes_per_s=rates(rng))
        made.submit(book[: rng.randrange(8, 120)], max_tokens=1)
        run_poisoned(made)
        first = made.submit([*book, 1])
        some_steps(made, 4, rng)
        made.submit(text(rng, rng.randrange(100, 240)), namespace=b"b", max_tokens=4)
        if rng.random() < 0.5:
            made.abort(first)
        run_poisoned(made)


def test_what_the_host_tier_has_evicted_comes_from_disk() -> None:
    rng = random.Random(3)
    folders: dict[Tier, Folder] = {t: RamFolder(2**20) for t in (Tier.HOST, Tier.DISK)}
    made = engine(folders, n_blocks=64)
    book = text(rng, 200)
    made.ask(book)
    made.save()
    host = made.cache.stored.shelf(Tier.HOST)
    ends_first = sorted(host, key=lambda extent: -extent.start)
    assert len(ends_first) > 4
    for extent in ends_first[:4]:
        made.cache.stored.drop(Tier.HOST, extent.name)
    made.ask(text(rng, 250), namespace=b"b")
    made.save()
    assert made.cache._tree.root(b"a").n_blocks < 20
    answer = made.ask([*book, 1, 2])
    assert reused(answer) == len(book)
    assert answer.finished is not None
    tiers = answer.finished.usage.reused_by_tier
    assert tiers[Tier.HOST] > 0
    assert tiers[Tier.DISK] > 0


def test_a_tail_that_is_replaced_while_it_is_loaded() -> None:
    gone = 0
    for wait in range(12):
        rng = random.Random(wait)
        folders, book = kept_book(rng, 203)  # a tail of three tokens
        made = engine(folders, n_blocks=256, read_bytes_per_s=2 * BREAK_EVEN)
        tail = next(e for e in made.cache.stored.shelf(Tier.DISK) if e.is_tail)
        made.submit([*book, 1, 2], max_tokens=2)
        for _ in range(wait):
            made.step()
            poison(made)
        made.cache.stored.drop(Tier.DISK, tail.name)
        gone += made.cache.loading
        run_poisoned(made)
    assert gone
