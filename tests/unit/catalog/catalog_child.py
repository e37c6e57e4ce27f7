"""What other processes do with the database at the same time. Arguments: what, URL, a word, count.

Everything that was acknowledged is a line on stdout.
"""

from __future__ import annotations

import sys

from catalog_samples import context_row, file_row, section

from kvasir.catalog.catalog import Catalog, open_catalog


def tell(word: object) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


def append(catalog: Catalog, word: str, count: int) -> None:
    for turn in range(count):
        tell(catalog.events.append("ctx_1", word, {"turn": turn}, turn))


def claim(catalog: Catalog, word: str, count: int) -> None:
    for turn in range(count):
        tell(catalog.idempotency.claim("ann", f"key-{turn}", word, turn).state)


def write(catalog: Catalog, word: str, count: int) -> None:
    """Files and contexts, until somebody kills us."""
    for turn in range(count):
        name = f"{word}-{turn}"
        catalog.files.add(file_row(f"file-{name}", created_at=turn))
        catalog.contexts.add(context_row(f"ctx_{name}"), [section(n % 256) for n in range(50)])
        catalog.events.append(f"ctx_{name}", "made", {}, turn)
        catalog.files.remove("ann", f"file-{word}-{turn - 1}")
        tell(name)


if __name__ == "__main__":
    what, url, word, count = sys.argv[1:]
    {"append": append, "claim": claim, "write": write}[what](open_catalog(url), word, int(count))
