"""What product code never does, and how long its files may be."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest
from sources import dotted, name_of, product_files, trees

MAX_LINES = 450
# Files that are longer, each with its reason. Take one out when it has become shorter.
LONGER: dict[str, str] = {}

BANNED_MODULES = {
    "pickle": "runs what it reads",
    "cPickle": "runs what it reads",
    "dill": "runs what it reads",
    "cloudpickle": "runs what it reads",
    "marshal": "runs what it reads",
    "shelve": "is pickle inside",
}
BANNED_CALLS = {
    "eval": "runs text",
    "exec": "runs text",
    "compile": "runs text",
    "__import__": "hides an import",
    "torch.load": "is pickle inside; weights come from safetensors and GGUF",
    "torch.hub.load": "runs remote code",
    "torch.compile": "needs a compiler on the user's machine",
    "np.load": "may be pickle inside",
    "numpy.load": "may be pickle inside",
    "jinja2.Environment": "a template would reach Python's objects; use the sandbox",
    "jinja2.Template": "a template would reach Python's objects; use the sandbox",
    "os.system": "hands text to a shell",
    "os.popen": "hands text to a shell",
    "tempfile.mktemp": "somebody else may make the file first",
}
# Who may read the environment beside core.config, and why.
ENVIRONMENT_READERS = {
    "kvasir/core/config.py": "the only reader of settings",
    "kvasir/text/template.py": "passes a few variables on to the process that renders templates",
    "kvasir/bench/peers.py": "a measuring program with settings of its own",
    "kvasir/bench/restore.py": "a measuring program with settings of its own",
    "kvasir/__init__.py": "tells OpenMP how long to spin, before torch is loaded",
    "kvasir/bench/documents.py": "a measuring program with settings of its own",
    "kvasir/bench/quality.py": "a measuring program with settings of its own",
    "kvasir/bench/arms.py": "looks whether an engine's interpreter has it, in its environment",
    "kvasir/bench/engines/vllm.py": "tells which of vLLM's own variables hold",
    "kvasir/bench/run.py": "passes the environment on to the engines that it measures",
}


def _imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.lineno, node.module
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def _findings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Everything that is banned in ``tree``."""
    aliases: dict[str, str] = {}  # what a bare name stands for, by its import
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            aliases |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    for line, name in _imports(tree):
        for banned, why in BANNED_MODULES.items():
            if name == banned or name.startswith(banned + "."):
                yield line, f"imports {name}, which {why}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            yield node.lineno, "asserts: `python -O` takes asserts away, so raise an error"
        elif isinstance(node, ast.Call):
            called = dotted(node.func)
            called = aliases.get(called, called)
            if called in BANNED_CALLS:
                yield node.lineno, f"calls {called}, which {BANNED_CALLS[called]}"
            for keyword in node.keywords:
                if (keyword.arg, ast.unparse(keyword.value)) in {
                    ("shell", "True"),
                    ("trust_remote_code", "True"),
                    ("allow_pickle", "True"),
                }:
                    yield node.lineno, f"says {keyword.arg}=True"


def _reads_environment(tree: ast.Module) -> bool:
    names = {"os.environ", "os.getenv", "os.environb", "os.putenv"}
    return any(dotted(node) in names for node in ast.walk(tree)) or any(
        name in names for _, name in _imports(tree)
    )


def test_no_banned_call_import_or_assert() -> None:
    found = [f"{name}:{line} {what}" for name, tree in trees() for line, what in _findings(tree)]
    assert found == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "import torch\ntorch.load('x')",
        "from torch import load\nload('x')",
        "eval('1')",
        "exec('1')",
        "import jinja2\njinja2.Environment()",
        "from jinja2 import Environment\nEnvironment()",
        "assert 1",
        "import subprocess\nsubprocess.run('x', shell=True)",
    ],
)
def test_the_rules_find_what_they_are_for(code: str) -> None:
    assert list(_findings(ast.parse(code)))


def test_only_the_config_reads_the_environment() -> None:
    readers = {name for name, tree in trees() if _reads_environment(tree)}
    assert readers == set(ENVIRONMENT_READERS)


def test_files_stay_short() -> None:
    lines = {name_of(path): len(path.read_text().splitlines()) for path in product_files()}
    too_long = {name: n for name, n in lines.items() if n > MAX_LINES}
    assert set(too_long) == set(LONGER), f"more than {MAX_LINES} lines: {too_long}"


def test_every_module_says_what_it_is_for() -> None:
    assert [name for name, tree in trees() if not ast.get_docstring(tree)] == []
