"""Wishes: what the user set. The only reader of the environment and of the config file.

Precedence, merged once: default < TOML file < ``KVASIR_*`` < command-line flag. The result is
frozen; consequences of it are derived elsewhere (``core.geometry``, ``engine.build``).
"""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

import platformdirs

from kvasir.core.errors import ConfigError

NO_KEYS: Mapping[str, str] = MappingProxyType({})
# sets of native kernels, the fastest first; the last one emulates AMX for tests
NATIVE_KERNELS = ("amx", "avx512_bf16", "avx512", "avx2", "amx_emulated")
STORED_FOLDER = "kv"  # of the home: where KV is kept on disk
CATALOG_FILE = "catalog.sqlite"  # of the home: what there is and whose it is


def default_home() -> Path:
    """The home folder where none is set: the platform's user data folder."""
    return Path(platformdirs.user_data_dir("kvasir"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Every setting, its default and its unit. Field names are the TOML keys and, in capitals
    after ``KVASIR_``, the environment variables."""

    model: str = ""  # local folder, GGUF file or hub id; "" = the embedded demonstration model
    alias: tuple[str, ...] = ()  # further names for the model
    device: str = "cpu"  # "cpu", "cuda", "cuda:1"
    dtype: str = "auto"  # "auto", "bfloat16", "float16", "float32"
    kernels: str = "auto"  # "auto", "torch", or a set of native ones from `kvasir doctor`
    weights: str = "auto"  # "auto", "bf16", "int8", "int4": native kernels only
    kv_dtype: str = "auto"  # "auto" (the dtype), "int8": native kernels only
    attention: str = "auto"  # torch's attention backend: "auto" or a name from `kvasir doctor`
    threads: int = 0  # 0 = one per core that this process may use
    home: Path = field(default_factory=default_home)
    host: str = "127.0.0.1"
    port: int = 8000
    allowed_hosts: tuple[str, ...] = ()  # further Host names, beside the loopback ones
    keys: Mapping[str, str] = field(
        default_factory=lambda: NO_KEYS
    )  # SHA-256 hex of a key -> tenant
    kv_gib: float = 0.0  # KV pool; 0 = derived from the machine
    host_gib: float = -1.0  # KV kept in memory beside a device with its own; 0 = none, -1 = derived
    disk_gib: float = -1.0  # KV kept on disk; 0 = none, -1 = derived from what is free
    audit_one_in: int = 1000  # of the restored blocks, one in so many is computed again; 0 = none
    block_tokens: int = 64
    max_window: int = 0  # tokens; 0 = the model's own window
    max_running: int = 64  # sequences computed concurrently
    max_waiting: int = 256  # requests in the queue
    max_waiting_tokens: int = 4_000_000
    step_budget_ms: float = 100.0
    database: str = ""  # URL of the catalog; "" = catalog.sqlite in the home
    max_file_mib: int = 512  # of one uploaded file
    max_import_gib: int = 64  # of one exported context that is taken in
    trusted_signers: tuple[str, ...] = ()  # public keys in hex whose exported KV is taken in
    grace_s: float = 20.0  # how long SIGTERM lets running answers finish
    seed: int = 0  # seed of requests that set none: 0 = a random one for each
    log_level: str = "info"


def database_url(config: Config) -> str:
    """Where the catalog is: what is set, else a file in the home."""
    path = config.home.absolute() / CATALOG_FILE
    return config.database or f"sqlite:///{quote(str(path))}"


def load(
    flags: Mapping[str, Any] | None = None,
    *,
    env: Mapping[str, str] | None = None,
    file: Path | None = None,
) -> Config:
    """Merge defaults, the TOML file, the environment and ``flags`` (None values are unset).

    The file is ``file``, else ``KVASIR_CONFIG``, else ``kvasir.toml`` in the home folder where one
    is there. Raises ``ConfigError`` naming the setting, its source and what is accepted.
    """
    return explain(flags, env=env, file=file)[0]


def explain(
    flags: Mapping[str, Any] | None = None,
    *,
    env: Mapping[str, str] | None = None,
    file: Path | None = None,
) -> tuple[Config, Mapping[str, str]]:
    """``load``, and for each setting that is not a default the source that set it."""
    env = os.environ if env is None else env
    given = {k: v for k, v in (flags or {}).items() if v is not None}
    merged: dict[str, Any] = {}
    sources: dict[str, str] = {}
    home = Path(given.get("home") or env.get("KVASIR_HOME") or default_home()).expanduser()
    path = file or (Path(env["KVASIR_CONFIG"]) if env.get("KVASIR_CONFIG") else None)
    if path is None and (home / "kvasir.toml").is_file():
        path = home / "kvasir.toml"
    if path is not None:
        merged = _from_file(path)
        sources = dict.fromkeys(merged, str(path))
    for name in _FIELDS:
        variable = f"KVASIR_{name.upper()}"
        value = env.get(variable)
        if value is not None and name != "keys":
            merged[name] = _parse(name, value, variable)
            sources[name] = variable
    for name, value in given.items():
        flag = f"--{name.replace('_', '-')}"
        merged[name] = _parse(name, value, flag)
        sources[name] = flag
    merged["home"] = Path(merged.get("home", home)).expanduser()
    config = Config(**merged)
    _check(config)
    return config, MappingProxyType(sources)


_FIELDS = {f.name: f for f in dataclasses.fields(Config)}


def _from_file(path: Path) -> dict[str, Any]:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the config file {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the config file {path} is not valid TOML: {error}") from error
    unknown = sorted(set(data) - set(_FIELDS))
    if unknown:
        raise ConfigError(
            f"unknown settings in {path}: {', '.join(unknown)}; `kvasir doctor` lists all"
        )
    return {name: _parse(name, value, str(path)) for name, value in data.items()}


def _parse(name: str, value: Any, source: str) -> Any:
    """``value`` as the type of setting ``name``; strings from the environment are converted."""
    wanted: Any = type(_FIELDS[name].default)
    try:
        if name == "home":
            return Path(value)
        if name == "keys":
            return _parse_keys(value)
        if wanted is tuple:
            parts = value.split(",") if isinstance(value, str) else list(value)
            return tuple(str(p).strip() for p in parts if str(p).strip())
        if wanted is str:
            if not isinstance(value, str):
                raise ValueError("expected text")
            return value
        if isinstance(value, bool):
            raise ValueError("expected a number")
        if wanted is int and isinstance(value, float):
            raise ValueError("expected a whole number")
        return wanted(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"setting {name!r} from {source}: {value!r} does not do: {error}"
        ) from error


def _parse_keys(value: Any) -> Mapping[str, str]:
    if not isinstance(value, Mapping):
        raise ValueError("expected a table of SHA-256 digest = tenant")
    keys: dict[str, str] = {}
    for digest, tenant in value.items():
        text = str(digest).lower()
        if len(text) != 64 or any(c not in "0123456789abcdef" for c in text):
            raise ValueError(f"{digest!r} is not a SHA-256 digest in hex (64 characters)")
        if not isinstance(tenant, str) or not tenant:
            raise ValueError(f"the tenant of {text[:8]}… must be a name")
        keys[text] = tenant
    return MappingProxyType(keys)


_RANGES: dict[str, tuple[float, float]] = {
    "threads": (0, 1024),
    "port": (0, 65_535),
    "kv_gib": (0, 65_536),
    "host_gib": (-1, 65_536),
    "disk_gib": (-1, 1_048_576),
    "audit_one_in": (0, 2**31 - 1),
    "block_tokens": (1, 1024),
    "max_window": (0, 16_777_216),
    "max_running": (1, 4096),
    "max_waiting": (1, 1_000_000),
    "max_waiting_tokens": (1, 2**40),
    "step_budget_ms": (1, 60_000),
    "max_file_mib": (1, 1_048_576),
    "max_import_gib": (1, 65_536),
    "grace_s": (0, 3600),
    "seed": (0, 2**63 - 1),
}


def _check(config: Config) -> None:
    for name, (low, high) in _RANGES.items():
        value = getattr(config, name)
        if not low <= value <= high:
            raise ConfigError(
                f"setting {name!r} is {value}; it must lie between {low:g} and {high:g}"
            )
    choices = {
        "dtype": ("auto", "bfloat16", "float16", "float32"),
        "kernels": ("auto", "torch", *NATIVE_KERNELS),
        "weights": ("auto", "bf16", "int8", "int4"),
        "kv_dtype": ("auto", "int8"),
    }
    for name, allowed in choices.items():
        value = getattr(config, name)
        if value not in allowed:
            raise ConfigError(f"setting {name!r} is {value!r}; choose one of {', '.join(allowed)}")
