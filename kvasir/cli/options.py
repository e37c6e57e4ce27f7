"""The flags that several commands share, each the name of a setting in ``core.config``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from kvasir.core.config import Config

DEFAULTS = Config()

ModelArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="A folder with safetensors, a GGUF file or a hub id; the demonstration model if none.",
        show_default=False,
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", help="As for `kvasir serve`.", show_default=False),
]
HomeOption = Annotated[
    Path | None,
    typer.Option("--home", help="The folder that holds all data.", show_default=False),
]
ConfigFileOption = Annotated[
    Path | None,
    typer.Option("--config", help="A TOML file with settings.", show_default=False),
]
DeviceOption = Annotated[
    str | None,
    typer.Option("--device", help="cpu, cuda or cuda:N.", show_default=DEFAULTS.device),
]
DtypeOption = Annotated[
    str | None,
    typer.Option(
        "--dtype", help="auto, bfloat16, float16 or float32.", show_default=DEFAULTS.dtype
    ),
]
KernelsOption = Annotated[
    str | None,
    typer.Option(
        "--kernels",
        help="auto, torch, or a set of native ones from `kvasir doctor`.",
        show_default=DEFAULTS.kernels,
    ),
]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        "--weights",
        help="bf16, int8 or int4: fewer bits answer faster and a little otherwise.",
        show_default="bf16",
    ),
]
KvDtypeOption = Annotated[
    str | None,
    typer.Option(
        "--kv-dtype", help="auto (as computed) or int8, which halves KV.", show_default="auto"
    ),
]
KvGibOption = Annotated[
    float | None,
    typer.Option("--kv-gib", help="Memory for the KV pool.", show_default="from the machine"),
]
HostGibOption = Annotated[
    float | None,
    typer.Option(
        "--host-gib",
        help="KV kept in memory beside a device with its own; 0 keeps none.",
        show_default="from the machine",
    ),
]
DiskGibOption = Annotated[
    float | None,
    typer.Option(
        "--disk-gib",
        help="KV kept on disk; 0 keeps none.",
        show_default="10 % of what is free, at most 16",
    ),
]
MaxWindowOption = Annotated[
    int | None,
    typer.Option(
        "--max-window", help="Tokens of prompt and answer.", show_default="the model's own"
    ),
]
MaxTokensOption = Annotated[
    int, typer.Option("--max-tokens", min=1, help="The longest answer, in tokens.")
]
TemperatureOption = Annotated[
    float, typer.Option("--temperature", min=0.0, max=2.0, help="0 = the likeliest answer.")
]
SeedOption = Annotated[
    int | None,
    typer.Option("--seed", min=0, help="For the same answer again.", show_default=False),
]
TtlOption = Annotated[
    str | None,
    typer.Option(
        "--ttl",
        help="How long it is kept after its last use, such as 90m, 12h or 7d.",
        show_default="7d",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="For programs.")]


def check_ttl(ttl: str | None) -> None:
    """Refuse a time that a server would not take, before anything is done."""
    if ttl is not None and not re.fullmatch(r"[1-9]\d{0,8}[smhd]", ttl):
        raise typer.BadParameter(f"--ttl is a time such as 90m, 12h or 7d, not {ttl!r}")
