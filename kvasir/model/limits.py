"""The sizes that a model may claim. Generous beside every published model of these families, and
small enough that tables by layer or by tensor stay small whatever a file says."""

from __future__ import annotations

MAX_LAYERS = 1024
MAX_HIDDEN = 2**17
MAX_HEADS = 4096
MAX_HEAD_DIM = 1024
MAX_INTERMEDIATE = 2**20
MAX_VOCAB = 2**22
MAX_WINDOW = 2**27  # tokens
MAX_THETA = 1e12
MAX_ROPE_FACTOR = 1e5
MIN_EPS, MAX_EPS = 1e-20, 1e-1
