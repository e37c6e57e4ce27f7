"""What a decoder is, in numbers: one frozen spec for Llama, Mistral, SmolLM, Qwen2 and Qwen3."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeSpec:
    """Rotary position embedding. ``kind`` is "default", "linear", "llama3" or "yarn".

    The fields after ``theta`` are those of the kind's entry in a Hugging Face ``config.json``
    (``rope_scaling`` or ``rope_parameters``) and are None where that kind does not read them.
    """

    kind: str
    theta: float
    factor: float | None = None
    low_freq_factor: float | None = None  # llama3
    high_freq_factor: float | None = None  # llama3
    original_window: int | None = None  # llama3, yarn: original_max_position_embeddings
    attention_factor: float | None = None  # yarn
    beta_fast: float | None = None  # yarn
    beta_slow: float | None = None  # yarn
    mscale: float | None = None  # yarn
    mscale_all_dim: float | None = None  # yarn
    truncate: bool = True  # yarn: whether the correction range is rounded to whole dimensions


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A pre-norm decoder with grouped-query attention, RoPE and a gated SiLU feed-forward."""

    architecture: str  # "llama", "mistral", "qwen2", "qwen3"
    n_layers: int
    hidden: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    intermediate: int
    vocab_size: int
    window: int  # max_position_embeddings, after any RoPE scaling
    norm_eps: float
    rope: RopeSpec
    tied_embeddings: bool
    qkv_bias: bool = False  # Qwen2; Llama with attention_bias
    output_bias: bool = False  # Llama with attention_bias
    mlp_bias: bool = False  # Llama with mlp_bias
    qk_norm: bool = False  # Qwen3: RMSNorm over head_dim on queries and keys before RoPE
    sliding_window: tuple[int | None, ...] = ()  # per layer: keys seen, or None; () = all full

    def window_of(self, layer: int) -> int | None:
        """How many of the last positions layer ``layer`` sees; None = all."""
        return self.sliding_window[layer] if self.sliding_window else None
