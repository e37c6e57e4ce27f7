"""The structures of ``native/abi.h``, field by field; ``VERSION`` is theirs.

Invariant: pointers are plain integers here. Whoever fills a structure keeps what they name alive.
"""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int32, c_int64, c_void_p

VERSION = 2
PANEL = 32  # output columns of a packed panel; widths of rows are padded to it

BF16, INT8, INT4 = 0, 1, 2  # Format
PLAIN, ROTATED_INT8 = 0, 1  # Codec


class Linear(ctypes.Structure):
    """A projection with packed weights."""

    _fields_ = (
        ("weight", c_void_p),
        ("scale", c_void_p),
        ("bias", c_void_p),
        ("n_out", c_int32),
        ("n_in", c_int32),
        ("format", c_int32),
        ("reserved", c_int32),
    )


class Layer(ctypes.Structure):
    """One decoder layer."""

    _fields_ = (
        ("attention_norm", c_void_p),
        ("query_norm", c_void_p),
        ("key_norm", c_void_p),
        ("feed_forward_norm", c_void_p),
        ("qkv", Linear),
        ("output", Linear),
        ("gate_up", Linear),
        ("down", Linear),
        ("window", c_int64),
        ("sinks", c_int64),
    )


class Model(ctypes.Structure):
    """A decoder."""

    _fields_ = (
        ("n_layers", c_int32),
        ("hidden", c_int32),
        ("n_heads", c_int32),
        ("n_kv_heads", c_int32),
        ("head_dim", c_int32),
        ("intermediate", c_int32),
        ("vocab_size", c_int32),
        ("codec", c_int32),
        ("norm_eps", c_float),
        ("rope_magnitude", c_float),
        ("frequencies", c_void_p),
        ("final_norm", c_void_p),
        ("embedding", c_void_p),
        ("layers", c_void_p),
        ("head", Linear),
    )


class Span(ctypes.Structure):
    """One sequence's rows of a step."""

    _fields_ = (("row", c_int64), ("n", c_int64), ("start", c_int64), ("blocks", c_void_p))


class Step(ctypes.Structure):
    """What one call computes."""

    _fields_ = (
        ("n_rows", c_int64),
        ("n_spans", c_int64),
        ("n_asked", c_int64),
        ("tokens", c_void_p),
        ("spans", c_void_p),
        ("asked", c_void_p),
        ("hidden", c_void_p),
        ("logits", c_void_p),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("layer_bytes", c_int64),
        ("block_tokens", c_int32),
        ("first_layer", c_int32),
        ("end_layer", c_int32),
        ("reserved", c_int32),
    )
