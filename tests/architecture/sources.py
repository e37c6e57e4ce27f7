"""The product's source files, parsed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ROOT / "kvasir"


def product_files() -> list[Path]:
    """Every Python file of the product."""
    return sorted(PRODUCT.rglob("*.py"))


def name_of(path: Path) -> str:
    """How tests speak of ``path``."""
    return path.relative_to(ROOT).as_posix()


def trees() -> Iterator[tuple[str, ast.Module]]:
    """Name and syntax tree of every product file."""
    for path in product_files():
        yield name_of(path), ast.parse(path.read_text(encoding="utf-8"))


def dotted(node: ast.AST) -> str:
    """``a.b.c`` for the expression of that form, else nothing."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        head = dotted(node.value)
        return f"{head}.{node.attr}" if head else ""
    return ""
