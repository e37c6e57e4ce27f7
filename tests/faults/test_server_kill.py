"""kill -9 of a whole server, again and again: what it acknowledged it answers rightly afterwards,
from the KV that survived where there is some, and from no other tenant's."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import cycle
from pathlib import Path
from threading import Event, Timer

from kill_driver import (
    Ask,
    Child,
    Gone,
    Tenants,
    ask,
    check_disk,
    files_of,
    secret_of,
    stored,
    text,
    wait_for,
)
from serving_child import KEYS
from virtual_server import BLOCK_TOKENS

KILLS = int(os.environ.get("KVASIR_TEST_SERVER_KILLS", "20"))
SEED = int(os.environ.get("KVASIR_TEST_SEED", "0"))
MOMENTS = ("writing", "any", "idle", "starting", "writing", "asked again", "any")
WORKERS = 4
OLDER = 8  # of those that were right after earlier kills, how many are asked again each time
LONGEST = 400  # tokens of a prompt
ORPHAN = "0" * 64 + ".part"
MARK = "mark"  # the key and the tenant of what is asked when all else is idle


class World:
    """The home, everything that was acknowledged, and what is to be asked again."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.stderr = home.with_name("stderr")
        self.tenants: Tenants | None = None
        self.unproved: list[Ask] = []  # acknowledged, and not asked since the last kill
        self.proved: list[Ask] = []
        self.marked: Ask | None = None  # surely on disk when the server was killed
        self.seen: Counter[str] = Counter()

    def start(self) -> Child:
        return Child(self.home, self.stderr)

    def wait_until_ready(self, child: Child) -> None:
        child.wait_until_ready()
        assert not [name for name in files_of(self.home) if name.endswith(".part")]
        check_disk(self.home)
        if self.tenants is None:
            self.tenants = Tenants(secret_of(self.home))

    def ask(self, child: Child, *asks: Ask) -> None:
        """One after another, on one connection; what is acknowledged may be asked again."""
        assert self.tenants is not None
        with child.client(MARK) as http:
            for wanted in asks:
                reuse = ask(http, child, self.tenants, wanted)
                self.unproved.append(wanted)
                self.seen["disk tokens"] += reuse.disk
                self.seen["answers"] += 1
                check_disk(self.home)

    def ask_again(self, child: Child, rng: random.Random) -> None:
        """Everything acknowledged before the last kill, and some of what was before that."""
        assert self.tenants is not None
        if self.marked is not None:
            self._ask_marked(child)
        asks, self.unproved = self.unproved, []
        asks += rng.sample(self.proved, min(OLDER, len(self.proved)))
        rng.shuffle(asks)
        try:
            with ThreadPoolExecutor(WORKERS) as pool:
                parts = [pool.submit(self.ask, child, *asks[i::WORKERS]) for i in range(WORKERS)]
                for part in parts:
                    part.result()
        except Gone:
            self.unproved = [*dict.fromkeys([*self.unproved, *asks])]
            raise
        self.unproved = []
        self.proved = [*dict.fromkeys([*self.proved, *asks])]

    def check_figures(self, child: Child) -> None:
        """Nothing is damaged, given up or restored wrongly."""
        figures = child.figures()
        assert not figures['kvasir_tier_damaged_records_total{tier="disk"}']
        assert not figures['kvasir_tier_degraded{tier="disk"}']
        assert not figures["kvasir_audit_failures_total"]
        self.seen["evicted"] += int(figures['kvasir_tier_evicted_records_total{tier="disk"}'])
        self.seen["audited"] += int(figures["kvasir_audited_blocks_total"])

    def mark(self, child: Child, rng: random.Random) -> None:
        """Have something stored of which it is sure, from outside, that it is."""
        before = {record["name"] for record in stored(self.home)}
        marked = Ask(MARK, text(rng, rng.randrange(40, 200)), rng.randrange(2, 20), seed=1)
        self.ask(child, marked)
        n_tokens = len(marked.prompt) + marked.max_tokens - 1  # the last has no KV yet

        def kept() -> bool:
            records = [r for r in stored(self.home) if r["tenant"] == MARK]
            return sum(r["tokens"] for r in records if r["name"] not in before) >= n_tokens

        wait_for(kept, "what was asked last to be stored")
        self.marked = marked

    def _ask_marked(self, child: Child) -> None:
        """What was stored when the server was idle and then killed is reused, all of it; and no
        other tenant has any of it."""
        assert self.tenants is not None
        assert self.marked is not None
        marked, self.marked = self.marked, None
        answer = self.tenants.expected(marked)[0]
        more = Ask(MARK, f"{marked.prompt}{answer}?", 3, seed=1)
        theirs = Ask("bob-1", more.prompt, 3, seed=1)
        with child.client(MARK) as http:
            reuse = ask(http, child, self.tenants, more)
            others = ask(http, child, self.tenants, theirs)
        assert reuse.disk == len(marked.prompt) + len(answer) - 1
        assert others.memory + others.disk < BLOCK_TOKENS  # what begins texts of its own
        self.seen["marked"] += 1


