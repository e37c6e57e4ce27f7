"""A real server on a loopback port: real scheduler, cache and HTTP, tagged runner, no weights.

The tokenizer is byte-level with the printable ASCII characters first, and the runner answers with
those, so that answers are readable text that tokenises back to the same ids.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import tokenizers
import uvicorn
from fastapi import FastAPI
from realms import realm
from stepped_mover import TaggedMemory
from tokenizers import decoders, models, pre_tokenizers

from kvasir.catalog.catalog import open_catalog
from kvasir.core.clock import SystemClock
from kvasir.core.config import Config, database_url
from kvasir.core.geometry import KvGeometry, ModelCard
from kvasir.core.plans import StepPlan, StepResult
from kvasir.core.ports import Engine as EnginePort
from kvasir.core.ports import Interrupted, never
from kvasir.engine.client import EngineClient
from kvasir.engine.engine import Engine
from kvasir.engine.storage import Cap, disk_cap, open_storage
from kvasir.kv.cache import KvCache
from kvasir.sched.limits import Limits as SchedLimits
from kvasir.sched.scheduler import Scheduler
from kvasir.sched.virtual import POISON, TaggedRunner
from kvasir.service.app import create_app
from kvasir.service.served import Limits, Served
from kvasir.text.codec import TextCodec
from kvasir.text.template import ChatTemplate
from kvasir.text.tokenizer import Tokenizer
from kvasir.text.transcript import Transcripts
from kvasir.text.transcript_db import FILE_NAME
from kvasir.text.transcript_file import TranscriptFile

WINDOW = 4096
BLOCK_TOKENS = 16
_HOMES: list[tempfile.TemporaryDirectory[str]] = []  # of servers that have none of their own
PRINTABLE = 95  # ids of the characters from space to tilde
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer(*, pairs: bool = False) -> Tokenizer:
    """One token per byte, the printable ones first, then two special tokens.

    With ``pairs``, two of these beside each other are one token too; the runner never says them, so
    its answers tokenise back to other ids than it generated.
    """
    printable = [chr(code) for code in range(32, 127)]
    printable[0] = "Ġ"  # how byte-level vocabularies spell a space
    others = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set(printable))
    vocab = {character: id_ for id_, character in enumerate([*printable, *others])}
    merges = [(a, b) for a in printable for b in printable] if pairs else []
    vocab |= {a + b: id_ for id_, (a, b) in enumerate(merges, start=len(vocab))}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    end = backend.token_to_id("<|im_end|>")
    return Tokenizer(backend, eos_ids=frozenset({end}), bos_id=None, add_bos=False, eos_id=end)


class PacedRunner(TaggedRunner):
    """A tagged runner whose steps take real time and, where ``before`` says so, fail."""

    pace_s = 0.0
    before: Callable[[StepPlan], None] | None = None

    def run(self, plan: StepPlan, interrupted: Interrupted = never) -> StepResult:
        if self.before is not None:
            self.before(plan)
        if self.pace_s:
            time.sleep(self.pace_s)
        return super().run(plan, interrupted)


@dataclass
class World:
    """A running server and everything behind it."""

    url: str
    port: int
    app: FastAPI
    served: Served
    client: EngineClient
    cache: KvCache
    runner: PacedRunner
    loop: asyncio.AbstractEventLoop
    idle_tasks: int  # on the loop, while no request is there

    def tasks(self) -> int:
        """Tasks on the server's event loop."""

        async def count() -> int:
            return len(asyncio.all_tasks()) - 1  # not this one

        return asyncio.run_coroutine_threadsafe(count(), self.loop).result(10)

    def http(self, **options: object) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, timeout=30.0, **options)  # type: ignore[arg-type]

    def wait_until_idle(self, timeout_s: float = 10.0) -> None:
        """Return when the engine has nothing to do any more."""
        until_s = time.monotonic() + timeout_s
        while self.client.status().running or self.client.status().waiting:
            assert time.monotonic() < until_s, "the engine is still busy"
            time.sleep(0.005)


