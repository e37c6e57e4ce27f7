"""A run of `kvasir bench restore`: who takes part, whose turn it is, and what came of it.

Invariant: only one process computes at a time; a turn that fails costs only its own figures.
"""

from __future__ import annotations

import dataclasses
import datetime
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import kvasir
from kvasir.bench import http, machine, restore_chats, restore_kvasir, workload
from kvasir.bench.arms import llama_weights, why_no_llama
from kvasir.bench.candidate import Setup
from kvasir.bench.checkpoint import cache_folder
from kvasir.bench.http import Reply
from kvasir.bench.process import PACKAGE, WorkerFailed, environment, once, only_kvasir
from kvasir.bench.restore_chats import Conversation, Source
from kvasir.bench.restore_disk import drop_cached, measure_disk, read_through
from kvasir.bench.restore_kvasir import GB, PLAIN, SAVING, Place
from kvasir.bench.restore_report import BARE, DISK, figures
from kvasir.bench.restore_sizes import RestoreSizes, Texts, make_texts
from kvasir.bench.results import ArmReport, Report, Sample
from kvasir.core.config import Config
from kvasir.core.geometry import KvGeometry
from kvasir.model.files import ModelFiles, open_model
from kvasir.model.source import model_name, resolve
from kvasir.text.tokenizer import Tokenizer, tokenizer_from_folder, tokenizer_from_gguf

Say = Callable[[str], None]
Turn = Callable[[Path, Texts, int], Iterator[Sample]]  # (an empty folder, texts, repeat)
_POOL_SPARE_BLOCKS = 2
_FLOOR_TIMES = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreOptions:
    """Every wish, checked. ``traces`` is None where no data folder was named."""

    llama: bool
    parts: tuple[str, ...]
    repeats: int
    sizes: RestoreSizes
    model: str
    home: Path
    out: Path
    text: Path | None
    traces: Path | None
    seed: int
    dtype: str
    threads: int
    llama_python: str
    flash_attention: bool
    timeout_s: float
    command: str


@dataclass(slots=True)
class _Column:
    """An arm, and what its turns have given so far."""

    name: str
    take: Turn
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    skipped: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    def report(self) -> ArmReport:
        return ArmReport(
            name=self.name,
            settings=self.settings,
            versions=self.versions,
            notes=self.notes,
            failures=tuple(self.failures),
            skipped=self.skipped,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stand:
    """What all turns share."""

    options: RestoreOptions
    sizes: RestoreSizes
    files: ModelFiles
    env: Mapping[str, str]
    import_path: Path
    folder: Path  # on the disk that is measured

    def settings(self) -> dict[str, str]:
        """Of every server."""
        options = self.options
        return {
            "model": str(self.files.path.resolve()),
            "dtype": options.dtype,
            "threads": str(options.threads),
            "max_window": str(self.sizes.window),
        }

    def one_window_gib(self) -> float:
        """A pool for one window and a little."""
        spec, block_tokens = self.files.spec, Config().block_tokens
        block = KvGeometry(
            n_layers=spec.n_layers,
            n_kv_heads=spec.n_kv_heads,
            head_dim=spec.head_dim,
            dtype=self.options.dtype,
            dtype_bytes=getattr(torch, self.options.dtype).itemsize,
            block_tokens=block_tokens,
            n_blocks=1,
        )
        n_blocks = block.blocks_for(self.sizes.window) + _POOL_SPARE_BLOCKS
        return n_blocks * block.block_bytes / 2**30

    def place(self, home: Path) -> Place:
        return Place(
            python=sys.executable,
            settings=self.settings(),
            env=self.env,
            cwd=self.import_path,
            home=home,
            one_window_gib=self.one_window_gib(),
            timeout_s=self.options.timeout_s,
        )

    def once(self, python: str, module: str, request: Mapping[str, Any]) -> dict[str, Any]:
        command = [python, "-m", f"kvasir.bench.{module}"]
        return once(
            command,
            request,
            env=self.env,
            cwd=self.import_path,
            timeout_s=self.options.timeout_s,
        )


def run(options: RestoreOptions, environ: Mapping[str, str], say: Say) -> Report:
    """Carry out ``options``, telling ``say`` what is going on."""
    began = machine.describe()
    warnings = [text for text in [machine.busy_warning(began)] if text]
    for warning in warnings:
        say(f"WARNING: {warning}")
    options.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    files = open_model(resolve(options.model, options.home / "models", say))
    sizes = options.sizes.fitted(files.spec.window)
    tokenizer = _tokenizer(files)
    conversations, left_out = _conversations(options, sizes)
    texts, source, text = _texts(options, sizes, tokenizer, len(conversations))
    (options.home / "bench").mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as imports,
        tempfile.TemporaryDirectory(dir=options.home / "bench", prefix="restore-") as folder,
    ):
        import_path = only_kvasir(Path(imports))
        stand = _Stand(
            options=options,
            sizes=sizes,
            files=files,
            env=environment(environ, threads=options.threads, import_path=import_path),
            import_path=import_path,
            folder=Path(folder),
        )
        columns = _columns(stand)
        if "restore" in options.parts:
            _take_turns(columns, stand, texts, say)
        for conversation in conversations:
            _hold(columns[0], stand, conversation, source, say)
    commit, dirty = machine.commit_of(PACKAGE)
    return Report(
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=options.command,
        commit=commit,
        commit_dirty=dirty,
        model=model_name(options.model),
        dtype=options.dtype,
        threads=options.threads,
        repeats=options.repeats,
        text=text,
        sizes=sizes,
        machine=began,
        figures=figures(sizes, conversations),
        arms=(
            *(column.report() for column in columns),
            ArmReport(name="vLLM", settings={}, skipped="this measurement has no arm for it"),
        ),
        samples=tuple(sample for column in columns for sample in column.samples),
        warnings=(*warnings, *left_out),
    )