def converse(world: World, child: Child, rng: random.Random, shared: list[str], end: Event) -> None:
    """Conversations, forks and repeats of several tenants until the server is gone."""
    keys = [key for key in KEYS if key != MARK]
    assert world.tenants is not None
    last: list[Ask] = []
    while not end.is_set():
        key = rng.choice(keys)
        own = [told for told in last if told.tenant == KEYS[key]]
        kind = rng.choice(("new", "shared", "repeat", "fork", "follow", "follow"))
        if kind == "shared":
            prompt = rng.choice(shared)
        elif kind == "new" or not own:
            prompt = text(rng, rng.randrange(1, 250))
        else:
            told = rng.choice(own)
            prompt = told.prompt
            if kind == "fork":
                prompt = prompt[: rng.randrange(1, len(prompt) + 1)] + text(rng, 30)
            elif kind == "follow":
                prompt += rng.choice(world.tenants.expected(told)) + text(rng, rng.randrange(1, 60))
        wanted = Ask(
            key,
            prompt[-LONGEST:],
            rng.randrange(1, 24),
            seed=rng.randrange(1, 3),
            n=rng.choice((1, 1, 1, 2)),
            stream=rng.random() < 0.5,
        )
        try:
            world.ask(child, wanted)
        except Gone:
            return
        last = [*last[-20:], wanted]


def live_and_die(world: World, moment: str, rng: random.Random) -> None:
    """One start, what was acknowledged before, new conversations, and a kill at ``moment``."""
    if files_of(world.home):
        (world.home / "kv" / ORPHAN).write_bytes(b"begun, and never published")
    child = world.start()
    try:
        if moment == "starting":
            time.sleep(rng.uniform(0, 1.0))
            return
        world.wait_until_ready(child)
        if moment == "asked again":
            kill = Timer(rng.uniform(0, 0.3), child.kill)
            kill.start()
            with contextlib.suppress(Gone):
                world.ask_again(child, rng)
            kill.join()
            return
        world.ask_again(child, rng)
        world.check_figures(child)
        live(world, child, moment, rng)
    finally:
        child.kill()
    world.seen["killed in writing"] += _writing(world.home)


def live(world: World, child: Child, moment: str, rng: random.Random) -> None:
    """New conversations for a while; at the end the server is killed."""
    end = Event()
    shared = [text(rng, 100) for _ in range(3)]
    with ThreadPoolExecutor(WORKERS) as pool:
        workers = [
            pool.submit(converse, world, child, random.Random(rng.random()), shared, end)
            for _ in range(WORKERS)
        ]
        try:
            time.sleep(rng.uniform(0.02, 0.6))
            if moment == "idle":
                end.set()
                wait(workers)
                world.mark(child, rng)
            elif moment == "writing":
                wait_for(lambda: _writing(world.home), "a record to be written", every_s=0.0005)
            child.kill()
        finally:
            end.set()
        for worker in workers:
            worker.result()


def _writing(home: Path) -> bool:
    return any(name.endswith(".part") and name != ORPHAN for name in files_of(home))


def test_a_killed_server_answers_rightly_again(tmp_path: Path) -> None:
    world = World(tmp_path / "home")
    for kill, moment in zip(range(KILLS), cycle(MOMENTS), strict=False):
        try:
            live_and_die(world, moment, random.Random(f"{SEED} {kill}"))
            check_disk(world.home)
        except BaseException as error:
            said = world.stderr.read_text()[-3000:]
            error.add_note(f"kill {kill} ({moment}), KVASIR_TEST_SEED={SEED}: {said}")
            raise
    live_and_die(world, "idle", random.Random(SEED))
    last = world.start()
    try:
        world.wait_until_ready(last)
        world.ask_again(last, random.Random(SEED))
        world.check_figures(last)
    finally:
        last.kill()
    assert "Traceback" not in world.stderr.read_text()
    if len(MOMENTS) <= KILLS:
        tried = ("answers", "disk tokens", "evicted", "audited", "marked", "killed in writing")
        assert all(world.seen[what] for what in tried), world.seen
