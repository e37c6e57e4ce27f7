"""From wishes and the machine to consequences: what will be loaded, how, and whether it fits.

Invariant: nothing is allocated and no weight is read here, so `kvasir doctor` and the refusal of
what cannot fit cost little; ``engine.build`` carries out exactly what a survey says.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch

from kvasir.attention import backend
from kvasir.core.config import Config
from kvasir.core.errors import ConfigError, DoesNotFit
from kvasir.core.geometry import KvGeometry, ModelCard
from kvasir.core.realm import Realm
from kvasir.engine import computing
from kvasir.engine.computing import Computing
from kvasir.engine.machine import Machine, describe_machine
from kvasir.engine.storage import Cap, disk_cap, host_cap
from kvasir.kernels.linear import against_packing
from kvasir.model.files import ModelFiles, open_model
from kvasir.model.fingerprint import fingerprint, numerics_id, tokenizer_id
from kvasir.model.memory import MemoryNeed, check_fits, estimate, gib, summary
from kvasir.model.native_forward import loading_bytes, weight_bytes
from kvasir.model.source import is_demonstration, model_name
from kvasir.model.spec import ModelSpec
from kvasir.sched.limits import MAX_STEP_TOKENS

GIB = 2**30
RESERVE_SHARE = 0.05  # of free memory, for whatever else runs on the machine
POOL_SHARE = 0.5  # of what is left for KV, unless one window needs more


@dataclass(frozen=True, slots=True)
class Choice:
    """Something that was decided, with what spoke for and against the possibilities."""

    subject: str
    taken: str
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """Everything that loading will do, decided."""

    files: ModelFiles
    card: ModelCard
    host_cap: Cap
    disk_cap: Cap
    geometry: KvGeometry
    machine: Machine
    device: torch.device
    dtype: torch.dtype
    threads: int
    computing: Computing
    attention: backend.Backend  # of torch
    memory: str  # what it takes and what there is, in words
    choices: tuple[Choice, ...]


def model_cache(config: Config) -> Path:
    """Where obtained models and the digests of weights are kept."""
    return config.home / "models"


def survey(config: Config, model: Path, cache: Path | None = None) -> Survey:
    """Decide how the model at the local path ``model`` will run under ``config`` on this machine.

    ``cache`` is where digests of weights are remembered. Raises ``ConfigError``, the errors of
    ``model.files.open_model``, and ``DoesNotFit`` with the numbers.
    """
    machine = describe_machine()
    files = open_model(model)
    device, device_reason = _device(config, machine)
    chosen = computing.choose(config, files.spec, device)
    dtype = chosen.dtype
    kernel = backend.choose(backend.Situation(device=device, dtype=dtype.dtype), config.attention)
    threads = config.threads or machine.cores
    room = _Room(config, files.spec, device, chosen, machine)
    geometry, pool_reason = room.pool()
    pool = f"{gib(geometry.pool_bytes)}, {geometry.pool_tokens:,} tokens"
    card = _card(config, files, chosen, geometry, room.window, cache)
    disk = disk_cap(config)
    host = host_cap(
        config,
        device_has_memory=device.type != "cpu",
        available_bytes=machine.available_bytes,
    )
    return Survey(
        files=files,
        card=card,
        host_cap=host,
        disk_cap=disk,
        geometry=geometry,
        machine=machine,
        device=device,
        dtype=dtype.dtype,
        threads=threads,
        computing=chosen,
        attention=kernel.backend,
        memory=summary(
            room.need,
            dtype=dtype.name,
            available=room.available_bytes,
            kv_bytes=geometry.pool_bytes,
        ),
        choices=(
            Choice("device", str(device), (device_reason,)),
            Choice("dtype", dtype.name, (dtype.reason,)),
            Choice("kernels", chosen.name, chosen.reasons),
            *_by_kernels(chosen, device, kernel),
            Choice("kv pool", pool, (pool_reason,)),
            Choice("kv in host", gib(host.n_bytes), (host.reason,)),
            Choice("kv on disk", gib(disk.n_bytes), (disk.reason,)),
            Choice("threads", str(threads), ("set" if config.threads else "one per usable core",)),
        ),
    )


def _card(
    config: Config,
    files: ModelFiles,
    chosen: Computing,
    geometry: KvGeometry,
    window: int,
    cache: Path | None,
) -> ModelCard:
    dtype, (computed_as, attention) = chosen.dtype, chosen.numerics
    return ModelCard(
        name=model_name(config.model),
        aliases=config.alias,
        architecture=files.spec.architecture,
        window=window,
        vocab_size=files.spec.vocab_size,
        dtype=dtype.name,
        parameter_bytes=files.parameter_bytes(dtype.dtype),
        realm=Realm(
            weights=fingerprint(files.weight_files(), cache),
            numerics=numerics_id(
                files.spec, dtype=computed_as, kv_dtype=geometry.dtype, attention=attention
            ),
            tokenizer=tokenizer_id(files.path, files.metadata, cache),
            layout=geometry.layout_id,
        ),
        demonstration=is_demonstration(config.model),
    )


def _device(config: Config, machine: Machine) -> tuple[torch.device, str]:
    """The device that was asked for, and what it is."""
    try:
        device = torch.device(config.device)
    except RuntimeError as error:
        raise ConfigError(
            f"setting 'device' is {config.device!r}; choose cpu, cuda or cuda:N"
        ) from error
    if device.type == "cpu":
        return device, f"{machine.cores} cores, {machine.cpu}"
    if device.type != "cuda":
        raise ConfigError(f"setting 'device' is {config.device!r}; choose cpu, cuda or cuda:N")
    if not torch.cuda.is_available():
        built = "for CPUs alone" if torch.version.cuda is None else "for CUDA"
        raise ConfigError(
            f"device {config.device!r} was asked for, and torch finds no CUDA device\n"
            f"this torch is built {built}\n"
            "use --device cpu, or install a driver and a CUDA build of torch"
        )
    count = torch.cuda.device_count()
    if (device.index or 0) >= count:
        raise ConfigError(
            f"device {config.device!r} was asked for, and there are {count} CUDA devices, from "
            "cuda:0 on"
        )
    return device, torch.cuda.get_device_name(device)


def _by_kernels(
    chosen: Computing, device: torch.device, attention: backend.Choice
) -> tuple[Choice, ...]:
    """What there is to say of the kernels that were chosen."""
    if chosen.isa is not None:
        return (
            Choice("weights", chosen.weights, ("computed in the format in which they are kept",)),
            Choice("kv format", chosen.kv_dtype, ("attended in this format",)),
        )
    return (
        Choice("attention", attention.backend.name, attention.reasons),
        _projections(device, chosen.dtype.dtype),
    )


def _projections(device: torch.device, dtype: torch.dtype) -> Choice:
    against = against_packing(device, dtype)
    if against:
        return Choice("projections", "plain", tuple(f"packed: no, {reason}" for reason in against))
    return Choice("projections", "packed", ("packed: taken, in oneDNN's own layout",))


class _Room:
    """The memory of one device: what the model needs of it, and the KV pool that fits."""

    def __init__(
        self,
        config: Config,
        spec: ModelSpec,
        device: torch.device,
        chosen: Computing,
        machine: Machine,
    ) -> None:
        dtype = chosen.dtype
        self._config = config
        self._dtype = dtype.name if chosen.weights in ("", "bf16") else chosen.weights
        self.window = min(spec.window, config.max_window or spec.window)
        self.available_bytes = (
            torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else machine.available_bytes
        )
        kv_dtype: torch.dtype = getattr(torch, chosen.kv_dtype)
        self._one_block = KvGeometry(
            n_layers=spec.n_layers,
            n_kv_heads=spec.n_kv_heads,
            head_dim=spec.head_dim,
            dtype=chosen.kv_dtype,
            dtype_bytes=kv_dtype.itemsize,
            block_tokens=config.block_tokens,
            n_blocks=1,
        )
        need = estimate(
            spec,
            dtype_bytes=dtype.dtype.itemsize,
            kv_token_bytes=self._one_block.token_bytes,
            step_tokens=MAX_STEP_TOKENS,
            sampled_rows=config.max_running,
        )
        if chosen.isa is not None:
            need = dataclasses.replace(
                need,
                weights_bytes=weight_bytes(spec, chosen.weights),
                loading_bytes=loading_bytes(spec, chosen.weights),
            )
        elif spec.tied_embeddings and not against_packing(device, dtype.dtype):
            # packing copies the embeddings for the output; as embeddings they stay as they were
            copy_bytes = spec.vocab_size * spec.hidden * dtype.dtype.itemsize
            need = dataclasses.replace(need, weights_bytes=need.weights_bytes + copy_bytes)
        self.need: MemoryNeed = dataclasses.replace(need, window_tokens=self.window)

    def pool(self) -> tuple[KvGeometry, str]:
        """The pool's geometry and the reason for its size: at least one window and a block."""
        config, block_bytes = self._config, self._one_block.block_bytes
        least = self._one_block.blocks_for(self.window) + 1
        if config.kv_gib:
            n_blocks = int(config.kv_gib * GIB) // block_bytes
            reason = f"kv_gib is {config.kv_gib:g}"
            if n_blocks < least:
                raise DoesNotFit(
                    f"{config.kv_gib:g} GiB of KV hold {n_blocks * config.block_tokens:,} tokens, "
                    f"fewer than one window of {self.window:,}\n"
                    f"a full window takes {gib(least * block_bytes)}\n"
                    "raise --kv-gib to that, or lower the window with --max-window"
                )
        else:
            room_bytes = max(0, self._room_bytes())
            useful = config.max_running * least
            n_blocks = min(int(POOL_SHARE * room_bytes) // block_bytes, useful)
            n_blocks = max(n_blocks, least)
            reason = (
                f"{POOL_SHARE:.0%} of the {gib(room_bytes)} left for it, at most "
                f"{config.max_running} windows, at least one"
            )
        pool_bytes = n_blocks * block_bytes
        check_fits(
            self.need, dtype=self._dtype, available=self.available_bytes, kv_bytes=pool_bytes
        )
        return dataclasses.replace(self._one_block, n_blocks=n_blocks), reason

    def _room_bytes(self) -> int:
        """What is left for KV; negative where the model alone does not fit."""
        usable = int((1 - RESERVE_SHARE) * self.available_bytes)
        return usable - self.need.fixed_bytes
