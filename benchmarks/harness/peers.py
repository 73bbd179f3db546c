"""The peers: whether they are installed, and models of the same sizes on them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from benchmarks.harness.results import Result, Table

from sqat.bench import package_version
from sqat.config import ModelConfig

if TYPE_CHECKING:
    from benchmarks.harness.settings import Context

# What each peer needs to be imported, and how to get it. rxlm pins versions of transformers and others that contradict
# ours, but runs with ours: so it is installed without its dependencies.
REQUIRED = {
    "transformers": ("transformers",),
    "rxlm": ("rxlm", "datasets", "nltk", "sklearn", "tensorboard"),
}
# The settings that our training makes for itself (keep_freed_memory), as glibc reads them from the environment.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
    "MALLOC_TOP_PAD_": str(2**26),
}
EXPERTS = ("eager", "grouped_mm", "batched_mm")  # of transformers; its others need a GPU's own kernels


def missing(peer: str) -> str | None:
    """How to install a peer, or `None` where it is installed."""
    lacking = [module for module in REQUIRED[peer] if find_spec(module) is None]
    return f"{', '.join(lacking)} not installed: make bench-setup" if lacking else None


def measure_peers(context: Context) -> Result:
    """Which peers are installed."""
    notes = [f"{name} {package_version(name)}: installed" for name in REQUIRED if not missing(name)]
    return Result("peers", [Table("peers", "installed: 1", notes=notes)], context.absent(*REQUIRED))


def qwen3(config: ModelConfig, experts: str = "eager") -> Any:
    """transformers' Qwen3 or Qwen3-MoE of the same sizes (without our biases; with norms of queries and keys)."""
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

    sizes: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_query_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": max(config.context_length, 32768),
        "tie_word_embeddings": config.tie_embeddings,
        "attn_implementation": "sdpa",
    }
    if not config.is_moe:
        return Qwen3ForCausalLM(Qwen3Config(**sizes))
    model = Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            **sizes,
            num_experts=config.num_experts,
            num_experts_per_tok=config.experts_per_token,
            moe_intermediate_size=config.intermediate_size,
            norm_topk_prob=True,
        )
    )
    model.set_experts_implementation(experts)
    return model


def batched_bytes(config: ModelConfig, tokens: int) -> int:
    """What transformers' "batched_mm" takes in a training step: for every token and every expert it visits, a copy of
    the expert's bf16 weights, kept for backward in every layer.
    """
    expert = 3 * config.hidden_size * config.intermediate_size
    return 2 * expert * tokens * config.experts_per_token * config.num_layers


def rxlm_model(config: ModelConfig) -> Any:
    """rxlm's model class with the arguments of the card's checkpoint; weights are random."""
    from sqat.checkpoint.rxnn import config_to_rxnn

    with silenced():
        from rxlm.experimental.models import ExperimentalAttentionTransformer

        return ExperimentalAttentionTransformer(**config_to_rxnn(config))


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Discard what a library prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
