"""Remembers conversation after conversation in the file it is given, and says which, until killed:
``remembering_child.py FILE FIRST``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from sample_chats import by_bytes, opened, remember, user


def main() -> None:
    transcripts = opened(Path(sys.argv[1]))
    for number in range(int(sys.argv[2]), 1 << 30):
        remember(transcripts, [user(f"the {number}")], "in", by_bytes("in"))
        os.write(1, f"{number}\n".encode())  # whole or not at all, whenever it is killed


if __name__ == "__main__":
    main()
