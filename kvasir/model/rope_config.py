"""RoPE settings of a Hugging Face ``config.json``, in the old form (``rope_scaling`` beside
``rope_theta``) and that of transformers 5 (``rope_parameters``). Torch-free.

Kinds: "default", "linear" (Chen et al. 2023, arXiv:2306.15595), "yarn" (Peng et al. 2023,
arXiv:2309.00071), "llama3" (the Llama 3.1 release). Every other kind is refused by its name:
running it as another would give text that looks right and is not.
"""

from __future__ import annotations

from kvasir.core.errors import CorruptWeights, UnsupportedModel
from kvasir.model.fields import Fields
from kvasir.model.limits import MAX_ROPE_FACTOR, MAX_THETA, MAX_WINDOW
from kvasir.model.spec import RopeSpec

KINDS = ("default", "linear", "llama3", "yarn")
DEFAULT_THETA = 10_000.0
LAYER_KINDS = ("full_attention", "sliding_attention")


def rope_from_config(config: Fields, max_positions: int) -> RopeSpec:
    """The RoPE that ``config`` describes; ``max_positions`` is its ``max_position_embeddings``.

    Raises ``UnsupportedModel`` for a kind that is not run, ``CorruptWeights`` for absurd numbers.
    """
    entry = config.table("rope_scaling") if config.values.get("rope_scaling") else None
    entry = entry or config.table("rope_parameters") or Fields({}, config.source)
    if any(kind in entry.values for kind in LAYER_KINDS):
        raise UnsupportedModel(
            f"{config.source} gives RoPE parameters per layer type, which Kvasir does not run"
        )
    kind = entry.text("rope_type", entry.text("type", "default"))
    if kind not in KINDS:
        raise UnsupportedModel(
            f"RoPE kind {kind!r} of {config.source} is not supported; those that are: "
            + ", ".join(KINDS)
        )
    outer = config.number("partial_rotary_factor", 0, 1, 1.0)
    if entry.number("partial_rotary_factor", 0, 1, outer) != 1.0:
        raise UnsupportedModel(f"{config.source} rotates only a part of each head; not supported")
    theta = entry.number(
        "rope_theta", 1, MAX_THETA, config.number("rope_theta", 1, MAX_THETA, DEFAULT_THETA)
    )
    if kind == "default":
        return RopeSpec(kind=kind, theta=theta)
    if kind == "linear":
        return RopeSpec(kind=kind, theta=theta, factor=_factor(entry))
    # transformers gives the outer key precedence where both are there
    original = config.integer(
        "original_max_position_embeddings",
        1,
        MAX_WINDOW,
        entry.integer("original_max_position_embeddings", 1, MAX_WINDOW, max_positions),
    )
    if kind == "llama3":
        return _llama3(entry, theta, original)
    return _yarn(entry, theta, original, max_positions)


def window_of(rope: RopeSpec, config: Fields, max_positions: int) -> int:
    """Tokens that the model was made for, prompt and answer together.

    ``max_position_embeddings`` counts the scaled window for default, llama3 and, as a rule, linear
    RoPE, and is taken as it is. For yarn it is ambiguous in published files (Qwen2.5 keeps the
    original 32,768 there, others the extended number), while original window × factor is what the
    scaling was set to reach; that is taken. A linear model is extended likewise only where it names
    its original window: without it, more might lie beyond what it was trained for.
    """
    window = max_positions
    if rope.kind == "yarn":
        window = int((rope.original_window or max_positions) * (rope.factor or 1.0))
    elif rope.kind == "linear" and config.has("original_max_position_embeddings"):
        original = config.integer("original_max_position_embeddings", 1, MAX_WINDOW)
        window = max(max_positions, int(original * (rope.factor or 1.0)))
    if window > MAX_WINDOW:
        raise CorruptWeights(
            f"{config.source} describes a window of {window} tokens; at most {MAX_WINDOW} are run"
        )
    return window


def _factor(entry: Fields) -> float:
    return entry.number("factor", 1, MAX_ROPE_FACTOR)


def _llama3(entry: Fields, theta: float, original: int) -> RopeSpec:
    low = entry.number("low_freq_factor", 1e-3, 1e3)
    high = entry.number("high_freq_factor", 1e-3, 1e3)
    if high <= low:
        raise CorruptWeights(f"{entry.source}: high_freq_factor {high} is not above {low}")
    return RopeSpec(
        kind="llama3",
        theta=theta,
        factor=_factor(entry),
        low_freq_factor=low,
        high_freq_factor=high,
        original_window=original,
    )


def _yarn(entry: Fields, theta: float, original: int, max_positions: int) -> RopeSpec:
    factor = _factor(entry) if entry.has("factor") else max(1.0, max_positions / original)
    if theta <= 1:  # the correction range divides by log(theta)
        raise CorruptWeights(f"{entry.source}: yarn needs a rope_theta above 1, not {theta:g}")
    # transformers reads 0 as absent for the betas and the mscales, so null and 0 mean the same
    return RopeSpec(
        kind="yarn",
        theta=theta,
        factor=factor,
        original_window=original,
        attention_factor=entry.optional_number("attention_factor", 0, 1e3),
        beta_fast=entry.optional_number("beta_fast", 0, 1e6) or None,
        beta_slow=entry.optional_number("beta_slow", 0, 1e6) or None,
        mscale=entry.optional_number("mscale", 0, 1e3) or None,
        mscale_all_dim=entry.optional_number("mscale_all_dim", 0, 1e3) or None,
        truncate=entry.flag("truncate", True),
    )
