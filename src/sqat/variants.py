"""The attention variants of the Sparse Query Attention paper (arXiv 2510.01817, section 3), and the preset models.

Presets with the names of the paper's published models have exactly their sizes.
"""

import difflib
import math
from fractions import Fraction
from typing import Any, NamedTuple

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


_CARD: dict[str, Any] = {  # in which the published research models differ from current practice
    "norm_eps": None,
    "final_norm": None,
    "tie_embeddings": False,
    "attention_out_bias": True,
    "feedforward_bias": True,
    "head_bias": True,
    "init": "torch",
}
_MICRO = {"vocab_size": 5000, "num_layers": 6, "intermediate_size": 256, "context_length": 256, "num_experts": 12}
_MINI = {"vocab_size": 10_000, "num_layers": 8, "intermediate_size": 768, "context_length": 1024}

# What the models of a family share: H, the width, and all else but the head counts.
FAMILIES: dict[str, tuple[int, int, dict[str, Any]]] = {
    # Published: mixtures of experts, and dense
    "micro": (8, 128, {**_MICRO, **_CARD, "feedforward_dropout": 0.1}),
    "mini": (
        16,
        256,
        {"vocab_size": 10_000, "num_layers": 8, "intermediate_size": 768, "context_length": 1024, **_CARD},
    ),
    # Modern and dense, for new work: they export to stock architectures
    "small": (8, 512, {"vocab_size": 5000, "num_layers": 6, "intermediate_size": 1152, "context_length": 512}),
    # Small enough to learn the built-in stories in two minutes on two cores
    "extra_small": (8, 256, {"vocab_size": 2048, "num_layers": 4, "intermediate_size": 640, "context_length": 256}),
}
Preset = tuple[str, str, dict[str, int]]  # family, variant, changes


def of_family(family: str, variant: str, **changes: object) -> ModelConfig:
    """The model of a family with the heads of a variant. Raises ConfigError as :func:`head_counts`."""
    num_heads, width, fields = FAMILIES[family]
    query_heads, kv_heads = head_counts(variant, num_heads)
    heads = {"num_query_heads": query_heads, "num_kv_heads": kv_heads, "head_dim": width // num_heads}
    return ModelConfig.from_dict({"hidden_size": width, **heads, **fields, **changes})


def _published(family: str, size: str, window: int) -> dict[str, Preset]:
    """The presets with the names and sizes of the paper's models: gqa-ref-micro, sqat-mm, swsqat-mm, and so on."""
    named: dict[str, Preset] = {}
    for variant in VARIANTS:
        baseline = variant in ("mha", "gqa", "mqa")
        named[f"{variant}-ref-{family}" if baseline else f"{variant}t-{size}"] = family, variant, {}
    named[f"swsqat-{size}"] = family, "sqa", {"window": window}
    named[f"flexsqat-{size}"] = family, "sqa", {"window": window, "global_tokens": 4}
    return named


_PRESETS: dict[str, Preset] = {
    **{f"{name}-s": ("small", name.removesuffix("t"), {}) for name in ("sqat", "gqa", "mha", "xsqat")},
    "sqat-xs": ("extra_small", "sqa", {}),
    **_published("micro", "mm", window=64),  # of 256 positions
    **_published("mini", "m", window=128),  # of 1,024, as in the paper
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
    return of_family(family, variant, **changes)


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
