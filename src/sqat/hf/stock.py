"""Export to stock architectures of `transformers`: an SQA model without RxNN's quirks is one of them.

| the model has | it is |
|---|---|
| a dense feed-forward | Llama (it has all biases or none, so missing ones become zeros) |
| a dense feed-forward, and a window or a width that its query heads do not divide | Mistral |
| experts, with or without a window | Mixtral |

Qwen3 and Qwen3-MoE normalise every query and key head. No model of this package does, so they are never exact.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from sqat.checkpoint.model_files import native_tensors
from sqat.config import ModelConfig
from sqat.data.tokenizer import BOS, EOS, PAD, Tokenizer
from sqat.errors import ConfigError
from sqat.hf.tokenizer import write_tokenizer
from sqat.model import Decoder


class Architecture(NamedTuple):
    name: str
    biases: bool = False  # whether attention and feed-forward may have them
    window: bool = True


def choose(config: ModelConfig) -> Architecture:
    """The stock architecture that computes exactly what a configuration describes.

    Raises:
        ConfigError: there is none; the message names the field and what it would have to be.
    """
    for field, right, why in (
        ("head_bias", False, "heads have no bias"),
        ("norm", "rmsnorm", "norms are RMSNorm"),
        ("final_norm", "rmsnorm", "there is an RMSNorm before the head"),
        ("gated", True, "feed-forwards are gated"),
        ("global_tokens", 0, "windows have no global tokens"),
    ):
        _require(getattr(config, field) == right, config, field, f"{right!r}: in stock architectures {why}")
    right = (
        f"a divisor of num_query_heads ({config.num_query_heads}): in stock architectures no query head serves several"
    )
    _require(config.num_query_heads % config.num_kv_heads == 0, config, "num_kv_heads", right)
    if not config.is_moe and config.window is None and config.hidden_size % config.num_query_heads == 0:
        return Architecture("Llama", biases=True, window=False)
    architecture = Architecture("Mixtral" if config.is_moe else "Mistral")
    for field in ("qkv_bias", "attention_out_bias", "feedforward_bias"):
        right = f"False: {architecture.name}, which it otherwise is, has none"
        _require(not getattr(config, field), config, field, right)
    return architecture


def _require(condition: bool, config: ModelConfig, field: str, right: str) -> None:
    if not condition:
        raise ConfigError(f"no stock architecture is exact: {field} is {getattr(config, field)!r}, but must be {right}")


def to_stock(model: Decoder) -> PreTrainedModel:
    """The same model as a stock class of transformers, in evaluation mode and on the CPU; its logits agree to 1e-5.

    Raises:
        ConfigError: as :func:`choose`.
    """
    architecture = choose(model.config)
    stock_class: Any = getattr(transformers, f"{architecture.name}ForCausalLM")
    result: PreTrainedModel = stock_class(_config(model.config, architecture)).to(model.embedding.weight.dtype)
    result.load_state_dict(stock_tensors(model, architecture))
    return result.eval()


def write_stock(model: Decoder, tokenizer: Tokenizer | None, folder: Path) -> str:
    """Write a stock checkpoint, with tokenizer, into an existing folder; returns the architecture's name."""
    to_stock(model).save_pretrained(folder)
    write_tokenizer(tokenizer, folder)
    return choose(model.config).name


def _config(config: ModelConfig, architecture: Architecture) -> Any:
    values: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_query_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": config.activation,
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": norm_eps(config),
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attention_dropout": config.attention_dropout,
        "tie_word_embeddings": config.tie_embeddings,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
    }
    if architecture.window:
        values["sliding_window"] = config.window
    if architecture.biases:
        values |= {"attention_bias": config.qkv_bias or config.attention_out_bias, "mlp_bias": config.feedforward_bias}
    if config.is_moe:
        values |= {"num_local_experts": config.num_experts, "num_experts_per_tok": config.experts_per_token}
    return getattr(transformers, f"{architecture.name}Config")(**values)


def norm_eps(config: ModelConfig) -> float:
    """RMSNorm's epsilon; torch's default is that of the input's type, and training computes norms in float32."""
    return torch.finfo(torch.float32).eps if config.norm_eps is None else config.norm_eps


# This package's names -> transformers', tried in this order
_NAMES = {
    "embedding.": "model.embed_tokens.",
    "head.": "lm_head.",
    "final_norm.": "model.norm.",
    ".norm1.": ".input_layernorm.",
    ".norm2.": ".post_attention_layernorm.",
    ".attention.out_proj.": ".self_attn.o_proj.",
    ".attention.": ".self_attn.",
    ".feedforward.router.": ".mlp.gate.",
    ".feedforward.fc2_weight": ".mlp.experts.down_proj",
    ".feedforward.fc2.": ".mlp.down_proj.",
}


def stock_tensors(model: Decoder, architecture: Architecture) -> dict[str, Tensor]:
    """The stock model's state dict; a bias that only the stock model has is zero."""
    result: dict[str, Tensor] = {}
    for name, tensor in native_tensors(model).items():
        layer, _, last = name.partition(".feedforward.fc1")  # which here gives (linear, gate) in one
        if last == "_weight":  # of all experts, (E, 2F, D)
            result[f"model.{layer}.mlp.experts.gate_up_proj"] = torch.cat(tensor.chunk(2, dim=1)[::-1], dim=1)
        elif last:
            result[f"model.{layer}.mlp.up_proj{last}"], result[f"model.{layer}.mlp.gate_proj{last}"] = tensor.chunk(2)
        else:
            result[_stock_name(name)] = tensor
    config = model.config
    if config.tie_embeddings:
        result["lm_head.weight"] = result["model.embed_tokens.weight"]
    if architecture.biases and (config.qkv_bias or config.attention_out_bias):
        for i in range(config.num_layers):
            for projection in ("q_proj", "k_proj", "v_proj", "o_proj"):
                name = f"model.layers.{i}.self_attn.{projection}"
                weight = result[f"{name}.weight"]
                result.setdefault(f"{name}.bias", weight.new_zeros(len(weight)))
    return result


def _stock_name(name: str) -> str:
    for ours, theirs in _NAMES.items():
        if ours in name:
            renamed = name.replace(ours, theirs)
            return f"model.{renamed}" if renamed.startswith("layers.") else renamed
    raise AssertionError(f"tensor {name!r} has no place in stock architectures")  # choose() refuses such models