def _tokenizer(files: ModelFiles) -> Tokenizer:
    if files.kind == "gguf":
        return tokenizer_from_gguf(files.metadata)
    return tokenizer_from_folder(files.path)


def _conversations(
    options: RestoreOptions, sizes: RestoreSizes
) -> tuple[list[Conversation], list[str]]:
    """What is to be held, and in words what is not."""
    if "conversations" not in options.parts:
        return [], ["no conversations were held: --parts leaves them out"]
    found = [restore_chats.chat(sizes)]
    paths = restore_chats.find_traces(options.traces) if options.traces else []
    found += [restore_chats.trace(path, sizes) for path in paths]
    return found, [] if paths else ["no coding session was held: --traces names no folder of them"]


def _texts(
    options: RestoreOptions, sizes: RestoreSizes, tokenizer: Tokenizer, n_conversations: int
) -> tuple[list[Texts], Source, str]:
    """The texts of each repeat, what conversations are made of, and where all that came from."""
    n_restore = options.repeats * sizes.tokens_needed
    n_tokens = n_restore + 4 * n_conversations * sizes.window  # branches read more than a window
    if options.text is not None:
        text, origin = workload.load_text(options.text, n_tokens), options.text.name
    else:
        text, origin = workload.make_text(n_tokens, options.seed), f"made, seed {options.seed}"
    tokens = tokenizer.encode(text, special=False)
    texts = list(make_texts(tokens, sizes, options.repeats))
    return texts, Source(tokens[n_restore:], tokenizer.decode), origin


# --- who takes part -------------------------------------------------------------------------------


def _columns(stand: _Stand) -> list[_Column]:
    options, sizes = stand.options, stand.sizes
    versions = {"kvasir": kvasir.__version__, "torch": torch.__version__}
    columns = [
        _Column(
            name=SAVING,
            take=lambda home, texts, repeat: restore_kvasir.saving_turn(
                stand.place(home), texts, repeat
            ),
            settings={**stand.settings(), "model": stand.files.path.name},
            versions=versions,
            notes=(
                "`kvasir serve` over HTTP, a new home in each repeat, disk_gib as derived; a pool "
                "of four windows where it reads first, of one window after restarts, so that "
                "another text takes all of it",
                f"each question is another one of {sizes.question} tokens; nothing was computed by "
                "a new process before its first question but the two steps of the server's start",
                "records are flushed and dropped from the page cache (posix_fadvise) right before "
                "the question, the server being up",
                "reading speed is the server's own figure: read, verify, copy into the pool",
            ),
        ),
        _Column(
            name=PLAIN,
            take=lambda home, texts, repeat: restore_kvasir.plain_turn(
                stand.place(home), texts, repeat
            ),
            notes=("the same with disk_gib 0",),
        ),
        _Column(
            name=BARE,
            take=lambda home, texts, repeat: _bare_steps(stand, home, repeat),
            notes=(
                f"the runner alone: {sizes.question} tokens, and one token, behind {sizes.text}; "
                f"medians of {_FLOOR_TIMES} steps in each repeat",
            ),
        ),
        _Column(
            name=DISK,
            take=lambda home, texts, repeat: _disk(stand, home, repeat),
            notes=(
                f"{sizes.disk_files} files of 16 MiB, written and flushed one by one, then read "
                "with one call each, in the folder that the homes are made in",
            ),
        ),
    ]
    if options.llama:
        columns.append(_llama_column(stand))
    return columns


def _disk(stand: _Stand, folder: Path, repeat: int) -> Iterator[Sample]:
    speed = measure_disk(folder, stand.sizes.disk_files)
    for figure, value in (
        ("write", speed.write),
        ("read_cold", speed.read_cold),
        ("read_warm", speed.read_warm),
    ):
        facts = {"page_cache_left_bytes": speed.left_bytes} if figure == "read_cold" else {}
        yield Sample(arm=DISK, repeat=repeat, figure=figure, value=value / GB, facts=facts)


