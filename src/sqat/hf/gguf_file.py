"""Export to GGUF, the format of llama.cpp and of what is built on it.

llama.cpp's "llama" architecture covers Llama and Mixtral. It rotates neighbouring pairs of a head where this package
rotates halves, so the rows of the query and key projections are permuted, as in RxNN's layout.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sqat.checkpoint.rxnn import halves_to_pairs
from sqat.config import ModelConfig
from sqat.data.tokenizer import BOS, EOS, PAD, SPECIAL_TOKENS, UNK, Tokenizer
from sqat.errors import CheckpointError, ConfigError
from sqat.hf.stock import choose, norm_eps, stock_tensors
from sqat.model import Decoder
from sqat.untrusted import shown

if TYPE_CHECKING:
    from gguf import GGUFWriter

FILE = "model.gguf"
_BPE_OPTIONS = ("continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")


def write_gguf(model: Decoder, tokenizer: Tokenizer | None, folder: Path) -> str:
    """Write weights, as float32, and tokenizer as one file into an existing folder; returns what it is, in words.

    Raises:
        ConfigError: llama.cpp would not compute the model or tokenizer exactly, or gguf is not installed.
        CheckpointError: there is no tokenizer.
    """
    try:
        from gguf import GGUFWriter
    except ModuleNotFoundError as error:
        raise ConfigError("GGUF files need the package gguf: pip install gguf") from error
    if tokenizer is None:
        raise CheckpointError("the checkpoint has no tokenizer.json, which a GGUF file has to contain")
    config = model.config
    choose(config)
    if config.window is not None:
        raise ConfigError(f"window is {config.window}, but must be None for GGUF: llama.cpp's llama has no windows")
    if config.activation not in ("silu", "swish"):
        raise ConfigError(
            f"activation is {config.activation!r}, but must be 'silu' for GGUF: llama.cpp's llama has no other"
        )
    _check_tokenizer(json.loads(tokenizer.backend.to_str()))
    writer = GGUFWriter(folder / FILE, "llama")
    _add_shape(writer, config)
    _add_tokenizer(writer, tokenizer, config.vocab_size)
    for name, tensor in _gguf_tensors(model).items():
        writer.add_tensor(name, tensor.float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return f"GGUF ({FILE})"


def _check_tokenizer(parts: dict[str, Any]) -> None:
    """The file describes GPT-2's tokenizer: text as it is, cut by GPT-2's regular expression, merged by BPE."""
    cut = parts["pre_tokenizer"] or {}
    if cut.get("add_prefix_space"):
        raise ConfigError("the tokenizer puts a space before a text, which llama.cpp's byte-level BPE does not")
    found = {
        "normalizer": (parts["normalizer"] or {}).get("type"),
        "pre_tokenizer": cut.get("type"),
        "pre_tokenizer.use_regex": cut.get("use_regex", True),
        "model.ignore_merges": parts["model"].get("ignore_merges", False),
        **{f"model.{name}": parts["model"].get(name) or None for name in _BPE_OPTIONS},
        "added_tokens": [t["content"] for t in parts["added_tokens"] if t["content"] not in SPECIAL_TOKENS],
    }
    right: dict[str, Any] = {
        **dict.fromkeys(found),
        "pre_tokenizer": "ByteLevel",
        "pre_tokenizer.use_regex": True,
        "model.ignore_merges": False,
        "added_tokens": [],  # besides the special ones
    }
    for name, value in found.items():
        if value != right[name]:
            raise ConfigError(
                f"the tokenizer's {name} is {shown(value)}, but must be {right[name]!r} for GGUF: of llama.cpp's "
                "byte-level BPEs, only GPT-2's is written"
            )


def _add_shape(writer: GGUFWriter, config: ModelConfig) -> None:
    writer.add_name("sqat")
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_query_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(norm_eps(config))
    writer.add_vocab_size(config.vocab_size)
    if config.is_moe:
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.experts_per_token)


def _add_tokenizer(writer: GGUFWriter, tokenizer: Tokenizer, vocab_size: int) -> None:
    """As GPT-2's byte-level BPE; ids that the tokenizer lacks and the model has are marked as unused."""
    from gguf import TokenType

    model: dict[str, Any] = json.loads(tokenizer.backend.to_str())["model"]
    names = {token_id: token for token, token_id in tokenizer.backend.get_vocab(with_added_tokens=True).items()}
    tokens = [names.get(token_id, f"[UNUSED {token_id}]") for token_id in range(vocab_size)]
    kinds = [TokenType.NORMAL if token_id in names else TokenType.UNUSED for token_id in range(vocab_size)]
    for token_id in range(len(SPECIAL_TOKENS)):
        kinds[token_id] = TokenType.CONTROL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
    writer.add_pad_token_id(PAD)
    writer.add_unk_token_id(UNK)
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)


def _gguf_tensors(model: Decoder) -> dict[str, Tensor]:
    """Tensors under llama.cpp's names and in its order of rotary pairs; a tied head is left out."""
    from gguf import MODEL_ARCH, get_tensor_name_map

    config = model.config
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config.num_layers)
    result: dict[str, Tensor] = {}
    for name, tensor in stock_tensors(model, choose(config)).items():
        if name == "lm_head.weight" and config.tie_embeddings:
            continue
        if ".mlp.experts." in name:
            layer = f"blk.{name.split('.')[2]}"
            if name.endswith("gate_up_proj"):
                gate, up = tensor.chunk(2, dim=1)
                result |= {f"{layer}.ffn_gate_exps.weight": gate, f"{layer}.ffn_up_exps.weight": up}
            else:
                result[f"{layer}.ffn_down_exps.weight"] = tensor
            continue
        if ".q_proj." in name or ".k_proj." in name:
            tensor = halves_to_pairs(tensor.unflatten(0, (-1, config.head_dim))).flatten(0, 1)
        renamed = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert renamed is not None, name
        result[renamed] = tensor
    return result
