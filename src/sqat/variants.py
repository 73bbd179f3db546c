"""The attention variants of the Sparse Query Attention paper (arXiv 2510.01817, section 3), and the preset models.

Presets with the names of the paper's published models have exactly their sizes.
"""

import difflib
import math
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

from sqat.config import ModelConfig
from sqat.errors import ConfigError


class Variant(NamedTuple):
    """Head counts as fractions of H, the heads of full attention; a `kv_share` of None means exactly one head."""

    query_share: Fraction
    kv_share: Fraction | None
    meaning: str


_ALL, _THREE_QUARTERS, _HALF, _QUARTER = Fraction(1), Fraction(3, 4), Fraction(1, 2), Fraction(1, 4)

VARIANTS: dict[str, Variant] = {
    "mha": Variant(_ALL, _ALL, "multi-head attention"),
    "gqa": Variant(_ALL, _QUARTER, "grouped query attention"),
    "mqa": Variant(_ALL, None, "multi-query attention"),
    "sqa": Variant(_HALF, _QUARTER, "sparse query attention"),
    "ssqa": Variant(_HALF, _HALF, "symmetric SQA"),
    "xsqa": Variant(_QUARTER, _QUARTER, "extreme SQA"),
    "xsmqa": Variant(_QUARTER, None, "extreme SQA with one key/value head"),
    "lsqa": Variant(_THREE_QUARTERS, _QUARTER, "light SQA"),
    "rsqa": Variant(_QUARTER, _HALF, "reverse SQA: every query head serves two key/value heads"),
}


def head_counts(variant: str, num_heads: int) -> tuple[int, int]:
    """The head counts of an attention variant: (num_query_heads, num_kv_heads).

    Args:
        variant: a name in `VARIANTS`: "mha", "gqa", "mqa", or one of the Sparse Query Attention paper (arXiv
            2510.01817): "sqa", "ssqa", "xsqa", "xsmqa", "lsqa", "rsqa".
        num_heads: H, the heads of full attention: hidden_size / head_dim.

    Raises:
        ConfigError: the variant is unknown, or `num_heads` is not a multiple of what the variant needs.
    """
    if variant not in VARIANTS:
        raise ConfigError(f"variant is {variant!r}, but must be one of {', '.join(VARIANTS)}")
    query_share, kv_share, _ = VARIANTS[variant]
    query_heads = query_share * num_heads
    kv_heads = Fraction(1) if kv_share is None else kv_share * num_heads
    multiple = math.lcm(query_share.denominator, (kv_share or _ALL).denominator)
    if num_heads < 1 or num_heads % multiple:
        raise ConfigError(f"num_heads is {num_heads}, but variant {variant!r} needs a positive multiple of {multiple}")
    return int(query_heads), int(kv_heads)


def _card_quirks(**changes: object) -> dict[str, object]:
    """Fields in which the published research models differ from current practice."""
    return {
        "norm_eps": None,
        "final_norm": None,
        "tie_embeddings": False,
        "attention_out_bias": True,
        "feedforward_bias": True,
        "head_bias": True,
        "init": "torch",
        **changes,
    }


def _build(variant: str, num_heads: int, hidden_size: int, **fields: object) -> ModelConfig:
    query_heads, kv_heads = head_counts(variant, num_heads)
    heads = {"num_query_heads": query_heads, "num_kv_heads": kv_heads, "head_dim": hidden_size // num_heads}
    return ModelConfig.from_dict({"hidden_size": hidden_size, **heads, **fields})


def micro(variant: str, **changes: object) -> ModelConfig:
    """The published micro mixture-of-experts models: D 128, 6 layers, 12 experts, context 256."""
    shape = {"vocab_size": 5000, "num_layers": 6, "intermediate_size": 256, "context_length": 256, "num_experts": 12}
    return _build(variant, 8, 128, **_card_quirks(**shape, feedforward_dropout=0.1, **changes))


def mini(variant: str, **changes: object) -> ModelConfig:
    """The published dense mini models: D 256, 8 layers, context 1024."""
    shape = {"vocab_size": 10_000, "num_layers": 8, "intermediate_size": 768, "context_length": 1024}
    return _build(variant, 16, 256, **_card_quirks(**shape, **changes))


def small(variant: str, **changes: object) -> ModelConfig:
    """Modern dense models, for new work: D 512, 6 layers, head_dim 64. They export to stock architectures."""
    shape = {"vocab_size": 5000, "num_layers": 6, "intermediate_size": 1152, "context_length": 512}
    return _build(variant, 8, 512, **shape, **changes)


def extra_small(variant: str, **changes: object) -> ModelConfig:
    """Modern models small enough to learn the built-in stories in two minutes on two cores."""
    shape = {"vocab_size": 2048, "num_layers": 4, "intermediate_size": 640, "context_length": 256}
    return _build(variant, 8, 256, **shape, **changes)


Family = Callable[..., ModelConfig]
FAMILIES: dict[str, Family] = {"micro": micro, "mini": mini, "small": small, "extra_small": extra_small}
Preset = tuple[Family, str, dict[str, int]]  # family, variant, changes


def _published(family: Family, size: str, window: int) -> dict[str, Preset]:
    """The presets with the names and sizes of the paper's models: gqa-ref-micro, sqat-mm, swsqat-mm, and so on."""
    named: dict[str, Preset] = {}
    for variant in VARIANTS:
        baseline = variant in ("mha", "gqa", "mqa")
        named[f"{variant}-ref-{family.__name__}" if baseline else f"{variant}t-{size}"] = family, variant, {}
    named[f"swsqat-{size}"] = family, "sqa", {"window": window}
    named[f"flexsqat-{size}"] = family, "sqa", {"window": window, "global_tokens": 4}
    return named


_PRESETS: dict[str, Preset] = {
    **{f"{name}-s": (small, name.removesuffix("t"), {}) for name in ("sqat", "gqa", "mha", "xsqat")},
    "sqat-xs": (extra_small, "sqa", {}),
    **_published(micro, "mm", window=64),  # of 256 positions
    **_published(mini, "m", window=128),  # of 1,024, as in the paper
}

PRESETS: tuple[str, ...] = tuple(_PRESETS)


def preset(name: str) -> ModelConfig:
    """The configuration of a preset model, such as "sqat-s". `PRESETS` lists all names; case does not matter.

    Raises:
        ConfigError: no such preset; the message suggests the closest name.
    """
    entry = _PRESETS.get(name.lower())
    if entry is None:
        close = difflib.get_close_matches(name.lower(), PRESETS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"the presets are {', '.join(PRESETS)}"
        raise ConfigError(f"unknown preset {name!r}; {hint}")
    family, variant, changes = entry
    return family(variant, **changes)


def attention_name(config: ModelConfig) -> str:
    """The attention as text, such as "sqa, window 64, 4 global tokens"."""
    words = [variant_name(config) or "custom"]
    if config.window is not None:
        words.append(f"window {config.window:,}")
    if config.global_tokens:
        words.append(f"{config.global_tokens:,} global tokens")
    return ", ".join(words)


def variant_name(config: ModelConfig) -> str | None:
    """The name of the variant that has a configuration's head counts, or None if no variant does."""
    counts = (config.num_query_heads, config.num_kv_heads)
    for name, (query_share, kv_share, _) in VARIANTS.items():
        if counts == (query_share * config.num_heads, 1 if kv_share is None else kv_share * config.num_heads):
            return name
    return None
