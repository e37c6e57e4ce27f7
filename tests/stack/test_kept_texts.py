"""Texts that are kept on purpose, over whole engines with threads and a real folder."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from virtual_engine import text
from virtual_server import BLOCK_TOKENS, PRINTABLE, make_engine

from kvasir.core.config import Config
from kvasir.core.errors import EngineStopped, NotStored, ParcelRefused
from kvasir.core.events import Event, Finished, Token
from kvasir.core.requests import Request
from kvasir.core.tiers import Tier
from kvasir.engine.client import EngineClient
from kvasir.sched.virtual import expected_answer

THEIRS, OURS = b"theirs", b"ours"
WAIT_S = 20.0


@contextlib.contextmanager
def engine(home: Path, disk_gib: float = 0.01) -> Iterator[EngineClient]:
    home.mkdir(exist_ok=True)
    client, _, _, _ = make_engine(stored=Config(home=home, disk_gib=disk_gib))
    try:
        yield client
    finally:
        client.stop()


def ask(
    client: EngineClient, namespace: bytes, tokens: list[int], max_tokens: int = 0, **fields: bool
) -> tuple[list[int], Finished]:
    heard: list[Event] = []
    ended = threading.Event()

    def deliver(event: Event) -> None:
        heard.append(event)
        if isinstance(event, Finished):
            ended.set()

    name = f"r{time.monotonic_ns()}-{threading.get_ident()}"
    client.submit(
        Request(id=name, namespace=namespace, tokens=tokens, max_tokens=max_tokens, **fields),
        deliver,
    )
    assert ended.wait(WAIT_S)
    finished = heard[-1]
    assert isinstance(finished, Finished)
    return [event.token for event in heard if isinstance(event, Token)], finished


def read(client: EngineClient, namespace: bytes, tokens: list[int]) -> None:
    """Read ``tokens``; returns once they are durable."""
    ask(client, namespace, tokens)
    until_s = time.monotonic() + WAIT_S
    while not (found := client.residence(namespace, tokens)).durable:
        assert found.saving, f"not all of it was stored: {found}"
        assert time.monotonic() < until_s
        time.sleep(0.005)


def test_a_text_moves_to_another_home_and_tenant_and_is_asked_after_a_restart(
    tmp_path: Path,
) -> None:
    rng = random.Random(1)
    tokens, question = text(rng, 1000), text(rng, 20)
    with engine(tmp_path / "a") as client:
        client.hold("c", THEIRS, [tokens])
        read(client, THEIRS, tokens)
        parcels = list(client.parcels(THEIRS, tokens))
        with pytest.raises(NotStored):
            next(client.parcels(OURS, tokens))
    with engine(tmp_path / "b") as client:
        client.hold("c", OURS, [tokens])
        assert sum(client.accept(OURS, parcel) for parcel in parcels) == len(tokens)
        found = client.residence(OURS, tokens)
        assert (found.durable, found.held, found.device_tokens) == (True, True, 0)
        with pytest.raises(ParcelRefused):
            client.accept(OURS, parcels[0][:-1] + b"\0")
    with engine(tmp_path / "b") as client:
        answer, finished = ask(client, OURS, [*tokens, *question], 8)
        assert finished.usage.computed_tokens == len(question)
        assert finished.usage.reused_by_tier == {Tier.DISK: len(tokens)}
        whole = [*tokens, *question]
        assert answer == expected_answer(THEIRS, whole, 8, vocab_size=PRINTABLE)
        (kept,) = [kept for kept in client.texts(OURS) if kept.n_tokens > len(tokens)] or [None]
        assert kept is None or kept.first_ids == tuple(tokens[:64])
        assert client.texts(THEIRS) == []


def test_a_flipped_parcel_never_leads_to_a_wrong_answer(tmp_path: Path) -> None:
    rng = random.Random(2)
    tokens = text(rng, 3 * BLOCK_TOKENS)
    with engine(tmp_path / "a") as client:
        read(client, THEIRS, tokens)
        (parcel,) = client.parcels(THEIRS, tokens)
    with engine(tmp_path / "b") as client:
        for _ in range(1000):
            flipped = bytearray(parcel)
            bit = rng.randrange(8 * len(parcel))
            flipped[bit // 8] ^= 1 << bit % 8
            with pytest.raises(ParcelRefused):
                client.accept(OURS, bytes(flipped))
        assert client.kept() == []
        whole = [*tokens, 1, 2, 3]
        answer, finished = ask(client, OURS, whole, 5)
        assert finished.usage.reused_tokens == 0
        assert answer == expected_answer(OURS, whole, 5, vocab_size=PRINTABLE)


def test_what_a_text_takes_is_known_before_it_is_read(tmp_path: Path) -> None:
    with engine(tmp_path) as client:
        for n_tokens in (5, 64, 1000):
            before = client.status().tiers[0].used_bytes
            tokens = text(random.Random(n_tokens), n_tokens)
            read(client, THEIRS, tokens)
            assert client.kept(), "so that the status is as of now"
            until_s = time.monotonic() + WAIT_S
            while client.status().tiers[0].used_bytes == before and time.monotonic() < until_s:
                time.sleep(0.005)
            assert client.status().tiers[0].used_bytes - before == client.bytes_of(n_tokens)


def test_holds_and_looks_from_many_threads_beside_running_answers(tmp_path: Path) -> None:
    problems: list[BaseException] = []

    def keep(number: int) -> None:
        try:
            rng = random.Random(number)
            namespace = THEIRS if number % 2 else OURS
            for turn in range(4):
                tokens = text(rng, rng.randrange(1, 200))
                client.hold(f"h{number}", namespace, [tokens])
                read(client, namespace, tokens)
                answer, _ = ask(client, namespace, [*tokens, 7], 4, transient=True)
                whole = [*tokens, 7]
                assert answer == expected_answer(namespace, whole, 4, vocab_size=PRINTABLE)
                assert client.residence(namespace, tokens).held
                assert any(kept.held for kept in client.texts(namespace))
                if turn % 2:
                    assert client.let_go(f"h{number}")
                    client.drop(namespace, [tokens])
                    assert client.residence(namespace, tokens).stored[Tier.DISK] < len(tokens)
        except BaseException as error:
            problems.append(error)

    with engine(tmp_path) as client:
        threads = [threading.Thread(target=keep, args=(n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert problems == []
        assert client.room_bytes(OURS) > 0
        client.call(client._engine.sched.cache.check)


def test_after_the_end_every_call_says_so(tmp_path: Path) -> None:
    tokens = text(random.Random(4), 100)
    with engine(tmp_path) as client:
        read(client, THEIRS, tokens)
        begun = client.parcels(THEIRS, tokens)
        parcel = next(begun)
    for call in (
        lambda: client.hold("h", THEIRS, [tokens]),
        lambda: client.let_go("h"),
        lambda: client.residence(THEIRS, tokens),
        lambda: client.texts(THEIRS),
        lambda: client.drop(THEIRS, [tokens]),
        lambda: client.room_bytes(THEIRS),
        lambda: client.accept(THEIRS, parcel),
        lambda: next(begun),
    ):
        with pytest.raises(EngineStopped):
            call()