def make_engine(
    *, n_blocks: int = 1024, window: int = WINDOW, stored: Config | None = None, **limits: float
) -> tuple[EngineClient, KvCache, PacedRunner, KvGeometry]:
    """``stored``, where given, is the configuration whose home has a disk tier."""
    geometry = KvGeometry(
        n_layers=1,
        n_kv_heads=1,
        head_dim=1,
        dtype="float32",
        dtype_bytes=4,
        block_tokens=BLOCK_TOKENS,
        n_blocks=n_blocks,
    )
    clock = SystemClock()
    slots = array("Q", [POISON]) * (n_blocks * BLOCK_TOKENS)
    told: list[EngineClient] = []  # whom the mover wakes

    def moves_ended() -> None:
        for client in told:
            client.moves_ended()

    storage = None
    if stored is not None:
        memory, host, disk = TaggedMemory(slots, geometry), Cap(0, "none"), disk_cap(stored)
        storage = open_storage(
            stored, realm(geometry), geometry, memory, host, disk, moves_ended, clock
        )
    cache = KvCache(
        geometry,
        realm(geometry),
        stored=storage.stored if storage is not None else None,
        audit_one_in=stored.audit_one_in if stored is not None else 0,
    )
    runner = PacedRunner(slots, BLOCK_TOKENS, vocab_size=PRINTABLE)
    bounds = SchedLimits(window=window, **limits)  # type: ignore[arg-type]
    engine = Engine(Scheduler(cache, bounds, clock), runner, clock, check_every_s=0)
    client = EngineClient(engine, clock, close=storage.close if storage is not None else None)
    told.append(client)
    return client.start(), cache, runner, geometry


def make_served(
    engine: EnginePort,
    geometry: KvGeometry,
    window: int = WINDOW,
    tokenizer: Tokenizer | None = None,
    secret: bytes = b"s" * 32,
    home: Path | None = None,
) -> Served:
    """``home``, where given, is where texts and conversations are remembered over a restart; else
    they are in a folder that goes with the tests."""
    tokenizer = tokenizer or byte_tokenizer()
    card = ModelCard(
        name="virtual",
        aliases=("gpt-4o",),
        architecture="llama",
        window=window,
        vocab_size=tokenizer.vocab_size,
        dtype="float32",
        parameter_bytes=0,
        realm=realm(geometry),
    )
    file = None
    if home is not None:
        file = TranscriptFile(
            home / FILE_NAME,
            card.realm.tokenizer,
            capacity_bytes=2**20,
            vocab_size=tokenizer.vocab_size,
        )
    codec = TextCodec(tokenizer, ChatTemplate(TEMPLATE), Transcripts(2**20, file))
    if home is None:
        _HOMES.append(tempfile.TemporaryDirectory(prefix="kvasir-home-"))
        catalog, home = open_catalog("sqlite://"), Path(_HOMES[-1].name)
    else:
        catalog = open_catalog(database_url(Config(home=home)))
    return Served(
        card=card,
        geometry=geometry,
        engine=engine,
        codec=codec,
        catalog=catalog,
        home=home,
        secret=secret,
    )


@contextlib.contextmanager
def listening(
    app: FastAPI, *socks: socket.socket, again: bool = False
) -> Iterator[asyncio.AbstractEventLoop]:
    """Serve ``app`` on ``socks`` from a thread, as the command line does; gives its loop.

    ``again`` says that it is served already, so that it neither starts nor ends another time."""
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            http="h11",
            ws="none",
            loop="asyncio",
            log_level="critical",
            lifespan="off" if again else "on",
        )
    )
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        await server.serve(sockets=list(socks))

    thread = threading.Thread(target=asyncio.run, args=(serve(),), name="test-http")
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.002)
        yield loops[0]
    finally:
        server.should_exit = True
        thread.join()


@contextlib.contextmanager
def world(
    config: Config | None = None,
    *,
    limits: Limits | None = None,
    n_blocks: int = 1024,
    window: int = WINDOW,
    tokenizer: Tokenizer | None = None,
    stored: Config | None = None,
    **sched_limits: float,
) -> Iterator[World]:
    """A server of its own; over the home of ``stored``, where given: again over it is a restart."""
    client, cache, runner, geometry = make_engine(
        n_blocks=n_blocks, window=window, stored=stored, **sched_limits
    )
    served = make_served(client, geometry, window, tokenizer, home=stored.home if stored else None)
    app = create_app(served, config or Config(), limits=limits or Limits())
    sock = socket.create_server(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    try:
        with listening(app, sock) as loop:
            url = f"http://127.0.0.1:{port}"
            made = World(url, port, app, served, client, cache, runner, loop, 0)
            made.idle_tasks = made.tasks()
            yield made
    finally:
        client.stop()
        assert served.codec.template is not None
        served.codec.template.close()
