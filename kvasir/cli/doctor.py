"""`kvasir doctor`: machine, settings, model, KV pool and stored KV, and what was chosen with the
reasons."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvasir.cli import options
from kvasir.core.config import Config, explain
from kvasir.core.errors import KvasirError

if TYPE_CHECKING:
    from kvasir.engine.survey import Survey

_SECRET_SETTINGS = frozenset({"keys"})  # digests and tenants are nobody else's business


def command(
    model: options.ModelArgument = None,
    home: options.HomeOption = None,
    device: options.DeviceOption = None,
    dtype: options.DtypeOption = None,
    kernels: options.KernelsOption = None,
    weights: options.WeightsOption = None,
    kv_dtype: options.KvDtypeOption = None,
    kv_gib: options.KvGibOption = None,
    host_gib: options.HostGibOption = None,
    disk_gib: options.DiskGibOption = None,
    max_window: options.MaxWindowOption = None,
    config_file: options.ConfigFileOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Show how MODEL would run here, and why so. Loads no weights and changes nothing."""
    config, sources = explain(
        {
            "model": model,
            "home": home,
            "device": device,
            "dtype": dtype,
            "kernels": kernels,
            "weights": weights,
            "kv_dtype": kv_dtype,
            "kv_gib": kv_gib,
            "host_gib": host_gib,
            "disk_gib": disk_gib,
            "max_window": max_window,
        },
        file=config_file,
    )
    report = examine(config, sources)
    print(json.dumps(report, indent=2) if as_json else as_text(report))
    if report["problem"]:
        raise typer.Exit(1)


def examine(config: Config, sources: Mapping[str, str]) -> dict[str, Any]:
    """Everything that doctor tells, as plain values; ``problem`` says what is in the way."""
    import platform

    import torch

    import kvasir
    from kvasir.engine.machine import describe_machine

    report: dict[str, Any] = {
        "versions": {
            "kvasir": kvasir.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "machine": dataclasses.asdict(describe_machine()),
        "settings": _settings(config, sources),
        "home": _home(config),
        "model": None,
        "kv": None,
        "stored": None,
        "memory": None,
        "choices": [],
        "problem": None,
    }
    try:
        survey = _survey(config)
    except KvasirError as error:
        return report | {"problem": str(error), "stored": _stored(config, None)}
    report |= {
        "model": _model(survey),
        "kv": {
            **dataclasses.asdict(survey.geometry),
            "token_bytes": survey.geometry.token_bytes,
            "pool_tokens": survey.geometry.pool_tokens,
            "pool_bytes": survey.geometry.pool_bytes,
            "layout": survey.geometry.layout_id,
        },
        "stored": _stored(config, survey),
        "memory": survey.memory,
        "choices": [dataclasses.asdict(choice) for choice in survey.choices],
    }
    return report


def _survey(config: Config) -> Survey:
    from kvasir.core.errors import ModelNotFound
    from kvasir.engine.survey import model_cache, survey
    from kvasir.model.source import at_hand

    cache = model_cache(config)
    path = at_hand(config.model, cache)
    if path is None:
        raise ModelNotFound(
            f"the model {config.model or 'for demonstration'} is not here yet\n"
            "doctor obtains nothing\n"
            f"obtain it with: kvasir pull {config.model}".rstrip()
        )
    return survey(config, path, cache)


def _stored(config: Config, survey: Survey | None) -> dict[str, Any]:
    from kvasir.cli.stored_report import stored_report

    return stored_report(config, survey.card.realm if survey is not None else None)


def _model(survey: Survey) -> dict[str, Any]:
    spec, card = survey.files.spec, survey.card
    return {
        "name": card.name,
        "demonstration": card.demonstration,
        "path": str(survey.files.path),
        "architecture": card.architecture,
        "layers": spec.n_layers,
        "heads": spec.n_heads,
        "kv_heads": spec.n_kv_heads,
        "head_dim": spec.head_dim,
        "rope": spec.rope.kind,
        "window": card.window,
        "own_window": spec.window,
        "vocabulary": card.vocab_size,
        "dtype": card.dtype,
        "parameter_bytes": card.parameter_bytes,
        "numerics": card.realm.numerics,
    }


def _settings(config: Config, sources: Mapping[str, str]) -> dict[str, Any]:
    """Every setting with its value and what set it, without what must not be seen."""
    from kvasir.catalog.database import hidden_password

    values: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in _SECRET_SETTINGS:
            value = f"{len(value)} configured"
        elif field.name == "database":
            value = hidden_password(value)
        elif isinstance(value, Path):
            value = str(value)
        values[field.name] = {"value": value, "source": sources.get(field.name, "default")}
    return values


def _home(config: Config) -> dict[str, Any]:
    from kvasir.cli.client import Client
    from kvasir.cli.home import Home

    home = Home(config.home)
    owner = home.owner_pid()
    serves = None
    if owner is not None:
        try:
            with Client(home.socket_path) as client:
                serves = client.model_names()[0]
        except KvasirError:
            serves = None
    return {"path": str(home.path), "owner_pid": owner, "serves": serves}


def as_text(report: Mapping[str, Any]) -> str:
    """The report for people."""
    from kvasir.cli.stored_report import stored_lines

    machine, home = report["machine"], report["home"]
    gib = 2**30
    lines = ["  ".join(f"{name} {version}" for name, version in report["versions"].items())]
    lines += [
        "",
        "machine",
        f"  {machine['cpu']}, {machine['cores']} cores",
        f"  {machine['available_bytes'] / gib:.1f} of {machine['memory_bytes'] / gib:.1f} GiB free",
        f"  {' '.join(machine['flags'])}",
        "",
        "home",
        f"  {home['path']}",
        "  " + _owner_line(home),
        "",
        "settings that are not defaults",
        *(_setting_lines(report["settings"]) or ["  none"]),
    ]
    lines += ["", "stored KV", *(f"  {line}" for line in stored_lines(report["stored"]))]
    if report["model"]:
        lines += ["", "model", *_table(report["model"])]
        lines += ["", "KV", *_table(report["kv"])]
        lines += ["", report["memory"], "", "chosen"]
        for choice in report["choices"]:
            lines.append(f"  {choice['subject']:<12} {choice['taken']}")
            lines += [f"  {'':<12}   {reason}" for reason in choice["reasons"]]
    if report["problem"]:
        lines += ["", "in the way", *(f"  {line}" for line in report["problem"].splitlines())]
    return "\n".join(lines)


def _owner_line(home: Mapping[str, Any]) -> str:
    if home["owner_pid"] is None:
        return "nobody runs on it"
    serves = f"serves {home['serves']}" if home["serves"] else "does not answer (yet)"
    return f"process {home['owner_pid']} runs on it and {serves}"


def _setting_lines(settings: Mapping[str, Any]) -> list[str]:
    return [
        f"  {name:<18} {entry['value']}  (from {entry['source']})"
        for name, entry in settings.items()
        if entry["source"] != "default"
    ]


def _table(values: Mapping[str, Any]) -> list[str]:
    return [
        f"  {name.replace('_', ' '):<18} {value:,}" if type(value) is int
        else f"  {name.replace('_', ' '):<18} {value}"
        for name, value in values.items()
    ]  # fmt: skip
