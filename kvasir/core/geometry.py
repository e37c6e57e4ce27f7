"""Consequences of the config and the machine: sizes that are derived once and never change."""

from __future__ import annotations

from dataclasses import dataclass

from kvasir.core.realm import Realm


@dataclass(frozen=True, slots=True, kw_only=True)
class KvGeometry:
    """The size and shape of the KV pool on the device.

    One block holds ``block_tokens`` tokens of every layer. In the canonical layout a block is, per
    layer, a plane of keys and a plane of values, each [block_tokens, n_kv_heads, head_dim], in
    ``dtype``; keys are stored after RoPE. In "int8" keys are rotated by a Hadamard transform too,
    and a token's row is its heads' numbers and then one bfloat16 scale for each head.
    """

    n_layers: int
    n_kv_heads: int
    head_dim: int
    dtype: str  # "bfloat16", "float16", "float32" or "int8"
    dtype_bytes: int
    block_tokens: int
    n_blocks: int

    @property
    def head_bytes(self) -> int:
        """Bytes of one head of one token in one plane."""
        scale_bytes = 2 if self.dtype == "int8" else 0
        return self.head_dim * self.dtype_bytes + scale_bytes

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's KV over all layers."""
        return 2 * self.n_layers * self.n_kv_heads * self.head_bytes

    @property
    def block_bytes(self) -> int:
        """Bytes of one block over all layers."""
        return self.block_tokens * self.token_bytes

    @property
    def pool_bytes(self) -> int:
        """Bytes of the whole pool."""
        return self.n_blocks * self.block_bytes

    @property
    def pool_tokens(self) -> int:
        """Tokens that the whole pool holds."""
        return self.n_blocks * self.block_tokens

    def blocks_for(self, n_tokens: int) -> int:
        """Blocks that ``n_tokens`` need."""
        return -(-n_tokens // self.block_tokens)

    @property
    def layout_id(self) -> str:
        """The canonical layout in words; part of every KV key."""
        return (
            f"v1:{self.n_layers}x[k,v]x[{self.block_tokens},{self.n_kv_heads},{self.head_dim}]"
            f":{self.dtype}:rope-applied" + (",rotated,scaled" if self.dtype == "int8" else "")
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What everyone may know of the loaded model without touching its weights."""

    name: str  # the id under /v1/models
    aliases: tuple[str, ...] = ()
    architecture: str  # "llama", "qwen2", "qwen3", "mistral"
    window: int  # tokens of prompt and answer together
    vocab_size: int
    dtype: str
    parameter_bytes: int
    realm: Realm  # everything beside tokens and owner that KV depends on; part of every KV key
    demonstration: bool = False  # the embedded model, which is called what it is
