"""A run of `kvasir bench quality`: one setting after another beside the same float32 computation.

Invariant: only the reference and one setting are in memory at a time; logits are there in slices.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import platform
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

import kvasir
from kvasir.attention import backend
from kvasir.bench import machine
from kvasir.bench.made_model import Tensors, random_tensors, small_qwen
from kvasir.bench.options import FORMATS
from kvasir.bench.process import PACKAGE
from kvasir.bench.quality import QualityOptions
from kvasir.bench.quality_needles import Found, Needle, ask, make_needles
from kvasir.bench.quality_reader import BLOCK_TOKENS, Reader
from kvasir.bench.quality_scores import Score, Tally, matching_rows, stretches, targets_of
from kvasir.bench.results import Machine
from kvasir.bench.workload import load_text
from kvasir.core.errors import ConfigError
from kvasir.kernels.native import library
from kvasir.kernels.native.library import Isa
from kvasir.model.decoder import Decoder
from kvasir.model.files import ModelFiles, open_model
from kvasir.model.forward import Forward, TorchForward
from kvasir.model.native_forward import NativeForward
from kvasir.model.source import model_name, resolve
from kvasir.model.spec import ModelSpec
from kvasir.text.tokenizer import Tokenizer, tokenizer_from_folder, tokenizer_from_gguf

SCHEMA = "kvasir-bench-quality/1"
MOST_WINDOW = 32_768  # of the text; a float32 reference over more takes too long
SLICE_ROWS = 128  # whose logits are there at a time
CHAPTER_CHARS = 2000  # what is shorter stands in a table of contents
_HEADING = re.compile(r"^[ \t]*chapter\b.*$", re.IGNORECASE | re.MULTILINE)

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingReport:
    """One format of weights and of KV."""

    weights: str
    kv: str
    scores: Mapping[str, Score]  # by stretch
    needles: Found | None = None
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReport:
    """One model in every setting."""

    name: str
    window: int
    stretches: Mapping[str, tuple[int, int]]  # first and last position
    real: bool  # whether its perplexity says anything
    reference_needles: Found | None
    reference_seconds: float
    settings: tuple[SettingReport, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityReport:
    """A whole run."""

    schema: str = SCHEMA
    date: str  # ISO 8601, UTC
    command: str
    commit: str
    commit_dirty: bool
    machine: Machine
    versions: Mapping[str, str]
    kernels: str
    threads: int
    text: str
    models: tuple[ModelReport, ...]
    warnings: tuple[str, ...] = field(default=())

    def to_json(self) -> str:
        """The file that is kept."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model, the text that it reads, and what is asked of it."""

    name: str
    spec: ModelSpec
    tensors: Tensors
    tokens: Sequence[int]
    real: bool = False
    needles: Sequence[Needle] = ()
    decode: Callable[[list[int]], str] = lambda _: ""


