"""Obtain a model from the Hugging Face hub: safetensors, configs and tokenizer, nothing else.

Invariant: names, sizes and commits that a hub says are checked before they are used in a path or
waited for, so a hostile reply cannot write outside the repository's folder in the cache nor more
than it announced; and a snapshot has its final name only when every file of it is complete.

The hub's own library lists the repository, builds addresses and headers and carries the token and
proxy settings. Its download functions are not used: they make paths of the ``ETag`` header.
Layout: ``hub/<org>--<name>/snapshots/<commit>/…`` and ``refs/<revision>`` naming a commit.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, get_session, get_token, hf_hub_url, hf_raise_for_status
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoSibling

from kvasir.core.errors import CorruptWeights, ModelNotFound, UnsupportedModel
from kvasir.model.atomic import locked, sync_folder, written
from kvasir.model.fields import read_json_object, shorten
from kvasir.model.safetensors_file import INDEX, MAX_HEADER_BYTES, SINGLE

Report = Callable[[str], None]

SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    INDEX,
)
MAX_SMALL_BYTES = 256 * 2**20
MAX_LISTED = 100_000
MAX_SHARDS = 2000
TIMEOUT_S = 30.0
CHUNK_BYTES = 2**20
REPORT_EVERY_BYTES = 256 * 2**20
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_SHARD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}\.safetensors")
_SHA1 = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class _Remote:
    """One file that will be obtained; every field is checked. ``sha256`` is None outside LFS."""

    name: str
    n_bytes: int
    sha256: str | None
    git_sha1: str | None


@dataclass(frozen=True, slots=True)
class _Repo:
    name: str  # "org/name"
    commit: str
    files: Mapping[str, _Remote]
    endpoint: str | None


def obtain(
    repo: str,
    revision: str,
    cache: Path,
    report: Report,
    *,
    refresh: bool = False,
    endpoint: str | None = None,
) -> Path:
    """The folder in ``cache`` with ``revision`` of ``repo`` ("org/name").

    A revision that is there is used as it is, without a network, unless ``refresh``. Raises
    ``ModelNotFound`` where the hub cannot be reached, does not have it or does not let us, and
    ``UnsupportedModel`` for a repository without safetensors.
    """
    home, ref = _places(repo, revision, cache)
    known = _known(home, ref)
    if known is not None and not refresh:
        return known
    try:
        for folder in (home / "refs", home / "snapshots", home / "partial"):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with locked(home / "lock"):
            known = None if refresh else _known(home, ref)
            if known is not None:
                return known
            listed = _list(repo, revision, endpoint, report)
            snapshot = _snapshot(listed, home, report)
            with written(ref) as file:
                file.write(listed.commit.encode())
            return snapshot
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        gated = isinstance(error, GatedRepoError)
        reason = (
            "is gated: accept its terms on the hub and set HF_TOKEN"
            if gated
            else f"is not on the hub at revision {revision!r}, or is private: check the spelling, "
            "or set HF_TOKEN"
        )
        raise ModelNotFound(f"the model {repo} {reason}.") from error
    except (httpx2.HTTPError, OSError) as error:
        raise ModelNotFound(
            f"could not obtain {repo}: {_first_line(error)}. With a network, `kvasir pull {repo}` "
            "goes on where it stopped; without one, give a local folder or .gguf file."
        ) from error


def at_hand(repo: str, revision: str, cache: Path) -> Path | None:
    """The folder in ``cache`` with ``revision`` of ``repo`` if it was obtained before."""
    return _known(*_places(repo, revision, cache))


def _places(repo: str, revision: str, cache: Path) -> tuple[Path, Path]:
    """The folder of ``repo`` in ``cache`` and the file that names the commit of ``revision``."""
    home = cache / "hub" / repo.replace("/", "--")
    return home, home / "refs" / urllib.parse.quote(revision, safe="")


def _known(home: Path, ref: Path) -> Path | None:
    if not ref.is_file():
        return None
    commit = ref.read_text(encoding="ascii", errors="replace").strip()
    snapshot = home / "snapshots" / commit
    return snapshot if _COMMIT.fullmatch(commit) and snapshot.is_dir() else None


def _list(repo: str, revision: str, endpoint: str | None, report: Report) -> _Repo:
    report(f"asking the hub for {repo} at {revision}")
    info = HfApi(endpoint=endpoint).model_info(
        repo, revision=revision, files_metadata=True, timeout=TIMEOUT_S
    )
    if not isinstance(info.sha, str) or not _COMMIT.fullmatch(info.sha):
        raise CorruptWeights(f"the hub names {shorten(info.sha)} as the commit of {repo}")
    siblings = info.siblings or []
    if len(siblings) > MAX_LISTED:
        raise CorruptWeights(f"{repo} lists {len(siblings)} files; at most {MAX_LISTED} are read")
    files = {remote.name: remote for remote in _usable(repo, siblings)}
    weights = [name for name in files if name.endswith(".safetensors")]
    if "config.json" not in files or not weights:
        names = [str(s.rfilename) for s in siblings]
        raise UnsupportedModel(
            f"{repo} has no {'config.json' if weights else 'safetensors files'} ({_kinds(names)}); "
            "Kvasir obtains models in the Hugging Face layout with safetensors weights"
        )
    return _Repo(repo, info.sha, files, endpoint)


def _usable(repo: str, siblings: Iterable[RepoSibling]) -> Iterable[_Remote]:
    """The files by the names that are obtained; all others, paths above all, are left alone."""
    for sibling in siblings:
        name = sibling.rfilename
        if not isinstance(name, str) or not (name in SMALL_FILES or _SHARD.fullmatch(name)):
            continue
        size = sibling.size
        most = MAX_SMALL_BYTES if name in SMALL_FILES else 2**50
        if isinstance(size, bool) or not isinstance(size, int) or not 0 < size <= most:
            raise CorruptWeights(f"the hub says {name} of {repo} has {shorten(size)} bytes")
        if sibling.lfs is not None:  # the blob of an LFS file is its pointer
            yield _Remote(name, size, _digest(sibling.lfs.sha256, _SHA256), None)
        else:
            yield _Remote(name, size, None, _digest(sibling.blob_id, _SHA1))


def _digest(value: object, form: re.Pattern[str]) -> str | None:
    return value if isinstance(value, str) and form.fullmatch(value) else None


def _kinds(names: list[str]) -> str:
    for ending, kind in ((".gguf", "GGUF files"), (".bin", "pickled weights")):
        if any(name.endswith(ending) for name in names):
            return f"it has {kind}"
    return f"it lists {len(names)} files"


def _snapshot(repo: _Repo, home: Path, report: Report) -> Path:
    final = home / "snapshots" / repo.commit
    if final.is_dir():
        return final
    partial = home / "partial" / repo.commit
    partial.mkdir(exist_ok=True, mode=0o700)
    for name in SMALL_FILES:
        if name in repo.files:
            _fetch(repo, repo.files[name], partial, report)
    shards = _shards(repo, partial)
    total = sum(shard.n_bytes for shard in shards)
    free = shutil.disk_usage(partial).free
    report(f"{repo.name}: {len(shards)} weight files, {total / 1e9:.2f} GB; {free / 1e9:.1f} free")
    if total > free:
        raise ModelNotFound(
            f"{repo.name} needs {total / 1e9:.2f} GB, and {home} has {free / 1e9:.2f} GB free"
        )
    for shard in shards:
        _fetch(repo, shard, partial, report)
    sync_folder(partial)
    partial.rename(final)
    sync_folder(final.parent)
    return final


def _shards(repo: _Repo, partial: Path) -> list[_Remote]:
    """The weight files that the index names, else the single one; a repository may hold the same
    weights in other groupings too, which are not obtained."""
    if INDEX not in repo.files:
        if SINGLE not in repo.files:
            raise UnsupportedModel(f"{repo.name} has neither {SINGLE} nor {INDEX}")
        return [repo.files[SINGLE]]
    weight_map = read_json_object(partial / INDEX, MAX_HEADER_BYTES).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CorruptWeights(f"{INDEX} of {repo.name} has no weight_map")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if name not in repo.files or not _SHARD.fullmatch(name):
            raise CorruptWeights(f"{INDEX} of {repo.name} names {shorten(name)}, which it lacks")
    if len(names) > MAX_SHARDS:
        raise CorruptWeights(f"{INDEX} of {repo.name} names {len(names)} files")
    return [repo.files[name] for name in names]


def _fetch(repo: _Repo, remote: _Remote, folder: Path, report: Report) -> None:
    """Download ``remote`` into ``folder``, going on where an earlier try stopped."""
    target = folder / remote.name
    if target.is_file() and target.stat().st_size == remote.n_bytes:
        return  # it got this name only after its digest was checked
    part = folder / (remote.name + ".part")
    have = part.stat().st_size if part.is_file() else 0
    if have > remote.n_bytes:
        part.unlink()
        have = 0
    if have < remote.n_bytes:
        _stream(repo, remote, part, have, report)
    _check(part, remote)
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    part.rename(target)


def _stream(repo: _Repo, remote: _Remote, part: Path, have: int, report: Report) -> None:
    url = hf_hub_url(repo.name, remote.name, revision=repo.commit, endpoint=repo.endpoint)
    headers = {"Accept-Encoding": "identity"}  # sizes are those of the file
    token = get_token()
    if token:  # the client drops it where a redirect leads to another host
        headers["Authorization"] = f"Bearer {token}"
    if have:
        headers["Range"] = f"bytes={have}-"
    with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT_S) as response:
        hf_raise_for_status(response)
        if response.status_code != 206:
            have = 0
        told = have
        with part.open("ab" if have else "wb") as file:
            for chunk in response.iter_raw():  # as it arrives, so that what came is kept
                have += len(chunk)
                if have > remote.n_bytes:
                    break
                file.write(chunk)
                if have - told >= REPORT_EVERY_BYTES:
                    told = have
                    report(f"{remote.name}: {have / 1e9:.2f} of {remote.n_bytes / 1e9:.2f} GB")
    if have != remote.n_bytes:
        if have > remote.n_bytes:
            part.unlink()
        raise ModelNotFound(
            f"{remote.name} of {repo.name} ended at {have} of {remote.n_bytes} bytes; "
            f"`kvasir pull {repo.name}` tries again"
        )


def _check(part: Path, remote: _Remote) -> None:
    """Compare with the digest that the hub's listing gives, where it gives one."""
    wanted = remote.sha256 or remote.git_sha1
    if wanted is None:
        return
    if remote.sha256:
        digest = hashlib.sha256()
    else:  # git's own object name; not a protection, it finds damage
        digest = hashlib.sha1(f"blob {remote.n_bytes}\0".encode(), usedforsecurity=False)
    with part.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    if digest.hexdigest() != wanted:
        part.unlink()
        raise CorruptWeights(
            f"{remote.name} arrived with the digest {digest.hexdigest()}, expected {wanted}. It "
            "was discarded; try again."
        )


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
