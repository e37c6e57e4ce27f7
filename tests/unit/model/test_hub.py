"""The hub's protocol against a stub: listing, redirects, resuming, hostile replies."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlparse

import pytest
from synthetic_models import config_of, random_weights, safetensors_bytes

from kvasir.core.errors import CorruptWeights, ModelError, ModelNotFound, UnsupportedModel
from kvasir.model import hub
from kvasir.model.config_json import spec_from_config
from kvasir.model.files import open_model

COMMIT = "a" * 40
CONFIG = config_of("llama")


@dataclass
class Stub:
    """What the stub answers, and what it was asked."""

    files: dict[str, bytes] = field(default_factory=dict)
    sha: object = COMMIT
    sizes: dict[str, object] = field(default_factory=dict)  # announced instead of the true ones
    digests: dict[str, str] = field(default_factory=dict)
    served: dict[str, bytes] = field(default_factory=dict)  # sent instead of the announced files
    cut_at: dict[str, int] = field(default_factory=dict)  # the connection ends there, once
    status: int = 200
    error_code: str = ""
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    endpoint: str = ""
    cdn: str = ""

    def paths(self, prefix: str = "") -> list[str]:
        return [path for _, path, _ in self.asked if path.startswith(prefix)]


class _Handler(BaseHTTPRequestHandler):
    stub: Stub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        stub = self.stub
        path = urlparse(self.path).path
        stub.asked.append((self.headers["Host"], path, dict(self.headers)))
        if stub.status != 200:
            self._send(stub.status, b"{}", {"X-Error-Code": stub.error_code})
        elif path.startswith("/api/models/org/tiny"):
            self._send(200, self._listing(), {"Content-Type": "application/json"})
        elif path.startswith(f"/org/tiny/resolve/{COMMIT}/"):
            name = path.rsplit("/", 1)[1]
            if name.endswith(".safetensors"):  # as the real hub: large files are elsewhere
                self._send(302, b"", {"Location": f"{stub.cdn}/blob/{name}"})
            else:
                self._file(name)
        elif path.startswith("/blob/"):
            self._file(path.rsplit("/", 1)[1])
        else:
            self._send(404, b"{}", {})

    def _listing(self) -> bytes:
        siblings = []
        for name, data in self.stub.files.items():
            size = self.stub.sizes.get(name, len(data))
            entry: dict[str, object] = {"rfilename": name, "size": size}
            if name.endswith(".safetensors"):
                digest = self.stub.digests.get(name, hashlib.sha256(data).hexdigest())
                entry["lfs"] = {"sha256": digest, "size": size, "pointerSize": 100}
            else:
                blob = hashlib.sha1(  # noqa: S324 - git's own names
                    f"blob {len(data)}\0".encode() + data
                ).hexdigest()
                entry["blobId"] = self.stub.digests.get(name, blob)
            siblings.append(entry)
        return json.dumps({"id": "org/tiny", "sha": self.stub.sha, "siblings": siblings}).encode()

    def _file(self, name: str) -> None:
        data = self.stub.served.get(name, self.stub.files[name])
        begin = 0
        if "Range" in self.headers:
            begin = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        cut = self.stub.cut_at.pop(name, None)
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(data) - begin))
        self.send_header("ETag", '"../../../../escape"')
        self.end_headers()
        self.wfile.write(data[begin:] if cut is None else data[begin:cut])
        if cut is not None:
            self.close_connection = True

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    def handle_error(self, *args: object) -> None:
        """A client that hangs up early is what some tests want."""


@pytest.fixture
def stub() -> Iterator[Stub]:
    weights = random_weights(spec_from_config(CONFIG))
    answers = Stub(
        files={
            "config.json": json.dumps(CONFIG).encode(),
            "tokenizer.json": b"{}",
            "model.safetensors": safetensors_bytes(weights),
            "pytorch_model.bin": b"never",
            "modeling_evil.py": b"never",
            "onnx/model.safetensors": b"never",
            "README.md": b"never",
        }
    )
    handler = type("Handler", (_Handler,), {"stub": answers})
    servers = [_Server(("127.0.0.1", 0), handler) for _ in range(2)]
    threads = [threading.Thread(target=server.serve_forever, args=(0.02,)) for server in servers]
    for thread in threads:
        thread.start()
    answers.endpoint, answers.cdn = (
        f"http://127.0.0.1:{server.server_address[1]}" for server in servers
    )
    yield answers
    for server, thread in zip(servers, threads, strict=True):
        server.shutdown()
        thread.join()
        server.server_close()


def obtain(stub: Stub, cache: Path, **changes: object) -> Path:
    said: list[str] = []
    return hub.obtain("org/tiny", "main", cache, said.append, endpoint=stub.endpoint, **changes)  # type: ignore[arg-type]


def everything_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_only_weights_configs_and_tokenizer_are_obtained(stub: Stub, tmp_path: Path) -> None:
    folder = obtain(stub, tmp_path)
    assert everything_in(folder) == {"config.json", "tokenizer.json", "model.safetensors"}
    assert open_model(folder).spec.architecture == "llama"
    asked = {path.rsplit("/", 1)[1] for path in stub.paths(f"/org/tiny/resolve/{COMMIT}/")}
    assert asked == {"config.json", "tokenizer.json", "model.safetensors"}


def test_what_is_there_is_used_without_a_network(stub: Stub, tmp_path: Path) -> None:
    folder = obtain(stub, tmp_path)
    asked = len(stub.asked)
    stub.status = 500
    assert obtain(stub, tmp_path) == folder
    assert len(stub.asked) == asked
    with pytest.raises(ModelNotFound, match="kvasir pull org/tiny"):
        obtain(stub, tmp_path, refresh=True)


def test_the_token_goes_to_the_hub_and_not_where_it_redirects(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    obtain(stub, tmp_path)
    hub_host, cdn_host = (urlparse(url).netloc for url in (stub.endpoint, stub.cdn))
    tokens = {(host, headers.get("Authorization")) for host, _, headers in stub.asked}
    lowered = {(host, headers.get("authorization")) for host, _, headers in stub.asked}
    seen = {pair for pair in tokens | lowered if pair[1] is not None}
    assert seen == {(hub_host, "Bearer hf_secret")}
    assert any(host == cdn_host for host, _, _ in stub.asked)


def test_a_broken_download_goes_on_where_it_stopped(stub: Stub, tmp_path: Path) -> None:
    stub.cut_at["model.safetensors"] = 5000
    with pytest.raises(ModelNotFound):
        obtain(stub, tmp_path)
    assert not list(tmp_path.rglob("snapshots/*"))
    folder = obtain(stub, tmp_path)
    ranges = [headers.get("Range") or headers.get("range") for _, _, headers in stub.asked]
    assert "bytes=5000-" in ranges
    stored = (folder / "model.safetensors").read_bytes()
    assert stored == stub.files["model.safetensors"]


def test_shards_of_the_index_and_no_other_groupings(stub: Stub, tmp_path: Path) -> None:
    weights = random_weights(spec_from_config(CONFIG))
    names = list(weights)
    del stub.files["model.safetensors"]
    index = {name: f"model-{1 + (i > 3)}.safetensors" for i, name in enumerate(names)}
    for file in set(index.values()):
        held = {name: weights[name] for name in names if index[name] == file}
        stub.files[file] = safetensors_bytes(held)
    stub.files["consolidated.safetensors"] = b"the same weights once more"
    stub.files["model.safetensors.index.json"] = json.dumps({"weight_map": index}).encode()
    folder = obtain(stub, tmp_path)
    assert "consolidated.safetensors" not in everything_in(folder)
    assert len(open_model(folder).weight_files()) == 2


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (404, "RepoNotFound", "not on the hub"),
        (404, "RevisionNotFound", "revision 'main'"),
        (403, "GatedRepo", "gated"),
        (500, "", "could not obtain"),
    ],
)
def test_refusals_of_the_hub_say_what_to_do(
    stub: Stub, tmp_path: Path, status: int, code: str, said: str
) -> None:
    stub.status, stub.error_code = status, code
    with pytest.raises(ModelNotFound, match=said):
        obtain(stub, tmp_path)


def test_no_network_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"local folder or \.gguf"):
        hub.obtain("org/tiny", "main", tmp_path, print, endpoint="http://127.0.0.1:9")


def test_repositories_without_safetensors_say_what_they_have(stub: Stub, tmp_path: Path) -> None:
    del stub.files["model.safetensors"]
    with pytest.raises(UnsupportedModel, match="pickled weights"):
        obtain(stub, tmp_path)


# --- hostile replies ------------------------------------------------------------------------------

ESCAPES = [
    "../escape.safetensors",
    "../../../../escape.safetensors",
    "/tmp/escape.safetensors",
    "..\\escape.safetensors",
    "a/../../escape.safetensors",
    ".safetensors",
    "x\0.safetensors",
    "../config.json",
]


@pytest.mark.parametrize("name", ESCAPES)
def test_listed_names_do_not_escape(stub: Stub, tmp_path: Path, name: str) -> None:
    stub.files[name] = b"escaped"
    cache = tmp_path / "cache"
    obtain(stub, cache)
    kept = {path.rsplit("/", 1)[-1] for path in everything_in(tmp_path)}
    assert kept == {"config.json", "tokenizer.json", "model.safetensors", "main", "lock"}
    assert everything_in(tmp_path) == {f"cache/{path}" for path in everything_in(cache)}


@pytest.mark.parametrize("name", ["../model.safetensors", "other.safetensors", "config.json", 7])
def test_names_of_the_index_do_not_escape(stub: Stub, tmp_path: Path, name: object) -> None:
    index = json.dumps({"weight_map": {"a": name}}).encode()
    stub.files["model.safetensors.index.json"] = index
    with pytest.raises(ModelError):
        obtain(stub, tmp_path)
    assert not list(tmp_path.rglob("snapshots/*"))


@pytest.mark.parametrize("sha", ["../../escape", "", "a" * 39, None, 7, "A" * 40])
def test_commits_that_are_none_are_refused(stub: Stub, tmp_path: Path, sha: object) -> None:
    stub.sha = sha
    with pytest.raises(CorruptWeights, match="commit"):
        obtain(stub, tmp_path)


@pytest.mark.parametrize("size", [-1, 0, 2**63, "9", None, True, 1.5])
def test_absurd_sizes_are_refused(stub: Stub, tmp_path: Path, size: object) -> None:
    stub.sizes["model.safetensors"] = size
    with pytest.raises(CorruptWeights, match="bytes"):
        obtain(stub, tmp_path)


def test_more_than_the_disk_holds_is_refused_before_it_is_asked_for(
    stub: Stub, tmp_path: Path
) -> None:
    stub.sizes["model.safetensors"] = 2**49
    with pytest.raises(ModelNotFound, match="free"):
        obtain(stub, tmp_path)
    assert not stub.paths("/blob/")


def test_more_bytes_than_announced_are_not_kept(stub: Stub, tmp_path: Path) -> None:
    stub.served["model.safetensors"] = stub.files["model.safetensors"] + b"x" * 5_000_000
    with pytest.raises(ModelNotFound, match="ended at"):
        obtain(stub, tmp_path)
    assert not list(tmp_path.rglob("model.safetensors*"))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_damaged_files_are_discarded(stub: Stub, tmp_path: Path, name: str) -> None:
    stub.served[name] = stub.files[name][:-1] + b"!"
    with pytest.raises(CorruptWeights, match="digest"):
        obtain(stub, tmp_path)
    assert not list(tmp_path.rglob(name + "*"))
    stub.served.clear()
    assert open_model(obtain(stub, tmp_path)).kind == "folder"


def test_a_ref_that_points_elsewhere_is_not_followed(stub: Stub, tmp_path: Path) -> None:
    obtain(stub, tmp_path)
    (ref,) = tmp_path.rglob("refs/main")
    ref.write_text("../../../..")
    assert obtain(stub, tmp_path).name == COMMIT


def test_resolve_goes_through_the_settings_of_the_hubs_library(stub: Stub, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from kvasir.model.source import resolve\n"
        "print(resolve('org/tiny@main', Path(sys.argv[1]), lambda line: None))\n"
        "assert 'torch' not in sys.modules"
    )
    env = os.environ | {"HF_ENDPOINT": stub.endpoint, "HF_TOKEN": "hf_other"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env=env,
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[3],
    )
    assert done.returncode == 0, done.stderr
    assert open_model(Path(done.stdout.strip())).kind == "folder"