def run(options: QualityOptions, say: Say) -> QualityReport:
    """Carry out ``options``, telling ``say`` what is going on."""
    isa = library.best()
    if isa is None:
        raise ConfigError(
            f"there are no native kernels here: {library.missing() or 'the CPU has none of them'}\n"
            "the formats whose quality is measured are theirs"
        )
    here = machine.describe()
    torch.set_num_threads(options.threads)
    options.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    files = open_model(resolve(options.model, options.home / "models", say))
    real = real_subject(options, files)
    made = made_subject(small_qwen(len(real.tokens)), options.seed)
    commit, dirty = machine.commit_of(PACKAGE)
    return QualityReport(
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=options.command,
        commit=commit,
        commit_dirty=dirty,
        machine=here,
        versions={
            "kvasir": kvasir.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        kernels=isa.name,
        threads=options.threads,
        text=options.text.name,
        models=tuple(measure(subject, isa, options.threads, say) for subject in (real, made)),
    )


def real_subject(options: QualityOptions, files: ModelFiles) -> Subject:
    """The model that was asked for, on a chapter of the text, with needles."""
    window = min(options.window or files.spec.window, files.spec.window, MOST_WINDOW)
    tokenizer = _tokenizer(files)
    text = chapter(load_text(options.text, 2 * window))
    tokens = tokenizer.encode(text)[:window]
    if len(tokens) < window:
        raise ConfigError(
            f"{options.text.name} has {len(tokens)} tokens from its first chapter on and the "
            f"window has {window}; give a longer one with --text, or a shorter --window"
        )
    needles = make_needles(
        tokens,
        lambda text: tokenizer.encode(text, special=False),
        options.needles,
        block_tokens=BLOCK_TOKENS,
        seed=options.seed,
    )
    return Subject(
        name=model_name(options.model),
        spec=files.spec,
        tensors=files.tensor,
        tokens=tokens,
        real=True,
        needles=needles,
        # an embedding may be padded to more rows than there are tokens
        decode=lambda ids: tokenizer.decode(i for i in ids if i < tokenizer.vocab_size),
    )


def made_subject(spec: ModelSpec, seed: int) -> Subject:
    """A model with random weights, which no quantisation has met before, on random tokens."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(spec.vocab_size, (spec.window,), generator=generator)
    return Subject(
        name=f"random weights, {spec.hidden} wide, {spec.n_layers} layers",
        spec=spec,
        tensors=random_tensors(spec, seed),
        tokens=tokens.tolist(),
    )


def chapter(text: str) -> str:
    """``text`` from its first chapter on that is none of a table of contents; all of it where no
    line calls itself a chapter."""
    starts = [match.start() for match in _HEADING.finditer(text)]
    for start, after in zip(starts, [*starts[1:], len(text)], strict=False):
        if after - start >= CHAPTER_CHARS:
            return text[start:].lstrip()
    return text


def measure(subject: Subject, isa: Isa, threads: int, say: Say) -> ModelReport:
    """Every setting of ``subject``."""
    wanted = stretches(len(subject.tokens))
    say(f"{subject.name}: float32")
    began_s = time.monotonic()
    reference = reference_forward(subject.spec, subject.tensors)
    reader = Reader(reference, len(subject.tokens), "float32")
    hidden = reader.read(subject.tokens, wanted)
    found = ask(reader, subject.needles, subject.decode, say)
    del reader
    seconds = time.monotonic() - began_s
    return ModelReport(
        name=subject.name,
        window=len(subject.tokens),
        stretches={name: (r.start, r.stop - 1) for name, r in wanted.items()},
        real=subject.real,
        reference_needles=found,
        reference_seconds=seconds,
        settings=tuple(_settings(subject, isa, threads, reference, hidden, say)),
    )


def reference_forward(spec: ModelSpec, tensors: Tensors) -> Forward:
    """Torch in float32, from the weights as the file has them."""
    device, dtype = torch.device("cpu"), torch.float32
    choice = backend.choose(backend.Situation(device=device, dtype=dtype))
    decoder = Decoder(spec, lambda name: tensors(name, dtype), dtype, device)
    return TorchForward(decoder, choice.backend.plan)


def _settings(
    subject: Subject,
    isa: Isa,
    threads: int,
    reference: Forward,
    hidden: Mapping[str, Tensor],
    say: Say,
) -> Iterator[SettingReport]:
    for weights, kv in FORMATS:
        say(f"{subject.name}: weights {weights}, KV {kv}")
        began_s = time.monotonic()
        forward = NativeForward(
            subject.spec,
            subject.tensors,
            isa=isa,
            threads=threads,
            weights=weights,
            int8_kv=kv == "int8",
        )
        reader = Reader(forward, len(subject.tokens), "int8" if kv == "int8" else "bfloat16")
        wanted = stretches(len(subject.tokens))
        scores = compare(
            reference, hidden, forward, reader.read(subject.tokens, wanted), subject.tokens
        )
        for name, score in scores.items():
            say(
                f"  {name}: perplexity {score.reference_perplexity:.3f} -> {score.perplexity:.3f}, "
                f"KL {score.kl_nats:.5f}, top-1 {100 * score.top1_agreement:.1f} %"
            )
        found = ask(reader, subject.needles, subject.decode, say)
        forward.close()
        yield SettingReport(
            weights=weights,
            kv=kv,
            scores=scores,
            needles=found,
            seconds=time.monotonic() - began_s,
        )


def compare(
    reference: Forward,
    reference_hidden: Mapping[str, Tensor],
    other: Forward,
    other_hidden: Mapping[str, Tensor],
    tokens: Sequence[int],
) -> dict[str, Score]:
    """The scores of ``other`` on the stretches of a text that both have read."""
    wanted = stretches(len(tokens))
    text = torch.tensor(tokens)
    tallies = {name: Tally() for name in wanted}
    for name, rows in matching_rows(other_hidden, SLICE_ROWS):
        tallies[name].add(
            reference.logits(reference_hidden[name][rows]),
            other.logits(other_hidden[name][rows]),
            targets_of(text, wanted[name], rows),
        )
    return {name: tally.score() for name, tally in tallies.items()}


def _tokenizer(files: ModelFiles) -> Tokenizer:
    if files.kind == "gguf":
        return tokenizer_from_gguf(files.metadata)
    return tokenizer_from_folder(files.path)
