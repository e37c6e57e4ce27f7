"""Which modules reach which: the layers, and what the command line loads before it must."""

from __future__ import annotations

import subprocess
import sys

import pytest
from sources import ROOT

HEAVY = {
    "torch", "numpy", "fastapi", "starlette", "uvicorn", "httpx2", "rich", "jinja2", "tokenizers",
    "huggingface_hub", "safetensors", "gguf", "prometheus_client", "asyncio",
}  # fmt: skip


def test_imports_point_downward_and_policy_never_reaches_torch() -> None:
    command = "from importlinter.cli import lint_imports_command as main; main()"
    done = subprocess.run(
        [sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _modules_after(statement: str) -> set[str]:
    """The top-level modules that are loaded once a new interpreter has run ``statement``."""
    code = f"{statement}\nimport sys\nprint('\\n'.join({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split("\n"))


_HELP = """
from kvasir.cli.main import app
try:
    app({arguments!r})
except SystemExit as end:
    assert not end.code
"""


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["serve", "--help"], ["ask", "--help"]]
)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    assert _modules_after(_HELP.format(arguments=arguments)) & HEAVY == set()


@pytest.mark.parametrize("package", ["core", "kv", "sched", "text.codec", "service.app"])
def test_policy_and_service_run_without_torch(package: str) -> None:
    assert "torch" not in _modules_after(f"import kvasir.{package}")


def test_asking_a_running_server_needs_no_torch() -> None:
    """What `kvasir ask` imports where a server runs: its question costs no second of start-up."""
    modules = "answer, ask, chat, client, connect, documents, home, pull, show"
    loaded = _modules_after(f"from kvasir.cli import {modules}\nimport kvasir.model.source")
    assert loaded & {"torch", "numpy", "fastapi", "uvicorn", "huggingface_hub"} == set()