def _bare_steps(stand: _Stand, home: Path, repeat: int) -> Iterator[Sample]:
    settings = {
        **stand.settings(),
        "home": str(home),
        "kv_gib": str(stand.one_window_gib()),
    }
    found = stand.once(
        sys.executable,
        "restore_floor",
        {
            "settings": settings,
            "context": stand.sizes.text,
            "question": stand.sizes.question,
            "times": _FLOOR_TIMES,
        },
    )
    for figure in ("question", "decode"):
        yield Sample(arm=BARE, repeat=repeat, figure=figure, value=found[f"{figure}_s"])


def _llama_column(stand: _Stand) -> _Column:
    """llama.cpp on the weights that are most like those that Kvasir computes with."""
    options = stand.options
    kind, path, skipped = "", stand.files.path, why_no_llama(options.llama_python)
    if not skipped:
        cache = cache_folder(options.home / "bench", stand.files)
        *_, (kind, path, skipped) = llama_weights(stand.files, cache)
    setup = Setup(
        engine="llama_cpp",
        weights=str(path.resolve()),
        dtype=options.dtype,
        threads=options.threads,
        window=stand.sizes.window,
        client_tokens=stand.sizes.window,
        home="",
        flash_attention=options.flash_attention,
    )
    column = _Column(
        name=f"llama.cpp {kind}".strip(),
        take=lambda folder, texts, repeat: _llama_turn(stand, column, setup, folder, texts, repeat),
        settings={"weights": path.name, "flash_attention": options.flash_attention},
        notes=(
            "the sequence's state in a file, as its server saves a slot; a new process for each "
            "question, model loaded and one short text computed before the clock starts",
            "the state is flushed to disk after it is saved, and the time for that is counted",
        ),
        skipped=skipped,
    )
    return column


def _llama_turn(
    stand: _Stand, column: _Column, setup: Setup, folder: Path, texts: Texts, repeat: int
) -> Iterator[Sample]:
    state = folder / "state"
    request = {"setup": dataclasses.asdict(setup), "text": texts.text, "state": str(state)}

    def ask(op: str, first: int) -> dict[str, Any]:
        questions = texts.questions[first : first + 2]
        python = stand.options.llama_python
        return stand.once(python, "restore_llama", {**request, "op": op, "questions": questions})

    def sample(figure: str, value: float, **facts: Any) -> Sample:
        return Sample(arm=column.name, repeat=repeat, figure=figure, value=value, facts=facts)

    saved = ask("save", 0)
    column.versions = saved["versions"]
    yield sample("cold", saved["cold_s"])
    yield sample("memory", saved["memory_s"])
    yield sample("save", saved["save_s"])
    yield sample("write", saved["n_bytes"] / saved["save_s"] / GB)
    yield sample("disk_token", saved["n_bytes"] / len(texts.text))
    for cache, question in (("cold", 2), ("warm", 4)):
        left_bytes = drop_cached([state]) if cache == "cold" else None
        if cache == "warm":
            read_through([state])
        found = ask("restore", question)
        yield sample(f"restart_{cache}", found["first_s"], page_cache_left_bytes=left_bytes)
        yield sample(f"read_{cache}", saved["n_bytes"] / found["load_s"] / GB)


# --- turns ----------------------------------------------------------------------------------------


def _take_turns(columns: list[_Column], stand: _Stand, texts: list[Texts], say: Say) -> None:
    """Interleave the arms over the repeats; who begins changes, so that a slow spell of the machine
    meets them alike."""
    taking_part = [column for column in columns if not column.skipped]
    for repeat, text in enumerate(texts):
        shift = repeat % len(taking_part)
        for column in taking_part[shift:] + taking_part[:shift]:
            name = f"repeat {repeat + 1} of {len(texts)}: {column.name}"
            began_s = time.monotonic()
            folder = stand.folder / f"turn-{repeat}"
            folder.mkdir(mode=0o700)
            try:
                for sample in column.take(folder, text, repeat):
                    column.samples.append(sample)
            except WorkerFailed as error:
                column.failures.append(f"repeat {repeat + 1}: {error}")
            finally:
                shutil.rmtree(folder)
            say(f"{name} took {time.monotonic() - began_s:.0f} s")


def _hold(
    column: _Column, stand: _Stand, conversation: Conversation, source: Source, say: Say
) -> None:
    """Hold a conversation on a new home, and note what it cost."""
    began_s = time.monotonic()
    home = stand.folder / conversation.key
    home.mkdir(mode=0o700)
    place = stand.place(home)

    def ask(port: int, body: dict[str, Any]) -> Reply:
        return http.ask(port, "/v1/chat/completions", body, place.timeout_s)

    try:
        spent = restore_chats.hold(
            conversation, source, stand.sizes.restart_every, lambda: place.serve(windows=2), ask
        )
        column.samples.append(
            Sample(
                arm=column.name,
                repeat=0,
                figure=conversation.key,
                value=spent.ratio,
                facts=dataclasses.asdict(spent),
            )
        )
    except WorkerFailed as error:
        column.failures.append(f"{conversation.title}: {error}")
    finally:
        shutil.rmtree(home)
    say(f"{conversation.title} took {time.monotonic() - began_s:.0f} s")
